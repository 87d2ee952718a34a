"""Answers every question of a set under every condition, block by block, and stores the answers (`evaluate/scores.py`).

WORKDIR/scores/SET/questions-DIGEST/part-00000.parquet   number, id, question, prompt_chunks, found
WORKDIR/scores/SET/CONDITION-DIGEST/part-00000.parquet   number, prediction, tokens, hit
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int, Int32

from retro_jax.core.dimensions import PADDING
from retro_jax.core.progress import progress
from retro_jax.evaluate.conditions import Condition
from retro_jax.evaluate.questions.conditions import QUESTION_CONDITIONS, AskedPassages, with_fewer
from retro_jax.evaluate.questions.decoding import Decoder
from retro_jax.evaluate.questions.matching import exact_match
from retro_jax.evaluate.questions.sets import QuestionSet
from retro_jax.evaluate.questions.summary import Answered, summarize
from retro_jax.evaluate.scores import Scores, open_scores, write_plan
from retro_jax.parallel.agreement import on_first

AHEAD = 2  # batches in flight at the same time
BLOCK = 512  # questions of a part
TEXT = "questions"  # the name of their own scores


@dataclass(frozen=True)
class QuestionTask:
    """One set, and everything that its answers depend on.

    Attributes:
      k: passages that the model reads, if so many are stored.
      batch: questions that are answered together; the last batch is padded.
      limit: tokens of an answer at most.
      seed: of the random passages.
      models: identifies each model ("retro", and "baseline" if there is one), plain JSON.
      tried: On is also evaluated with so many passages.
    """

    questions: QuestionSet
    k: int
    batch: int
    limit: int
    seed: int
    models: Mapping[str, Mapping]
    tried: tuple[int, ...] = ()

    @property
    def conditions(self) -> list[Condition]:
        """The conditions of the models that exist.

        Raises:
          ValueError: more passages are to be tried than are stored.
        """
        stored = self.questions.stored
        if beyond := [k for k in self.tried if k > stored]:
            raise ValueError(
                f"config.evaluate.tried_neighbors={beyond[0]}, but the questions {self.questions.name!r} store {stored} "
                f"passages each. Lower it, or join them under another name with --neighbors={beyond[0]}."
            )
        return [one for one in (*QUESTION_CONDITIONS.values(), *with_fewer(self.tried)) if one.model in self.models]

    def passages(self, condition: Condition) -> int:
        """How many passages a condition reads."""
        return min(condition.k or self.k, self.questions.stored) if condition.neighbors else 0

    def ranges(self) -> list[tuple[int, int]]:
        count = len(self.questions)
        return [(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]


def question_scores(task: QuestionTask, workdir: Path) -> dict[str, tuple[Scores, dict]]:
    """The scores of each condition and of the questions, each with the plan that they depend on."""
    questions, parts, opened = task.questions, len(task.ranges()), {}
    for one in task.conditions:
        read = {"k": task.passages(one), "seed": task.seed} if one.neighbors else None
        plan = {
            "questions": questions.fingerprint,
            "model": task.models[one.model],
            "decoding": {"batch": task.batch, "limit": task.limit},
            "passages": read,
        }
        opened[one.name] = open_scores(workdir, questions.name, one.name, plan, parts), plan
    plan = {"questions": questions.fingerprint}
    opened[TEXT] = open_scores(workdir, questions.name, TEXT, plan, parts), plan
    return opened


def evaluate_questions(
    task: QuestionTask,
    workdir: Path,
    decoder: Callable[[str], Decoder],
    *,
    resamples: int,
    stop: Callable[[], None] = lambda: None,
) -> dict:
    """Computes the missing answers and returns the figures of the set (`summary.summarize`).

    Args:
      decoder: gives the one of "retro" or "baseline"; called when it is needed.
      resamples: of questions, for the intervals.
      stop: called after each batch, in the same order on every process; raises to stop. Finished blocks are kept.
    """
    opened = question_scores(task, workdir)
    todo = on_first(lambda: {name: scores.missing() for name, (scores, _) in opened.items()})
    first = jax.process_index() == 0
    if first:
        for scores, plan in opened.values():
            write_plan(scores, plan)
    total = sum(stop - start for parts in todo.values() for start, stop in (task.ranges()[part] for part in parts))
    with progress(description=f"answer {task.questions.name}", total=total, unit="question") as bar:
        for part, (start, end) in enumerate(task.ranges()):
            if first and part in todo[TEXT]:
                opened[TEXT][0].write(part, question_columns(task.questions, start, end))
                bar.update(end - start)
            for one in task.conditions:
                if part in todo[one.name]:
                    answers = answer_block(task, one, decoder(one.model), start, end, stop, bar.update)
                    if first:
                        opened[one.name][0].write(part, answer_columns(task.questions, start, answers))
    return on_first(lambda: _figures(task, opened, resamples))


def answer_block(
    task: QuestionTask,
    condition: Condition,
    decoder: Decoder,
    start: int,
    end: int,
    stop: Callable[[], None] = lambda: None,
    done: Callable[[int], object] = lambda questions: None,
) -> Int32[np.ndarray, "N L"]:
    """Tokens of the answers to the questions [start, end), each with the token that ends it, then -1.

    Questions whose prompts have the same number of chunks are answered together.
    """
    answers = np.full((end - start, task.limit), PADDING, np.int32)
    chunks, waiting = task.questions.prompt_chunks[start:end], []

    def collect(numbers, started):
        answers[numbers - start] = np.asarray(started)[: len(numbers)]
        done(len(numbers))

    for size in np.unique(chunks):
        alike = start + np.flatnonzero(chunks == size)
        for numbers in np.split(alike, range(task.batch, len(alike), task.batch)):
            waiting.append((numbers, decoder.start(*_inputs(task, condition, numbers))))
            if len(waiting) == AHEAD:
                collect(*waiting.pop(0))
            stop()
    for one in waiting:
        collect(*one)
    return answers


def _inputs(task: QuestionTask, condition: Condition, numbers: Int[np.ndarray, "B"]) -> tuple:
    """(prompts, passages or None) of a batch, padded with rows of -1."""
    passages = None
    if condition.neighbors is not None:
        asked = AskedPassages(numbers, task.questions, task.passages(condition), task.seed)
        passages = _filled(condition.neighbors(asked), task.batch)
    return _filled(task.questions.prompts(numbers), task.batch), passages


def _filled(table: np.ndarray, size: int) -> np.ndarray:
    whole = np.full((size, *table.shape[1:]), PADDING, table.dtype)
    whole[: len(table)] = table
    return whole


def answer_texts(questions: QuestionSet, answers: Int[np.ndarray, "N L"]) -> list[str]:
    """The first line of each answer, without the spaces around it."""
    rows = [row[row != PADDING].tolist() for row in answers]
    return [questions.decode(row).partition("\n")[0].strip() for row in rows]


def answer_columns(questions: QuestionSet, start: int, answers: Int[np.ndarray, "N L"]) -> dict:
    texts = answer_texts(questions, answers)
    records = questions.records(start, start + len(texts))
    return {
        "number": np.arange(start, start + len(texts)),
        "prediction": texts,
        "tokens": (answers != PADDING).sum(axis=1),
        "hit": np.array([exact_match(text, one["answers"]) for text, one in zip(texts, records, strict=True)], np.int8),
    }


def question_columns(questions: QuestionSet, start: int, end: int) -> dict:
    records: Sequence[Mapping] = questions.records(start, end)
    return {
        "number": np.arange(start, end),
        "id": [one["id"] for one in records],
        "question": [one["question"] for one in records],
        "prompt_chunks": questions.prompt_chunks[start:end],
        "found": questions.found[start:end],
    }


def _figures(task: QuestionTask, opened: Mapping, resamples: int) -> dict:
    def column(name: str, which: str) -> np.ndarray:
        return np.concatenate([part[which] for part in opened[name][0].each((which,))])

    hits = {one.name: column(one.name, "hit").astype(bool) for one in task.conditions}
    ends = {one.name: column(one.name, "tokens") for one in task.conditions}
    return {
        "protocol": "questions",
        "questions": len(task.questions),
        "passages": min(task.k, task.questions.stored),
        "limit": task.limit,
        "facts": dict(task.questions.facts),
        **summarize(Answered(hits, ends, column(TEXT, "found")), task.k, task.limit, resamples, task.seed),
    }
