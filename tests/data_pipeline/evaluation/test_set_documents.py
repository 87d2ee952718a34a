"""Documents of an evaluation set: one for every record of its files, whatever the format."""

import dataclasses
import gzip
import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from joined_set import TEXTS, pile, write_records

from data_pipeline.documents.stage import DocumentTable, document_id
from data_pipeline.evaluation.documents import build_set_documents, check_ranges
from data_pipeline.evaluation.entries import Entry
from data_pipeline.stages.run import StageError
from retro_jax.config import DataConfig, SourceConfig

KEPT = [(text, subset) for text, subset in TEXTS if text is not None]


def make(root, source, name="pile"):
    manifest = build_set_documents(root / "documents", name, source, DataConfig())
    return manifest, list(DocumentTable(root / "documents").records())


def test_every_record_is_a_document_in_the_order_of_the_file(tmp_path):
    """Copies, short and empty texts are documents, so that totals equal those of the file; a null is left out and counted."""
    manifest, records = make(tmp_path, pile(write_records(tmp_path / "val.jsonl")))
    assert [(record["text"], record["subset"]) for record in records] == KEPT
    places = [number for number, (text, _) in enumerate(TEXTS, start=1) if text is not None]
    assert [record["name"] for record in records] == [f"val.jsonl:{number}" for number in places]
    assert [record["id"] for record in records] == [
        document_id("evaluation\0pile", f"val.jsonl:{number}") for number in places
    ]
    assert all(record["split"] == "validation" for record in records)
    assert records[1]["sha256"] == hashlib.sha256(KEPT[1][0].encode()).hexdigest()
    sizes = [len(text.encode()) for text, _ in KEPT]
    assert DocumentTable(tmp_path / "documents").bytes.tolist() == sizes
    assert manifest.counts["documents"] == len(KEPT) and manifest.counts["bytes"] == sum(sizes)
    mills = manifest.counts["subsets"]["mills"]
    assert mills["read"] == 4 and mills["dropped"] == {"null": 1} and mills["validation"]["documents"] == 3
    assert mills["train"] == {"documents": 0, "bytes": 0}


def test_ids_do_not_depend_on_other_files(tmp_path):
    (tmp_path / "one").mkdir()
    for name in ("b.jsonl", "a.jsonl"):
        write_records(tmp_path / "one" / name)
    _, both = make(tmp_path / "both", pile(tmp_path / "one"))
    _, alone = make(tmp_path / "alone", pile(tmp_path / "one" / "b.jsonl"))
    assert [record["name"].split(":")[0] for record in both] == ["a.jsonl"] * len(KEPT) + ["b.jsonl"] * len(KEPT)
    assert [record["id"] for record in both[len(KEPT) :]] == [record["id"] for record in alone]
    assert len({record["id"] for record in both}) == 2 * len(KEPT)
    _, other = make(tmp_path / "other", pile(tmp_path / "one" / "b.jsonl"), name="pile2")
    assert not {record["id"] for record in other} & {record["id"] for record in alone}


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "glob", "txt"])
def test_every_format_of_a_build_is_read(tmp_path, form):
    texts = [(text, subset) for text, subset in KEPT if text or form != "txt"]
    plain = write_records(tmp_path / "val.jsonl", texts)
    content, source = plain.read_bytes(), None
    if form == "jsonl.gz":
        (tmp_path / "val.jsonl.gz").write_bytes(gzip.compress(content))
    elif form == "jsonl.zst":
        (tmp_path / "val.jsonl.zst").write_bytes(zstandard.compress(content))
    elif form == "parquet":
        rows = [json.loads(line) for line in content.splitlines()]
        pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "val.parquet")
    elif form == "glob":
        source = pile(tmp_path / "val*.jsonl")
    elif form == "txt":
        (tmp_path / "folder").mkdir()
        for number, (text, _) in enumerate(texts):
            (tmp_path / "folder" / f"{number}.txt").write_text(text, encoding="utf-8", newline="")
        source = SourceConfig(path=str(tmp_path / "folder"))
    _, records = make(tmp_path, source or pile(tmp_path / f"val.{form}"))
    assert [record["text"] for record in records] == [text for text, _ in texts]
    if form != "txt":
        assert [record["subset"] for record in records] == [subset for _, subset in texts]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "a", "meta": {"pile_set_name": "x"}}\nnot json\n', "val.jsonl, line 2 is not JSON"),
        ('{"text": "a"}\n', "val.jsonl, line 1 has no key 'meta.pile_set_name'; it has: text"),
        ('{"text": 7, "meta": {"pile_set_name": "x"}}\n', "val.jsonl, line 1 has no text under 'text', but 7"),
        ('{"text": null, "meta": {"pile_set_name": "x"}}\n', "hold no document, so there is nothing to score"),
    ],
)
def test_a_line_that_is_not_of_the_format_is_named(tmp_path, content, words):
    (tmp_path / "val.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(StageError, match=words):
        make(tmp_path, pile(tmp_path / "val.jsonl"))


def test_an_unknown_protocol_lists_the_known_ones(tmp_path):
    source = dataclasses.replace(pile(write_records(tmp_path / "val.jsonl")), protocol="documnets")
    with pytest.raises(ValueError, match="no protocol 'documnets'; there is: .*documents"):
        make(tmp_path, source)


@pytest.mark.parametrize("ranges", [((0, 9),), ((2, 2),), ((3, 5), (4, 6)), ((-1, 3),), ((4, 6), (0, 2))])
def test_scored_ranges_outside_of_the_text_are_refused(ranges):
    check_ranges(Entry("a", "n", "n", "", "abcdefgh", scored=((0, 2), (2, 8))), 8)
    with pytest.raises(StageError, match=r"scored byte ranges must rise and lie inside of the text's 8 bytes, but one"):
        check_ranges(Entry("a", "n", "n", "", "abcdefgh", scored=ranges), 8)


def test_a_file_without_documents_beside_others_is_read(tmp_path, monkeypatch):
    """Guards against a failure where a unit has no documents, so that its table of lines has no row."""
    monkeypatch.setattr("data_pipeline.sources.readers.UNIT_FILES", 1)
    (tmp_path / "set").mkdir()
    write_records(tmp_path / "set" / "a.jsonl")
    write_records(tmp_path / "set" / "b.jsonl", [(None, "mills")])
    write_records(tmp_path / "set" / "c.jsonl")
    _, records = make(tmp_path, pile(tmp_path / "set"))
    assert len(records) == 2 * len(KEPT)
    assert np.load(tmp_path / "documents" / "lines-00001.npy").shape == (0, 2)
