"""A question with its answers and passages, read from a record of the public formats.

FiD, and what DPR's retriever writes   {"question", "answers", "target"?, "ctxs": [{"title", "text", "id"?, "score"?}]}
DPR's training files                   {"question", "answers", "positive_ctxs", "hard_negative_ctxs", "negative_ctxs"}
without passages                       {"question", "answers" or "answer"}, or a row: question, ['an answer', 'another']
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from retro_jax.evaluate.protocols.protocol import shown

LISTS = ("positive_ctxs", "hard_negative_ctxs", "negative_ctxs")  # of DPR's training files, in this order


@dataclass(frozen=True)
class Passage:
    title: str
    text: str


@dataclass(frozen=True)
class Question:
    """A record.

    Attributes:
      answers: one or more, each of them correct.
      passages: in the file's order; None where the file has none, so that they are retrieved.
      target: the answer to train on: the record's own, or its first answer.
      id: the record's own, or "".
    """

    question: str
    answers: tuple[str, ...]
    passages: tuple[Passage, ...] | None
    target: str
    id: str = ""


def read(record: object, at_most: int) -> Question:
    """A record as a question with its first `at_most` passages.

    Raises:
      ValueError: what was expected of the record, and what was found.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"expected an object with 'question' and 'answers', found {shown(record)}.")
    question = _text(record, "question", "record")
    if not question.strip():
        raise ValueError("expected a question in 'question', found none.")
    answers = _answers(record)
    target = record.get("target")
    if target is not None and not (isinstance(target, str) and target.strip()):
        raise ValueError(f"expected text in 'target', found {shown(target)}.")
    found = [_passage(one, name, number) for name, number, one in _contexts(record, at_most)]
    plain = not any(name in record for name in ("ctxs", *LISTS))
    passages = None if plain else tuple(found)
    return Question(question, answers, passages, target or answers[0], str(record.get("id", "")))


def read_row(cells: Sequence[str]) -> dict:
    """A row of DPR's question files (columns: question, a list of answers) as a record for `read`.

    The list is written as Python or as JSON; it is parsed as a literal and never run.

    Raises:
      ValueError: as `read`.
    """
    if len(cells) != 2:
        raise ValueError(f"expected two columns with a tab between, question and list of answers, found {len(cells)}.")
    try:
        answers = ast.literal_eval(cells[1].strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        answers = None
    if not isinstance(answers, list):
        raise ValueError(f"expected a list such as ['an answer'] in the second column, found {shown(cells[1])}.")
    return {"question": cells[0], "answers": answers}


def _answers(record: Mapping) -> tuple[str, ...]:
    name = "answers" if "answers" in record else "answer"
    if name not in record:
        there = ", ".join(map(repr, record)) or "none"
        raise ValueError(f"expected a field 'answers', found the fields {there}.")
    given = [record[name]] if isinstance(record[name], str) else record[name]
    if not isinstance(given, Sequence) or not all(isinstance(one, str) for one in given):
        raise ValueError(f"expected a list of texts in {name!r}, found {shown(record[name])}.")
    answers = tuple(one for one in given if one.strip())
    if not answers:
        raise ValueError(f"expected one answer or more in {name!r}, found none.")
    return answers


def _contexts(record: Mapping, at_most: int) -> Iterator[tuple[str, int, object]]:
    """(field, number, passage) of the first `at_most` passages."""
    names = ("ctxs",) if "ctxs" in record else LISTS
    for name in names:
        given = record.get(name, [])
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise ValueError(f"expected a list of passages in {name!r}, found {shown(given)}.")
        for number, one in enumerate(given[:at_most], start=1):
            yield name, number, one
        at_most -= len(given[:at_most])


def _passage(given: object, name: str, number: int) -> Passage:
    where = f"{name} {number}"
    if not isinstance(given, Mapping):
        raise ValueError(f"expected an object with 'title' and 'text' in {where}, found {shown(given)}.")
    title = _text(given, "title", where) if given.get("title") is not None else ""
    return Passage(title, _text(given, "text", where))


def _text(record: Mapping, name: str, where: str) -> str:
    if name not in record:
        there = ", ".join(map(repr, record)) or "none"
        raise ValueError(f"expected a field {name!r} in {where}, found the fields {there}.")
    if not isinstance(record[name], str):
        raise ValueError(f"expected text in {name!r} of {where}, found {shown(record[name])}.")
    return record[name]
