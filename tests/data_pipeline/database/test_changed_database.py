"""`retro evaluate` and `retro sample` after `retro database remove` and `add`: changes take effect without training."""

import json
import shutil
from collections import Counter

import made_up_text
import numpy as np
import pytest
from test_sample_verb import make_run

from data_pipeline.chunks import ChunkTable
from data_pipeline.documents.stage import DocumentTable
from data_pipeline.evaluation.sets import open_set
from launch import database, sample
from launch.evaluate import main as evaluate_main


@pytest.fixture(scope="module")
def root(tmp_path_factory, on_one_device):
    return make_run(tmp_path_factory.mktemp("changed"), "retro", "baseline")


@pytest.fixture
def work(root, tmp_path):
    """A copy that a test may change; the weights are those of the fixture."""
    shutil.copytree(root, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def evaluate(work):
    """Runs the command; gives its results, the neighbors of each held-out chunk, and what they are read from."""

    def run():
        arguments = [f"--workdir={work}", "--config.evaluate.bootstrap=50", "--config.evaluate.passages=6"]
        assert evaluate_main(arguments) == 0
        results, passages = (json.loads((work / f"{name}.json").read_text()) for name in ("results", "passages"))
        shown = {n["document"] for p in passages for chunk in p["chunks"] for n in chunk["neighbors"]}
        held_out = open_set(work / "data", "held_out")
        source = held_out.neighbors()
        return results, source.find(np.arange(held_out.edges[-1]))[0], source, shown

    return run


def bpb(results):
    found = results["sets"]["held_out"]
    return {subset: figures["bpb"] for subset, figures in [*found["subsets"].items(), ("all", found["all"])]}


def check_controls(before, after):
    """Conditions without retrieval keep their figures to the bit; those with retrieval change."""
    for subset, figures in bpb(before).items():
        for condition in ("baseline", "off", "empty"):
            assert figures[condition] is not None and bpb(after)[subset][condition] == figures[condition]
        assert bpb(after)[subset]["on"] != figures["on"]
    assert before["database"]["version"] != after["database"]["version"]


def searched(results):
    """Chunks and documents of the database, as the report shows them."""
    return Counter({name: results["database"][name] for name in ("chunks", "documents")})


def trained_files(work):
    """The files of the runs and of the shards that training reads."""
    folders = (work / "retro", work / "baseline", work / "data" / "joined")
    return {path: path.read_bytes() for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_was_removed_is_in_no_figure_and_no_sample(work, evaluate, capsys):
    trained, table = trained_files(work), ChunkTable(work / "data" / "chunks")
    before, ids, _, shown = evaluate()
    names = {document.id: document.name for document in DocumentTable(work / "data" / "documents").read()}
    owners, counts = np.unique(table.document_ids[ids[ids >= 0]], return_counts=True)
    gone = owners[np.argsort(-counts)][:4].tolist()
    prompt = next(
        document.text for document in DocumentTable(work / "data" / "documents").read() if document.id == gone[0]
    )
    asked = [f"--workdir={work}", f"--prompt={prompt[:300]}", "--config.sample.temperature=0"]
    capsys.readouterr()
    assert sample.main(asked) == 0
    assert f"0.000  own: {names[gone[0]]}" in capsys.readouterr().out
    assert shown & {names[id] for id in gone}

    assert database.main(["remove", f"--workdir={work}", f"--documents={','.join(map(str, gone))}"]) == 0
    after, ids, source, shown = evaluate()
    assert (ids >= 0).all() and not np.isin(table.document_ids[ids], gone).any()
    rows = np.arange(len(ids))
    drawn = source.draw(rows, np.full(len(rows), 4), 4, 0)
    assert not np.isin(table.document_ids[drawn], gone).any(), "random neighbors are of what is left too"
    assert np.array_equal(source.value(ids), table.value(ids))
    assert not shown & {names[id] for id in gone} and after["database"]["removed_documents"] == 4
    chunks = int(np.isin(table.document_ids[: table.database_chunks], gone).sum())
    assert searched(before) - searched(after) == {"chunks": chunks, "documents": 4}, (
        "the counts are of what is searched"
    )
    check_controls(before, after)
    capsys.readouterr()
    assert sample.main(asked) == 0
    out = capsys.readouterr().out
    assert "own: " in out and not [id for id in gone if f"own: {names[id]}" in out]
    assert trained_files(work) == trained


def test_what_was_added_is_in_the_figures_and_in_samples(work, evaluate, capsys):
    """The new text repeats held-out chunks among other words, so it must be their nearest neighbor."""
    trained, table = trained_files(work), ChunkTable(work / "data" / "chunks")
    before, _, _, _ = evaluate()
    held_out = next(
        document for document in DocumentTable(work / "data" / "documents").read() if document.split != "train"
    )
    (work / "new").mkdir()
    (work / "new" / "later.txt").write_text(held_out.text + made_up_text.text(9, 40), newline="")
    assert database.main(["add", f"--workdir={work}", f"--config.data.sources.news.path={work / 'new'}"]) == 0
    after, ids, source, _ = evaluate()
    assert after["database"]["additions"] == 1 and after["database"]["added_chunks"] > 0
    mine = table.document_ids[table.database_chunks :] == held_out.id
    added = ids >= len(table)
    assert added[mine, 0].mean() > 0.9 and not ((ids >= table.database_chunks) & ~added).any()
    new = ChunkTable(work / "data" / "additions" / "00000" / "chunks")
    assert np.array_equal(source.value(ids[added]), new.value(ids[added] - len(table)))
    assert searched(after) - searched(before) == {"chunks": new.database_chunks, "documents": 1}
    check_controls(before, after)
    capsys.readouterr()
    assert sample.main([f"--workdir={work}", f"--prompt={held_out.text[:300]}"]) == 0
    assert "0.000  news: later.txt" in capsys.readouterr().out
    assert trained_files(work) == trained
