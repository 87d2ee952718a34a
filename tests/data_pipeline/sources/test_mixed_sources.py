"""Folders of files of any form: each document is kept or counted, or the one bad file is named and nothing is made."""

import gzip
import json
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_documents import adds_up
from test_source_properties import TEXT

from data_pipeline.documents.stage import DocumentTable, build_documents
from data_pipeline.sources.readers import read_source
from data_pipeline.stages.run import StageError
from retro_jax.config import DataConfig, SourceConfig

LIMIT, LONGEST = 4000, 60
PACKED = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}
COLUMNS = {"string": pa.string(), "large": pa.large_string(), "binary": pa.binary(), "dictionary": pa.string()}
TABLES = [f"{form} {column}" for form in ("parquet", "arrow", "stream.arrow") for column in COLUMNS]
RECORDS = st.lists(st.tuples(st.one_of(st.none(), TEXT), st.sampled_from(["a", "b"])), max_size=6)
FILES = st.lists(st.tuples(st.sampled_from(["txt", *PACKED, *TABLES]), RECORDS), min_size=1, max_size=5)


def write(path, form, records, key="text"):
    """A file of (text, subset) records; other keys stand before or after them."""
    ending, _, column = form.partition(" ")
    if ending == "txt":
        path.write_bytes("".join(text or "" for text, _ in records).encode())
    elif ending in PACKED:
        rows = [{key: text, "set": subset, "n": number} for number, (text, subset) in enumerate(records)]
        path.write_bytes(PACKED[ending]("".join(json.dumps(row) + "\n" for row in rows).encode()))
    else:
        texts = [text.encode() if text is not None and column == "binary" else text for text, _ in records]
        texts = pa.array(texts, COLUMNS[column])
        texts = texts.dictionary_encode() if column == "dictionary" else texts
        subsets = pa.array([subset for _, subset in records], pa.string())
        table = pa.table({"n": pa.array(range(len(records)), pa.int64()), "set": subsets, key: texts})
        write_table(path, table)


def write_table(path, table):
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
        return
    with (pa.ipc.new_stream if "stream" in path.name else pa.ipc.new_file)(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def documents_of(form, records):
    """(subset, text) as they must be read."""
    if form == "txt":
        return [("s", "".join(text or "" for text, _ in records).removeprefix("\ufeff"))]
    mark = "\ufeff" if form.endswith("binary") else ""
    return [(subset, None if text is None else text.removeprefix(mark)) for text, subset in records]


def config(folder):
    source = SourceConfig(path=str(folder), subset_key="set", max_document_bytes=LONGEST)
    settings = {"minimum_characters": 2, "validation_fraction": 0.3, "near_duplicate_jaccard": 0}
    return DataConfig(sources={"s": source}, max_document_memory=LIMIT, **settings)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(FILES)
@example([("txt", [("x" * 100, "a")]), ("parquet string", [("yy", "a"), ("yy", "b"), (None, "b"), ("é" * 31, "a")])])
def test_all_forms_in_one_folder_add_up(files):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "in").mkdir()
        read = []
        for number, (form, records) in enumerate(files):
            write(Path(folder) / "in" / f"{number}.{form.split()[0]}", form, records)
            read += documents_of(form, records)
        wanted = {text for _, text in read if text and len(text) >= 2 and len(text.encode()) <= LONGEST}
        try:
            counts = build_documents(Path(folder) / "d", config(Path(folder) / "in")).counts
        except StageError as error:
            assert "No document is left" in str(error) and not wanted
            return
        assert adds_up(counts) and {d.text for d in DocumentTable(Path(folder) / "d").read()} == wanted
        assert {name: count["read"] for name, count in counts["subsets"].items()} == Counter(name for name, _ in read)
        dropped = Counter()
        for count in counts["subsets"].values():
            dropped.update(count["dropped"])
        nulls, short = (sum(test(text) for _, text in read) for test in (lambda t: t is None, _short))
        long = sum(text is not None and len(text) >= 2 and len(text.encode()) > LONGEST for _, text in read)
        assert (dropped["null"], dropped["short"], dropped["long"]) == (nulls, short, long)
        assert dropped["duplicate"] == len(read) - nulls - short - long - len(wanted)


def _short(text):
    return text is not None and len(text) < 2


def cut(path, form):
    """At each of some places; an empty file of these forms is no file of them."""
    write(path, form, [("word " * 9, "a")] * 40)
    content = path.read_bytes()
    for share in (0, 0.2, 0.5, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        yield "truncated|damaged|empty"
    path.write_bytes(content[:-8])
    yield "truncated|damaged|empty"


def other_column(path, form):
    write(path, form, [("fine enough", "a")], key="body")
    yield "has no (key|column) 'text'; it has: .*body"


def number_as_text(path, form):
    if form in PACKED:
        path.write_bytes(PACKED[form](b'{"text": "fine", "set": "a"}\n{"text": 7, "set": "a"}\n'))
    else:
        write_table(path, pa.table({"text": [6, 7], "set": ["a", "a"]}))
    yield "has no text under 'text', but [67]"


def latin1(path, form):
    if form == "txt":
        path.write_bytes("café".encode("latin1"))
    elif form in PACKED:
        path.write_bytes(PACKED[form]('{"text": "café", "set": "a"}\n'.encode("latin1")))
    else:
        write_table(path, pa.table({"text": pa.array(["café".encode("latin1")], pa.binary()), "set": ["a"]}))
    yield "is not UTF-8: byte [0-9]+ is 0xe9"


def invalid_string(path, form):
    """A column that claims to be UTF-8."""
    texts = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"], pa.binary()).buffers())
    write_table(path, pa.table({"text": texts, "set": ["a"]}))
    yield "is damaged or no"


def huge(path, form):
    write(path, form, [("fine enough", "a"), ("é" * (LIMIT // 2 + 1), "a")])
    yield f"is a document of more than config.data.max_document_memory={LIMIT:,} bytes"


COMPRESSED, BINARY = ["jsonl.gz", "jsonl.zst"], ["parquet binary", "arrow binary", "stream.arrow binary"]
STRINGS = [form.replace("binary", "string") for form in BINARY]
BAD = [(cut, form) for form in [*COMPRESSED, *STRINGS]] + [(huge, form) for form in ["txt", *PACKED, *STRINGS]]
BAD += [(other_column, form) for form in [*PACKED, *STRINGS]] + [(number_as_text, form) for form in [*PACKED, *BINARY]]
BAD += [(latin1, form) for form in ["txt", *PACKED, *BINARY]] + [(invalid_string, form) for form in STRINGS]


@pytest.mark.parametrize("make, form", BAD, ids=[f"{make.__name__}-{form}" for make, form in BAD])
def test_one_bad_file_is_named_and_without_it_the_build_goes_on(tmp_path, make, form):
    """Guards against a directory that a failed build makes unusable for the next attempt."""
    folder, good = tmp_path / "in", tmp_path / "good"
    for directory in (folder, good):
        directory.mkdir()
        write(directory / "0.jsonl", "jsonl", [("first words", "a"), (None, "b")])
        write(directory / "2.parquet", "parquet string", [("last words", "b")])
    bad = folder / f"1.{form.split()[0]}"
    for message in make(bad, form):
        with pytest.raises(StageError, match=rf"1\.{form.split()[0]}\b.* ({message})"):
            build_documents(tmp_path / "d", config(folder))
        assert not (tmp_path / "d" / "manifest.json").exists()
    bad.unlink()
    manifest = build_documents(tmp_path / "d", config(folder))
    assert manifest == build_documents(tmp_path / "fresh", config(good)) and adds_up(manifest.counts)
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == sorted(
        path.name for path in (tmp_path / "fresh").iterdir()
    )
    assert len(list(read_source("s", config(folder).sources["s"], LIMIT))) == 3
