"""The conditions under which questions are answered: those of `retro_jax.evaluate.conditions` that apply.

"baseline" is the closed book: a decoder that sees the question alone. "random" gives each question the passages of another.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Int, Int32, Int64

from retro_jax.core.dimensions import PADDING
from retro_jax.evaluate.conditions import CONDITIONS, Condition
from retro_jax.evaluate.questions.sets import QuestionSet


@dataclass(frozen=True)
class AskedPassages:
    """The input from which a condition makes its passages."""

    numbers: Int[np.ndarray, "B"]
    questions: QuestionSet
    k: int
    seed: int

    @cached_property
    def real(self) -> Int32[np.ndarray, "B K R"]:
        return self.questions.passages(self.numbers)[:, : self.k]

    @property
    def of_others(self) -> Int32[np.ndarray, "B K R"]:
        """For each question the passages of another one, by one random cycle; none if there is only one question."""
        if len(self.questions) < 2:
            return np.full_like(self.real, PADDING)
        return self.questions.passages(another(len(self.questions), self.seed)[self.numbers])[:, : self.k]


def another(count: int, seed: int) -> Int64[np.ndarray, "N"]:
    """A random derangement: for each of `count` numbers another one, each used once."""
    order = np.random.default_rng(seed).permutation(count)
    others = np.empty(count, np.int64)
    others[order] = np.roll(order, 1)
    return others


QUESTION_CONDITIONS: dict[str, Condition] = {
    "baseline": replace(CONDITIONS["baseline"], meaning="closed book: a decoder without retrieval"),
    "off": CONDITIONS["off"],
    "on": replace(
        CONDITIONS["on"], meaning="RETRO with the passages of the question", neighbors=lambda asked: asked.real
    ),
    "random": replace(
        CONDITIONS["random"],
        meaning="control: the passages of another question",
        neighbors=lambda asked: asked.of_others,
    ),
    "empty": replace(
        CONDITIONS["empty"],
        meaning="control: every passage missing",
        neighbors=lambda asked: np.full_like(asked.real, PADDING),
    ),
}


def with_fewer(ks: tuple[int, ...]) -> list[Condition]:
    """On with the first k passages alone, a condition for each k."""
    on = QUESTION_CONDITIONS["on"]
    return [replace(on, name=f"on k={k}", meaning=f"RETRO with the first {k} passages", k=k) for k in ks]
