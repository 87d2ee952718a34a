"""A corpus of one document has no neighbors: reported before the search, and counted in the summary."""

import made_up_encoder
import numpy as np
import pytest
from made_up_text import text
from made_up_vectors import clustered
from test_build import arguments
from test_neighbors import CONFIG, make

from data_pipeline.pipeline import describe
from data_pipeline.search.exact import ExactSearcher
from data_pipeline.search.neighbors import check_documents
from data_pipeline.search.stage import build_index
from data_pipeline.stages.run import StageError, read_manifest
from launch import build


def counts(train, validation=0):
    return {"subsets": {"a": {"train": {"documents": train}, "validation": {"documents": validation}}}}


def test_the_command_stops_at_the_documents(tmp_path, capsys):
    """Guards against a search of minutes that ends with "10 for each chunk"."""
    (tmp_path / "a book.txt").write_text(text(0, 3000))
    made_up_encoder.write(tmp_path / "encoder")
    command = arguments(tmp_path, tmp_path / "run", "--config.data.validation_fraction=0.0")
    command[0] = f"--config=configs/own_text.py:{tmp_path / 'a book.txt'}"
    assert build.main(command) == 2
    said = capsys.readouterr().err
    assert "A database of one document has no neighbors: a neighbor is a chunk of another document" in said
    assert f"split -l 100 --additional-suffix=.txt '{tmp_path}/a book.txt' parts/" in said
    assert [path.name for path in (tmp_path / "run" / "data").iterdir()] == ["documents"]


def test_what_is_said_of_few_documents():
    for wanted in (True, False):
        with pytest.raises(StageError, match=r"All documents \(3\) fell into the held-out split.*validation_fraction"):
            check_documents(counts(0, 3), [""], wanted=wanted)
    with pytest.raises(StageError, match=r"one document \(2 more are held out and never searched\) has no neighbors"):
        check_documents(counts(1, 2), [""], wanted=True)
    assert "has no neighbors" in check_documents(counts(1), [""], wanted=False), "a baseline reads none"
    assert "there are 2 to train on: they will be few. Give more" in check_documents(counts(2), [""], wanted=True)
    assert check_documents(counts(2), [""], wanted=False) == check_documents(counts(10), [""], wanted=True) == ""


def test_nothing_is_searched_for_what_is_not_there(tmp_path, monkeypatch):
    """Six chunks of the only document in the database, and two held-out ones that do have neighbors there."""
    asked = []
    search = ExactSearcher.search

    def counted(self, queries, k):
        asked.append(len(queries))
        return search(self, queries, k)

    monkeypatch.setattr(ExactSearcher, "search", counted)
    vectors = clustered(8)
    table = make(tmp_path, [3] * 6 + [4] * 2, vectors, 6, rows_a_shard=8)
    searched = asked[-1]
    assert searched == 2 and (table.ids[:6] == -1).all() and np.isposinf(table.distances[:6]).all()
    assert sorted(table.ids[6]) == sorted(set(table.ids[6])) and (table.ids[6:] >= 0).all()
    manifest = read_manifest(tmp_path / "neighbors", "neighbors")
    assert manifest.counts["without_neighbors"] == {"chunks": 6, "of": 8}
    text = "up to 5 stored, 1.25 found on average for each of 8 chunks; 6 chunks have none"
    assert describe("neighbors", manifest.counts, manifest.config) == text


def test_the_summary_says_what_was_found():
    config = {"neighbors_stored": 10}
    assert describe("neighbors", {"chunks": 8091, "missing": 0}, config) == "10 found for each of 8,091 chunks"
    old = {"chunks": 8091, "missing": 80910}
    repaired = old | {"without_neighbors": {"chunks": 100, "of": 400}}
    assert describe("neighbors", repaired, config) == describe("neighbors", old, config), "not said of a part"
    assert describe("neighbors", old, config) == "up to 10 stored, 0 found on average for each of 8,091 chunks"


def test_a_share_of_one_document_is_refused(tmp_path):
    documents = np.repeat(np.arange(20), 3)
    make(tmp_path, documents, clustered(60), 60)
    for fraction in np.linspace(0.02, 0.3, 40):
        config = CONFIG.__class__(**{**vars(CONFIG), "database_fraction": float(fraction)})
        try:
            build_index(tmp_path / f"{fraction}", config, tmp_path / "embeddings", tmp_path / "chunks")
        except StageError as error:
            if "leaves one document to be searched, whose chunks have no neighbors" in str(error):
                return
    raise AssertionError("no share of one document was met")
