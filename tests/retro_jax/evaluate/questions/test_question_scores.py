"""Answers on disk and figures: resumed evaluations end alike, and the figures are those of an obvious count."""

import numpy as np
import pytest
from made_up_questions import Questions
from one_device import one_device
from tiny_model import random_parameters, tiny

from retro_jax.evaluate.questions import scoring
from retro_jax.evaluate.questions.decoding import Decoder
from retro_jax.evaluate.questions.matching import exact_match
from retro_jax.evaluate.questions.scoring import QuestionTask, evaluate_questions, question_scores
from retro_jax.evaluate.questions.summary import Answered, summarize, table_text

MODEL = tiny(vocabulary=12)
PARAMS = random_parameters(MODEL)
QUESTIONS = Questions(
    MODEL, [3, 4, 1, 6, 2, 4, 5], answers=[["5", "7 7"], ["the 9."], ["4"], ["6"], ["8"], ["5"], ["9"]]
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK", 3)


def task(**changes):
    facts = {
        "questions": QUESTIONS,
        "k": 2,
        "batch": 2,
        "limit": 2,
        "seed": 1,
        "models": {"retro": {"checkpoint": "1"}},
    }
    return QuestionTask(**(facts | changes))


def test_a_stopped_evaluation_goes_on_and_ends_alike(tmp_path):
    made, compiled = [], Decoder(MODEL, PARAMS, QUESTIONS.stops, 2, one_device())

    def decoder(model):
        made.append(model)
        return compiled

    class Stopped(Exception):
        pass

    def evaluate(place, stop=lambda: None):
        return evaluate_questions(task(tried=(1,)), place, decoder, resamples=200, stop=stop)

    whole = evaluate(tmp_path / "whole")
    for limit in range(1, 8):
        calls = []

        def stop(calls=calls, limit=limit):
            calls.append(1)
            if len(calls) == limit:
                raise Stopped

        with pytest.raises(Stopped):
            evaluate(tmp_path / "stopped", stop)
    assert evaluate(tmp_path / "stopped") == whole
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.*"))
    for file in files:
        if file.suffix in (".parquet", ".json"):
            assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "stopped" / file).read_bytes(), file
    made.clear()
    assert evaluate(tmp_path / "whole") == whole and made == []  # nothing is left to answer
    assert set(whole["exact_match"]) == {"off", "on", "random", "empty", "on k=1"}

    opened = question_scores(task(tried=(1,)), tmp_path / "whole")
    rows = list(opened["on"][0].each())
    predictions = [text for part in rows for text in part["prediction"]]
    hits = [exact_match(text, answers) for text, answers in zip(predictions, QUESTIONS.answers, strict=True)]
    assert [bool(hit) for part in rows for hit in part["hit"]] == hits
    assert whole["exact_match"]["on"]["mean"] == pytest.approx(np.mean(hits))
    assert [one for part in opened["questions"][0].each() for one in part["id"]] == [f"q{n}" for n in range(7)]


def test_figures_are_those_of_an_obvious_count():
    hits = {
        "off": np.array([0, 0, 1, 0], bool),
        "on": np.array([1, 1, 1, 0], bool),
        "random": np.array([0, 0, 0, 1], bool),
    }
    tokens = {name: np.array([2, 5, 5, 1]) for name in hits}
    found = summarize(Answered(hits, tokens, np.array([1, 3, 0, 2])), k=2, limit=5, resamples=500, seed=0)
    assert {name: one["mean"] for name, one in found["exact_match"].items()} == {
        "off": 0.25,
        "on": 0.75,
        "random": 0.25,
    }
    assert found["differences"]["on_minus_off"]["mean"] == 0.5 and set(found["differences"]) == {
        "on_minus_off",
        "on_minus_random",
    }
    assert found["answerable"] == 0.5 and found["longest"]["on"] == 0.5
    assert found["by_passages"]["with"] == {"questions": 2, "exact_match": {"off": 0.0, "on": 0.5, "random": 0.5}}
    assert found["by_passages"]["without"]["exact_match"]["on"] == 1.0
    assert not found["verdict"]["seen"] and "+50.0 points against retrieval off (not shown)" in found["verdict"]["text"]
    low, high = found["exact_match"]["on"]["low"], found["exact_match"]["on"]["high"]
    assert 0 <= low < 0.75 < high <= 1
    text = table_text("nq", {"questions": 4, "passages": 2, **found})
    assert "nq: 4 questions, 2 passages each; they contain an answer for 50.0%" in text
    assert "on - off" in text and "50.0 ~" in text


def test_more_passages_than_are_stored_are_refused():
    with pytest.raises(ValueError, match=r"tried_neighbors=3, but the questions 'made-up' store 2 .*--neighbors=3"):
        task(tried=(3,)).conditions  # noqa: B018


def test_what_answers_depend_on_decides_where_they_are():
    def places(**changes):
        return {name: scores.directory.name for name, (scores, _) in question_scores(task(**changes), "x").items()}

    first = places()
    assert places() == first
    assert places(limit=3)["on"] != first["on"] and places(models={"retro": {"checkpoint": "2"}})["off"] != first["off"]
    assert places(k=1)["on"] != first["on"] and places(k=1)["off"] == first["off"]
