"""`evaluate` with questions beside text, and with questions alone: one results.json, one report, one table."""

import csv
import json
from dataclasses import replace

import evaluation_fixture
import numpy as np
import pytest
from evaluation_fixture import RUN, WholeSet
from question_files import made_up, write_json

from data_pipeline.evaluation.questions.join import join_questions
from data_pipeline.evaluation.questions.stored import open_question_sets
from retro_jax.config import SourceConfig
from retro_jax.evaluate.evaluation import evaluate


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("questions")
    data = evaluation_fixture.build(root)
    evaluation_fixture.save_runs(root, "retro", "baseline")
    join_questions(RUN, data, "nq", SourceConfig(path=str(write_json(root / "nq.json", made_up(6)))), passages=2)
    return root


def run(**changes):
    return replace(RUN, evaluate=replace(RUN.evaluate, answer_tokens=4, **changes))


def test_questions_stand_beside_text(root):
    questions, sets = open_question_sets(root / "data"), {"held_out": WholeSet(root / "data")}
    results = evaluate(run(), root, sets, questions=questions)
    found = results["questions"]["nq"]
    assert set(found["exact_match"]) == {"baseline", "off", "on", "random", "empty"} and found["questions"] == 6
    assert list(results["sets"]) == ["held_out"] and results["verdict"] == results["sets"]["held_out"]["verdict"]
    page = (root / "report.html").read_text()
    assert "Answers to the questions of nq" in page and "Exact match (%) of 6 questions" in page
    with open(root / "results.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == "nq"]
    assert {row["condition"] for row in rows if row["metric"] == "exact_match"} == set(found["exact_match"])
    assert "on - off" in {row["condition"] for row in rows if row["metric"] == "exact_match_difference"}
    kept = (root / "results.json").read_bytes()
    evaluate(run(), root, sets, questions=questions)
    assert (root / "results.json").read_bytes() == kept, "the same figures are not computed again"


def test_questions_alone(root, tmp_path):
    (tmp_path / "data").symlink_to(root / "data")
    chosen = run(retro=str(root / "retro"), baseline=str(root / "baseline"))
    results = evaluate(chosen, tmp_path, {}, questions=open_question_sets(root / "data", ["nq"]))
    assert results["sets"] == {} and results["verdict"] == results["questions"]["nq"]["verdict"]
    assert json.loads((tmp_path / "passages.json").read_text()) == []


def test_questions_of_other_chunks_are_refused(root):
    (questions,) = open_question_sets(root / "data").values()
    questions.chunk_length = 16
    with pytest.raises(
        ValueError, match="laid out in chunks of 16 tokens, but the model has config.model.chunk_length=8"
    ):
        evaluate(run(), root, {}, questions={"nq": questions})
    assert np.all(questions.prompt_chunks > 0)
