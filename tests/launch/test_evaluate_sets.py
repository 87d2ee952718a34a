"""`retro join`, then `retro evaluate`: sets beside held-out text, by their protocols, with other neighbors and without leaks."""

import json
import shutil

import made_up_text
import numpy as np
import pytest
from test_sample_verb import make_run

from data_pipeline.documents.stage import DocumentTable
from data_pipeline.evaluation.sets import open_set
from launch.evaluate import main as evaluate_main
from launch.join import main as join_main


@pytest.fixture(scope="module")
def work(tmp_path_factory, on_one_device):
    """A run with a set of sentences, read by the protocol of LAMBADA, and one of documents, half of them training text."""
    root = make_run(tmp_path_factory.mktemp("sets"), "retro", "baseline")
    sentences = [made_up_text.text(seed, 12).strip() for seed in range(6)]
    lines = "".join(json.dumps({"text": " ".join(one.split())}) + "\n" for one in sentences)
    (root / "last_words.jsonl").write_text(lines, encoding="utf-8")
    trained = [one.text for one in DocumentTable(root / "data" / "documents").read() if one.split == "train"][:2]
    (root / "mixed").mkdir()
    for number, text in enumerate([*trained, made_up_text.text(90, 30), made_up_text.text(91, 30)]):
        (root / "mixed" / f"{number}.txt").write_text(text, newline="")
    assert (
        join_main([f"--workdir={root}", "--set=words", f"--path={root / 'last_words.jsonl'}", "--protocol=lambada"])
        == 0
    )
    assert join_main([f"--workdir={root}", "--set=mixed", f"--path={root / 'mixed'}"]) == 0
    return root


def evaluate(work, *more):
    assert evaluate_main([f"--workdir={work}", "--config.evaluate.bootstrap=50", *more]) == 0
    return json.loads((work / "results.json").read_text())


def test_sets_are_scored_by_their_protocols(work):
    results = evaluate(work)
    assert list(results["sets"]) == ["held_out", "mixed", "words"]
    words, mixed = results["sets"]["words"]["all"], results["sets"]["mixed"]["all"]
    texts = [json.loads(line)["text"] for line in (work / "last_words.jsonl").read_text().splitlines()]
    assert words["bytes"] == sum(len(text.split()[-1].encode()) for text in texts), "the last word alone is scored"
    assert words["documents"] == 6 and 0 <= words["accuracy"]["on"] <= 1
    assert mixed["accuracy"]["on"] is None and mixed["documents"] == 4
    assert mixed["bytes"] == sum(path.stat().st_size for path in (work / "mixed").iterdir())
    assert mixed["bpb"]["on"] not in (None, mixed["bpb"]["off"]) and mixed["on_minus_random"]["low"] is not None
    page = (work / "report.html").read_text()
    assert "Bits per byte of words" in page and "accuracy" in page and (work / "plots" / "mixed-gains.svg").exists()


def test_contaminated_documents_and_their_sources_are_left_out(work):
    whole = evaluate(work, "--config.evaluate.sets=('mixed',)")["sets"]["mixed"]
    clean = evaluate(work, "--config.evaluate.sets=('mixed',)", "--config.evaluate.contaminated=0.8")["sets"]["mixed"]
    assert clean["all"]["documents"] == 2 and clean["facts"]["contaminated_documents"] == 2
    assert len(clean["left_out"]) == 2 and whole["left_out"] == []
    assert clean["all"]["overlap"] < whole["all"]["overlap"]
    searched = evaluate(work, "--config.evaluate.sets=('mixed',)", "--config.evaluate.clean_database=0.8")["sets"][
        "mixed"
    ]
    assert searched["all"]["documents"] == 4 and searched["facts"]["documents_not_searched"] >= 2
    assert searched["all"]["overlap"] < whole["all"]["overlap"]
    assert searched["all"]["bpb"]["off"] == whole["all"]["bpb"]["off"]
    assert searched["all"]["bpb"]["on"] != whole["all"]["bpb"]["on"]


def test_on_with_more_neighbors_a_share_and_another_database(work, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(work / "data", other / "data", symlinks=True)
    tried = ["--config.evaluate.tried_neighbors=(1,5)", "--config.evaluate.tried_shares=(0.5,)"]
    tried += [f"--config.evaluate.tried_databases=({str(other / 'data')!r},)", "--config.evaluate.sets=('mixed',)"]
    results = evaluate(work, *tried)
    bpb, page = results["sets"]["mixed"]["all"]["bpb"], (work / "report.html").read_text()
    assert {"on k=1", "on k=5", "on share=0.5", f"on database={other / 'data'}"} <= set(bpb)
    assert bpb[f"on database={other / 'data'}"] == bpb["on"], "the same database under another name"
    assert len({bpb["on"], bpb["on k=1"], bpb["on k=5"], bpb["on share=0.5"]}) == 4
    assert "Size of the database" in page and "Number of neighbors" in page
    half = open_set(work / "data", "mixed").neighbors(2, 0.5)
    assert 0 < half.facts["chunks"] < results["database"]["chunks"]
    assert np.isin(half.find(np.arange(3))[0], np.arange(-1, results["database"]["chunks"])).all()


def test_a_set_that_is_not_there_is_named(work, capsys):
    assert evaluate_main([f"--workdir={work}", "--config.evaluate.sets=('mixd',)"]) == 2
    assert "no evaluation set 'mixd'" in capsys.readouterr().err
