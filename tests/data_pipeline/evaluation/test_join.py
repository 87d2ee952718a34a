"""`join` adds a set to a finished database with the build's own stages and does not change the database."""

import pickle
import shutil
from dataclasses import replace

import joined_set
import made_up_encoder
import made_up_text
import numpy as np
import pytest
from dying_shards import until_done
from file_contents import contents
from joined_set import TEXTS, pile, write_records

from data_pipeline.chunks import ChunkTable
from data_pipeline.documents.stage import DocumentTable
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.evaluation.join import join, join_neighbors
from data_pipeline.evaluation.sets import list_sets, open_set
from data_pipeline.pipeline import build
from data_pipeline.search.neighbors import NeighborTable
from data_pipeline.stages.engine import using
from data_pipeline.stages.run import StageError

KEPT = [text for text, _ in TEXTS if text is not None]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("join")


@pytest.fixture(scope="module")
def run(root):
    found = joined_set.make_build(root)
    write_records(root / "val.jsonl")
    return found


@pytest.fixture(scope="module")
def whole(root, run):
    """The bytes of the joined set, by file; asserts that the database did not change."""
    before = contents(root / "data", without="evaluation")
    counts = join(run, root / "data", "pile", pile(root / "val.jsonl"))
    assert counts["documents"] == len(KEPT) and counts["dropped"] == {"null": 1} and counts["neighbors"] == 4
    assert contents(root / "data", without="evaluation") == before
    return contents(root / "data" / "evaluation" / "pile")


def test_a_second_join_makes_nothing(root, run, whole):
    folder = root / "data" / "evaluation" / "pile"
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "set.json"}
    join(run, root / "data", "pile", pile(root / "val.jsonl"))
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert list_sets(root / "data") == ["pile"]


def test_a_join_killed_at_every_shard_ends_with_the_same_bytes(root, run, whole, monkeypatch):
    """Joins in a copy of the data directory, killed at every point; at some points the disk is full instead."""
    data = root / "again"
    shutil.copytree(root / "data", data, ignore=shutil.ignore_patterns("evaluation"))

    def nothing_is_listed():
        assert list_sets(data) == []

    shards = until_done(monkeypatch, lambda: join(run, data, "pile", pile(root / "val.jsonl")), nothing_is_listed)
    assert shards > 8
    assert contents(data / "evaluation" / "pile") == whole


class OtherProcess:
    """An engine that pickles every shard and its resource, as a cluster does."""

    accelerated = False

    def map(self, function, shards):
        for number, shard in enumerate(shards):
            sent = pickle.loads(pickle.dumps(shard))
            yield number, function(sent, None if sent.resource is None else sent.resource.get())


def test_a_join_in_other_processes_gives_the_same_bytes(root, run, whole):
    """Guards against shards that hold a table or an index: they are too large to send."""
    data = root / "elsewhere"
    shutil.copytree(root / "data", data, ignore=shutil.ignore_patterns("evaluation"))
    with using(OtherProcess()):
        join(run, data, "pile", pile(root / "val.jsonl"))
    assert contents(data / "evaluation" / "pile") == whole


def test_neighbors_are_the_nearest_chunks_of_the_database(root, run, whole):
    """Neighbors equal those of a loop over every vector of the database; a text of the database has distance 0."""
    data = root / "data"
    table, vectors = ChunkTable(data / "chunks"), EmbeddingTable(data / "embeddings")
    mine = EmbeddingTable(data / "evaluation" / "pile" / "embeddings")
    found = NeighborTable(data / "evaluation" / "pile" / "neighbors")
    keys = vectors[: table.database_chunks]
    assert len(found) == len(mine) == open_set(data, "pile").edges[-1]
    for row, query in enumerate(mine[:]):
        squared = ((keys - query) ** 2).sum(axis=1)
        order = np.lexsort((np.arange(len(keys)), squared))[:4]
        np.testing.assert_allclose(found.distances[row], squared[order], atol=1e-5)
        assert (squared[found.ids[row]] <= squared[order[-1]] + 1e-5).all()


def test_a_text_of_the_database_finds_itself(root, run, whole, tmp_path):
    for number, document in enumerate(DocumentTable(root / "data" / "documents").read(0, 2)):
        (tmp_path / f"{number}.txt").write_text(document.text, encoding="utf-8", newline="")
    join(run, root / "data", "copies", replace(pile(tmp_path), subset_key=""))
    found = open_set(root / "data", "copies")
    ids, distances = found.neighbors().find(np.arange(found.edges[-1]))
    table = ChunkTable(root / "data" / "chunks")
    own = table.tokens[ids[:, 0]]
    assert not distances[:, 0].any() and (own == found.tokens(np.arange(len(own)))).all(axis=1).mean() > 0.9


def test_bad_input_is_refused_by_name_before_anything_is_written(root, run, whole, tmp_path):
    data, source = root / "data", pile(root / "val.jsonl")
    before = contents(data)
    made_up_encoder.write(tmp_path / "encoder", seed=5)
    other = replace(run, data=replace(run.data, encoder=str(tmp_path / "encoder")))
    write_records(tmp_path / "val.jsonl", TEXTS[:3])
    for arguments, words in (
        ((run, data, "../x", source), r"--set='../x' is not a valid name"),
        ((run, data, ".x", source), r"--set='.x' is not a valid name"),
        ((run, data, "held_out", source), r"held_out is the build's own held-out text"),
        ((run, data, "new", replace(source, protocol="pil")), r"no protocol 'pil'; there is: .*documents"),
        ((run, data, "new", pile(tmp_path / "nothing.jsonl")), r"does not exist; give a file"),
        ((run, data, "pile", pile(tmp_path / "val.jsonl")), r"'pile' exists already and was made from other files"),
        (
            (run, data, "pile", replace(source, subset_key="")),
            r"'pile' exists already and was made with other settings",
        ),
        ((other, data, "new", source), r"encoder.*does not match|another encoder"),
    ):
        with pytest.raises(ValueError, match=words):
            join(*arguments)
        assert contents(data) == before
    for keywords, words in (
        ({"k": -1}, "k counts neighbors and cannot be -1"),
        ({"share": 0.0}, r"must lie in \(0, 1\], but is 0.0"),
        ({"share": 1.5}, r"must lie in \(0, 1\], but is 1.5"),
        ({"share": 1e-9}, r"--share=1e-09 of the \d+ documents of .* leaves 0"),
        ({"name": "pil"}, "no evaluation set 'pil' .*; there is: held_out, .*pile"),
    ):
        with pytest.raises(ValueError, match=words):
            join_neighbors(data, **({"name": "pile"} | keywords))
        assert contents(data) == before


def test_a_source_with_the_role_is_joined_by_the_build_and_is_never_in_the_database(root, run, whole, tmp_path):
    """A set in the config gives the same bytes as one joined later, and the same database as no set."""
    sources = {**run.data.sources, "pile": pile(root / "val.jsonl")}
    both = replace(run, data=replace(run.data, sources=sources))
    build(both, tmp_path)
    found, expected = contents(tmp_path / "data", without="evaluation"), contents(root / "data", without="evaluation")
    del found["config.json"], expected["config.json"]
    assert found == expected
    assert contents(tmp_path / "data" / "evaluation" / "pile") == whole


def test_an_evaluation_set_alone_is_no_build(run, tmp_path):
    made_up_text.write_folder(tmp_path / "text")
    source = replace(run.data.sources["farm"], role="evaluation")
    alone = replace(run, data=replace(run.data, sources={"farm": source}))
    with pytest.raises(StageError, match=r"config.data.sources holds evaluation sets alone \(farm\)"):
        build(alone, tmp_path)


def test_a_protocol_of_training_text_is_refused(run, tmp_path):
    """Guards against a protocol that is ignored: training text is read as whole documents."""
    source = replace(run.data.sources["farm"], protocol="lambada")
    wrong = replace(run, data=replace(run.data, sources={"farm": source}))
    with pytest.raises(StageError, match=r"farm.protocol='lambada' is of evaluation sets, but its role is 'train'"):
        build(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []
