"""JSON in common forms: arrays on one line or pretty-printed, of objects or strings; lines; and files that are neither."""

import gzip
import io
import json
import lzma
import shlex
import shutil
import subprocess

import made_up_text
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_source_properties import TEXT

from data_pipeline.documents.stage import build_documents
from data_pipeline.formats import compression, json_records
from data_pipeline.sources.readers import read_source
from data_pipeline.stages.run import StageError
from retro_jax.config import DataConfig, SourceConfig


def read(path, limit=1 << 28, **options):
    return [raw.text for raw in read_source("mine", SourceConfig(path=str(path), **options), limit)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(TEXT, max_size=8), st.booleans(), st.sampled_from([None, 2, "\t"]), st.booleans(), st.integers(1, 40))
@example(["", "\\", '"]', "[{", "\U0010ffff"], True, None, False, 1)
def test_an_array_gives_back_every_text(tmp_path_factory, texts, strings, indent, ascii_only, block):
    """Guards against dependence on printing or on the borders of read blocks."""
    path = tmp_path_factory.mktemp("a") / "a.json"
    values = texts if strings else [{"n": 1.5, "text": text, "more": [None, {"a": []}]} for text in texts]
    content = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    path.write_text(f"\ufeff \n{content}\r\n" if indent else content, newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_records, "BLOCK", block)
        if strings and any(text.lstrip()[:1] == "{" for text in texts):
            return
        assert read(path) == texts


def test_an_array_is_the_same_documents_as_lines(tmp_path):
    texts = [made_up_text.text(number) for number in range(6)]
    rows = [{"text": text} for text in texts]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "array.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    found = [list(read_source("s", SourceConfig(path=str(path)))) for path in sorted(tmp_path.iterdir())]
    assert [[(raw.key, raw.text) for raw in raws] for raws in found] == [[(r.key, r.text) for r in found[0]]] * 3
    assert [raw.name for raw in found[0]] == [f"array.json:{number}" for number in range(1, 7)]


class Counted(io.BytesIO):
    """Remembers the largest read."""

    asked = 0

    def read(self, size=-1):
        self.asked = max(self.asked, size)
        return super().read(size)


def test_an_array_is_read_in_bounded_parts(tmp_path):
    """Guards against arrays held in memory: at a thousand elements no read is larger than a block."""
    stream = Counted(json.dumps([{"text": "word " * 50}] * 1000).encode())
    file = json_records.SourceFile(str(tmp_path / "a.json"), "a.json", 1)
    assert len(list(json_records._Array(file, stream, 4000))) == 1000
    assert stream.asked == json_records.BLOCK


@pytest.mark.parametrize(
    "content, message",
    [
        ('[{"text": "one"}, {"text": "tw', "a.json is cut off within element 2 of its array. Fetch or make it again"),
        ('[{"text": "one"},', "a.json is cut off within element 2 of its array"),
        ('[{"text": "one"}', "a.json is cut off within element 1 of its array"),
        ("[", "a.json is cut off within element 1"),
        ('[{"text": "one"} {"text": "two"}]', r"element 1 is followed by '{' where ',' or '\]' belongs. Correct it"),
        ('[{"text": "one"}, {"text": oops, "a": "' + "x" * 30 + '"}]', "element 2 is not JSON: Expecting value, 9 characters into"),
        ('[{"text": "one"}]\n[{"text": "two"}]', "holds more after the end of its array of 1 elements"),
        ('[{"text": "one"}, 7]', "element 2 has no key 'text'; it has: no keys"),
        ("[" * 100_000, "nests too deeply"),
        (json.dumps([json.dumps({"text": "x"})]), r"element 1 is a string that holds a JSON object: it was encoded twice"),
        ('{"text": "one"}\n{"text": "tw', "line 2 is not JSON: .*It is the last line and has no end, so the file is cut off"),
        ("<!DOCTYPE html><html>", "It is a page or a message of a server .* not data. Fetch it again"),
        ('{"text": "one"}\n{"text": "two", }\n', "line 2 is not JSON.* Correct this one, or make the file again"),
    ],
)  # fmt: skip
def test_what_is_broken_is_named(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(StageError, match=message):
        read(tmp_path / "a.json")


def test_an_element_over_the_limit_is_named(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"text": "small"}, {"text": "x" * 5000}]))
    with pytest.raises(StageError, match=r"a.json, element 2 is a document of more than .*max_document_memory=4,000"):
        read(tmp_path / "a.json", 4000)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("key", ["data", "a 'b\""])
@pytest.mark.parametrize("strings", [True, False])
def test_an_object_that_holds_the_documents_is_refused_with_the_command(tmp_path, indent, key, strings):
    texts = [made_up_text.text(number) for number in range(3)]
    values = texts if strings else [{"text": text} for text in texts]
    (tmp_path / "in b.json").write_text(json.dumps({key: values}, indent=indent))
    what = "strings" if strings else "objects"
    with pytest.raises(StageError, match=rf"It is one object that holds an array of 3 {what} under ") as caught:
        read(tmp_path / "in b.json")
    command = str(caught.value).partition("write them alone: ")[2]
    program, path = shlex.split(command)[2:4]
    assert program == f".[{json.dumps(key)}][]" and path == str(tmp_path / "in b.json")
    if shutil.which("jq") and not strings:
        subprocess.run(command, shell=True, check=True, cwd=tmp_path)
        assert read(tmp_path / "documents.jsonl") == texts


def test_objects_over_lines_are_refused_with_the_command(tmp_path):
    rows = [{"text": "a", "b": 1}, {"text": "c", "b": 2}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row, indent=2) for row in rows))
    with pytest.raises(StageError, match=r"line 1 begins a JSON value that spans several lines. .*jq -c . .*a.jsonl >"):
        read(tmp_path / "a.jsonl")


def test_zstandard_with_a_long_window(tmp_path):
    """Guards against calling a file of `zstd --long=31` truncated."""
    lines = "".join(json.dumps({"text": made_up_text.text(n)}) + "\n" for n in range(9)).encode()
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True, compression_level=1)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = packer.compress(lines) + packer.flush()
    assert zstandard.get_frame_parameters(packed).window_size == 1 << 31
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    assert len(read(tmp_path / "a.jsonl.zst")) == 9
    (tmp_path / "a.jsonl.zst").write_bytes(packed[:-9])
    with pytest.raises(StageError, match="a.jsonl.zst is truncated or no zstandard file: it ends within its data"):
        read(tmp_path / "a.jsonl.zst")


def test_a_window_larger_than_the_memory_is_said(tmp_path, monkeypatch):
    class Poor:
        eof, unused_data = False, b""

        def decompress(self, content):
            raise zstandard.ZstdError("zstd decompress error: Allocation error : not enough memory")

    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b"{}"))
    monkeypatch.setitem(compression.COMPRESSIONS, ".zst", compression.Compression("zstandard", Poor, "zstd -dc"))
    with pytest.raises(StageError, match="was compressed with a window that does not fit the memory here"):
        read(tmp_path / "a.jsonl.zst")


def test_every_ending_is_one_corpus(tmp_path):
    """Guards against files left out by their ending: a third each as .jsonl, .json and .jsonl.xz."""
    rows = [json.dumps({"text": made_up_text.text(number)}) + "\n" for number in range(9)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.jsonl").write_text("".join(rows[:3]))
    (tmp_path / "in" / "1.json").write_text("".join(rows[3:6]))
    (tmp_path / "in" / "2.jsonl.xz").write_bytes(lzma.compress("".join(rows[6:]).encode()))
    config = DataConfig(sources={"s": SourceConfig(path=str(tmp_path / "in"))}, near_duplicate_jaccard=0)
    assert build_documents(tmp_path / "d", config).counts["documents"] == 9
