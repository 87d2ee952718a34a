"""Files that are not text are named by kind, with a harmless remedy; none becomes a document."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import subprocess
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from made_up_text import text

from data_pipeline.documents.stage import build_documents
from data_pipeline.formats.sniff import HEAD, encoding_by_nulls
from data_pipeline.sources.readers import read_source
from data_pipeline.stages.run import StageError
from retro_jax.config import DataConfig, SourceConfig

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 10000001\n"
DOUBLE = bytes.fromhex("00051607 00020000") + b"Mac OS X        " + bytes(60) + b"com.apple.quarantine\0q/0081\xff\xfe"
SQLITE = b"SQLite format 3\0" + bytes(80)
LINES = "".join(json.dumps({"text": text(n)}) + "\n" for n in range(5))


def read(path, **options):
    return [raw.text for raw in read_source("mine", SourceConfig(path=str(path), **options))]


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "text")
    return buffer.getvalue()


def parquet():
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"]}), buffer)
    return buffer.getvalue()


BINARY = {
    "a Git LFS pointer.*git lfs pull": POINTER,
    "an AppleDouble file.*Remove it": DOUBLE,
    r"a gzip file.*rename it to .*\.gz": gzip.compress(b"text"),
    r"an xz file.*rename it to .*\.xz": lzma.compress(b"text"),
    r"a bzip2 file.*rename it to .*\.bz2": bz2.compress(b"text"),
    r"a zstandard file.*rename it to .*\.zst": zstandard.compress(b"text"),
    "a zip archive.*Unpack it": zipped(),
    "a PDF document.*pdftotext": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "a SQLite database.*Export": SQLITE,
    "a program": b"\x7fELF\2\1\1" + bytes(60),
    "a PNG image": b"\x89PNG\r\n\x1a\n" + bytes(60),
    r"a Parquet table.*\.parquet": parquet(),
    "a Python pickle.*never opened": b"\x80\x04\x95\x05",
}


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.txt.gz", "a.jsonl.zst", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("message", BINARY)
def test_a_file_of_another_kind_is_named_whatever_its_ending(tmp_path, name, message):
    """Guards against the advice `iconv -f latin1` for a renamed .gz: it makes letters of binary."""
    content = BINARY[message]
    own = {"a.txt.gz": "gzip", "a.jsonl.zst": "zstandard", "a.parquet": "Parquet"}.get(name, "none")
    if own in message:
        return
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StageError, match=rf"{name} should be .*, but is {message}") as caught:
        read(tmp_path / name)
    assert "iconv" not in str(caught.value)


def test_a_pointer_among_texts_stops_the_build(tmp_path):
    """Guards against reading a clone without git-lfs: thirty pointers were thirty documents."""
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / "in" / f"{number}.txt").write_bytes(POINTER if number % 2 else text(number).encode())
    with pytest.raises(StageError, match=r"1.txt should be text, but is a Git LFS pointer"):
        build_documents(tmp_path / "d", DataConfig(sources={"s": SourceConfig(path=str(tmp_path / "in"))}))
    assert not (tmp_path / "d" / "manifest.json").exists()


CYRILLIC = "Мельница стоит у реки.\nЗерно мелют утром и вечером.\n" * 3
ENCODINGS = ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("content", [text(0), CYRILLIC, LINES, "Ελληνικά και λίγα ακόμη, για μια πρόταση."])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.xz"])
def test_utf16_without_a_mark_is_refused_with_a_command_that_works(tmp_path, encoding, content, name):
    """Guards against UTF-16 read as UTF-8: letters with NULs between them became documents."""
    packed = lzma.compress if name.endswith(".xz") else bytes
    path = tmp_path / name
    path.write_bytes(packed(content.encode(encoding)))
    with pytest.raises(StageError, match="Convert it, for example") as caught:
        read(path)
    command = str(caught.value).partition("for example: ")[2]
    assert f"iconv -f {encoding.replace('-le', 'le').replace('-be', 'be')}" in command
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert (tmp_path / "converted.txt").read_text() == content


@pytest.mark.parametrize("mark, encoding", [(codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF32_LE, "utf-32-le")])
def test_a_mark_names_the_encoding(tmp_path, mark, encoding):
    (tmp_path / "a.txt").write_bytes(mark + text(0).encode(encoding))
    with pytest.raises(StageError, match=rf"byte 0 is 0xff. Convert it, for example: iconv -f {encoding[:6]} "):
        read(tmp_path / "a.txt")


def test_a_text_may_hold_a_null_and_other_controls(tmp_path):
    """A log with colors, a page feed and a few NULs is text, unchanged."""
    kept = ["one\0two\n" + text(1), "\x1b[31mred\x1b[0m\f\v " * 20, "\0", "a\0b\0", "1\t2\t3\t4\t5\t" * 20]
    for number, content in enumerate(kept):
        (tmp_path / f"{number}.txt").write_text(content)
    assert read(tmp_path) == kept
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": content}) + "\n" for content in kept))
    assert read(tmp_path / "a.jsonl") == kept


def test_binary_and_zeros_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(128)) * 4)
    with pytest.raises(StageError, match="a.txt is not text: .* of its first 512 bytes are control characters"):
        read(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_bytes(bytes(4096))
    with pytest.raises(StageError, match="b.txt holds only NUL bytes: it was never fully written"):
        read(tmp_path / "b.txt")


def test_a_record_with_utf16_inside_is_refused(tmp_path):
    rows = [{"text": text(0)}, {"text": text(1).encode("utf-16-le").decode("latin1")}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name, where in (("a.jsonl", "line 2"), ("a.parquet", "row 2")):
        with pytest.raises(StageError, match=f"{name}, {where} holds UTF-16LE that was read as UTF-8"):
            read(tmp_path / name)


FRENCH = "Le café est déjà prêt, et la forêt s'éveille.\n" * 4


@pytest.mark.parametrize(
    "content, message",
    [
        (FRENCH.encode("latin1"), r"byte 6 is 0xe9. Convert it, for example: iconv -f latin1 "),
        ("“quoted” – text, ".encode("cp1252") * 3, r"iconv -f cp1252 "),
        (FRENCH.encode() + b"\xff" + FRENCH.encode(), "Text around it is UTF-8, so some bytes were damaged"),
        (FRENCH.encode()[:-30] + "é".encode()[:1], "It ends within a letter, so it is cut off. Fetch or make it again"),
        ("Зерно мелют утром".encode("koi8-r"), "Find out which encoding it has"),
        ("磨坊在河边，早晨磨谷物。".encode("gbk"), "Find out which encoding it has"),
        (b"letters \x01\x02\x03 \xe9 more", "Control characters stand around it, so this is no text"),
    ],
)
def test_conversion_is_proposed_only_where_it_makes_text(tmp_path, content, message):
    """Guards against assuming latin1, which spoils UTF-8 with one wrong byte, and every other encoding."""
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(StageError, match=message) as caught:
        read(tmp_path / "a.txt")
    if "iconv -f" in message:
        command = str(caught.value).partition("for example: ")[2]
        subprocess.run(command, shell=True, check=True, cwd=tmp_path)
        encoding = "latin1" if "latin1" in message else "cp1252"
        assert (tmp_path / "converted.txt").read_bytes().decode() == content.decode(encoding)
    else:
        assert "Convert it, for example" not in str(caught.value)


def test_a_compressed_file_is_converted_from_its_plain_content(tmp_path):
    """Guards against `iconv` over compressed bytes, which makes a file of letters that nothing can unpack."""
    line = json.dumps({"text": FRENCH}, ensure_ascii=False).encode("latin1") + b"\n"
    (tmp_path / "a b.jsonl.gz").write_bytes(gzip.compress(line))
    with pytest.raises(StageError, match=r"gzip -dc '.*a b.jsonl.gz' \| iconv -f latin1") as caught:
        read(tmp_path / "a b.jsonl.gz")
    subprocess.run(str(caught.value).partition("for example: ")[2], shell=True, check=True, cwd=tmp_path)
    assert read(tmp_path / "converted.txt", format="jsonl") == [FRENCH]


@pytest.mark.parametrize("number", range(20))
def test_text_is_not_taken_for_utf16(number):
    assert encoding_by_nulls((text(number) * 10).encode()[:HEAD]) == ""
