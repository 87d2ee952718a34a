"""Public files of every protocol become documents of a set with their scored bytes and words."""

import csv
import json

import made_up_sets
import pytest
from made_up_sets import PILE, WIKI_ARTICLES, WIKI_RAW

from data_pipeline.documents.stage import DocumentTable
from data_pipeline.evaluation.documents import build_set_documents
from data_pipeline.evaluation.tables import check_set
from data_pipeline.stages.run import StageError
from retro_jax.config import DataConfig, SourceConfig
from retro_jax.evaluate.protocols import PROTOCOLS, EvaluationText, Excluded, get

MAKERS = {
    "wikitext103": lambda folder: made_up_sets.write_wikitext(folder, WIKI_RAW, "wiki.valid.raw"),
    "pile": made_up_sets.write_pile,
    "curation": made_up_sets.write_curation,
    "lambada": made_up_sets.write_lambada_openai,
}


def read(root, path, protocol):
    source = SourceConfig(path=str(path), protocol=protocol, role="evaluation")
    manifest = build_set_documents(root / "documents", "public", source, DataConfig())
    return manifest, list(DocumentTable(root / "documents").records())


@pytest.mark.parametrize("protocol", MAKERS)
def test_a_public_file_is_what_its_protocol_says(tmp_path, protocol):
    """The documents equal what the protocol makes of the fixtures' records: text, scored bytes, words, subset, left-out
    records."""
    path = MAKERS[protocol](tmp_path)
    form = {"wikitext103": "lines", "curation": "csv"}.get(protocol, "json")
    expected = list(get(protocol).texts(made_up_sets.records(path, form)))
    manifest, records = read(tmp_path, path, protocol)
    texts = [(number, found) for number, found in expected if isinstance(found, EvaluationText)]
    assert len(records) == len(texts) > 1
    for record, (number, found) in zip(records, texts, strict=True):
        assert record["text"] == found.text and record["subset"] == (found.subset or "public")
        assert [tuple(pair) for pair in record.get("scored", [])] == list(found.scored)
        assert record.get("words", 0) == found.words
        assert record["name"] == (found.name or f"{path.name}:{number}")
    dropped = sum(sum(subset["dropped"].values()) for subset in manifest.counts["subsets"].values())
    assert dropped == sum(isinstance(found, Excluded) for _, found in expected)
    if protocol == "wikitext103":
        assert [record["name"] for record in records] == list(WIKI_ARTICLES)
    if protocol == "pile":
        assert {record["text"] for record in records} < {text for _, text in PILE}


def test_files_of_other_endings_are_left_out_and_counted(tmp_path):
    made_up_sets.write_wikitext(tmp_path, WIKI_RAW, "wiki.valid.raw")
    (tmp_path / "README.md").write_text("not a part")
    manifest, records = read(tmp_path, tmp_path, "wikitext103")
    assert len(records) == len(WIKI_ARTICLES)
    assert manifest.counts["source_files"]["public"]["left_out"] == {".md": [1, 10]}
    with pytest.raises(StageError, match=r"README.md' has no file that the protocol 'wikitext103' reads: .*\.tokens"):
        read(tmp_path / "b", tmp_path / "README.md", "wikitext103")


@pytest.mark.parametrize(
    ("protocol", "name", "content", "words"),
    [
        ("pile", "a.jsonl", '{"text": "a"}\n', r"a.jsonl, line 1: record 1: expected .*meta"),
        ("pile", "a.jsonl", '{"text": "a"\n', r"a.jsonl, line 1 is not JSON"),
        ("curation", "a.csv", "title,text\nx,y\n", r"a.csv, row 1: record 1: expected a field 'article_content'"),
        ("curation", "a.csv", "title,text\nx,y,z\n", r"a.csv: record 1: expected 2 fields \(title, text\), found 3"),
        ("lambada", "a.jsonl", '{"texts": "a"}\n', r"a.jsonl, line 1: record 1: expected a field 'text'"),
    ],
)
def test_a_record_of_another_form_is_named_with_file_and_line(tmp_path, protocol, name, content, words):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(StageError, match=words) as caught:
        read(tmp_path, tmp_path / name, protocol)
    assert f"The protocol is {protocol!r}" in str(caught.value) or "JSON" in words


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path):
    (tmp_path / "wiki.valid.raw").write_bytes(WIKI_RAW.encode() + b" caf\xe9 \n")
    with pytest.raises(StageError, match=r"wiki.valid.raw, line 22 is not UTF-8 \(byte 4 of the line\)"):
        read(tmp_path, tmp_path / "wiki.valid.raw", "wikitext103")


def test_keys_that_the_protocol_decides_are_refused():
    for protocol in PROTOCOLS:
        source = SourceConfig(path="x", protocol=protocol, subset_key="meta")
        if protocol == "documents":
            check_set("public", source)
        else:
            with pytest.raises(
                StageError, match=r"subset_key='meta' is of the protocol documents; '\w+' reads its own"
            ):
                check_set("public", source)


def test_a_table_is_read_with_its_optional_columns(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    path = made_up_sets.write_curation(tmp_path)
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "curation.parquet")
    _, table = read(tmp_path / "table", tmp_path / "curation.parquet", "curation")
    _, lines = read(tmp_path / "lines", path, "curation")
    fields = ("text", "scored", "words", "name")
    assert json.dumps([[one.get(field) for field in fields] for one in table]) == json.dumps(
        [[one.get(field) for field in fields] for one in lines]
    )
