"""Each public form of a record against an obvious reading of it, and what is said of one that is none."""

import pytest

from retro_jax.evaluate.questions.question import Passage, Question, read, read_row

CTXS = [
    {"id": "wiki:7", "title": "Ada", "text": "Ada wrote it.", "score": "81.2", "has_answer": True},
    {"title": "Mill", "text": "A mill.", "score": 80.5},
    {"title": None, "text": "untitled"},
]
FID = {"id": 3, "question": "who wrote it", "target": "Ada", "answers": ["Ada Lovelace", "Ada"], "ctxs": CTXS}


def test_a_record_of_fid_and_of_dprs_retriever():
    passages = (Passage("Ada", "Ada wrote it."), Passage("Mill", "A mill."), Passage("", "untitled"))
    assert read(FID, 20) == Question("who wrote it", ("Ada Lovelace", "Ada"), passages, "Ada", "3")
    assert read(FID, 2).passages == passages[:2]
    without = {key: FID[key] for key in ("question", "answers", "ctxs")}
    assert read(without, 20).target == "Ada Lovelace" and read(without, 20).id == ""
    assert read(without | {"ctxs": []}, 20).passages == ()


def test_a_record_of_dprs_training_files_gives_positive_passages_first():
    record = {
        "dataset": "nq_dev_psgs_w100",
        "question": "q",
        "answers": ["a"],
        "positive_ctxs": [{"title": "p1", "text": "1"}, {"title": "p2", "text": "2"}],
        "negative_ctxs": [{"title": "n1", "text": "4"}],
        "hard_negative_ctxs": [{"title": "h1", "text": "3", "passage_id": "9"}],
    }
    assert [one.title for one in read(record, 20).passages] == ["p1", "p2", "h1", "n1"]
    assert [one.title for one in read(record, 3).passages] == ["p1", "p2", "h1"]


def test_questions_without_passages():
    assert read({"question": "q", "answer": ["a", "b"]}, 20) == Question("q", ("a", "b"), None, "a")  # NQ-open
    row = read_row(["who's there", """['the "lamp"', "Matt Damon's"]"""])
    assert read(row, 20) == Question("who's there", ('the "lamp"', "Matt Damon's"), None, 'the "lamp"')
    assert read_row(["q", '["é", "b"]'])["answers"] == ["é", "b"]


def test_a_list_of_answers_is_parsed_and_never_run(tmp_path):
    """Guards against a file that runs code."""
    path = tmp_path / "ran"
    with pytest.raises(ValueError, match="expected a list such as"):
        read_row(["q", f"[open({str(path)!r}, 'w').write('x')]"])
    assert not path.exists()


@pytest.mark.parametrize(
    "record, said",
    [
        ("text", "expected an object with 'question' and 'answers', found str 'text'"),
        ({"answers": ["a"]}, "expected a field 'question' in record, found the fields 'answers'"),
        ({"question": " ", "answers": ["a"]}, "expected a question in 'question', found none"),
        ({"question": "q"}, "expected a field 'answers', found the fields 'question'"),
        ({"question": "q", "answers": [1]}, r"expected a list of texts in 'answers', found list \[1\]"),
        ({"question": "q", "answers": [" "]}, "expected one answer or more in 'answers', found none"),
        ({"question": "q", "answers": ["a"], "target": 3}, "expected text in 'target', found int 3"),
        ({"question": "q", "answers": ["a"], "ctxs": {}}, "expected a list of passages in 'ctxs', found dict"),
        ({"question": "q", "answers": ["a"], "ctxs": ["p"]}, "expected an object with 'title' and 'text' in ctxs 1"),
        ({"question": "q", "answers": ["a"], "ctxs": [{"title": "t"}]}, "expected a field 'text' in ctxs 1"),
        ({"question": "q", "answers": ["a"], "ctxs": [{"text": None}]}, "expected text in 'text' of ctxs 1"),
    ],
)
def test_what_is_no_question_is_named(record, said):
    with pytest.raises(ValueError, match=said):
        read(record, 20)


@pytest.mark.parametrize(
    "cells, said", [(["q"], "two columns"), (["q", "a"], "a list such as"), (["q", "('a',)"], "a list")]
)
def test_what_is_no_row_is_named(cells, said):
    with pytest.raises(ValueError, match=said):
        read_row(cells)
