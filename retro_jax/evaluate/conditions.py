"""The conditions under which held-out text is scored: one record each, and the one place to add another.

A condition says which model reads the text and which neighbors it reads. The controls are those that a retrieval model must
beat: a model that uses what it retrieves orders them oracle < on < random, shuffled ~ off.

    register(Condition("nearest", "RETRO with its nearest neighbor alone", "#444444", "1 2", neighbors=nearest, control=True))

adds one from anywhere before `retro evaluate` runs: it is scored, and stands in results.json, the table and the report.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from retro_jax.core.dimensions import PADDING
from retro_jax.data.batches import Batch, random_neighbors


@dataclass(frozen=True)
class Asked:
    """What a condition makes its neighbors of: a batch, the ids of its chunks, the database to draw from, and a seed."""

    batch: Batch
    chunk_ids: Int[np.ndarray, "B C"]
    others: "OtherChunks"
    seed: int

    @property
    def real(self) -> Int[np.ndarray, "B C K R"]:
        """The batch's own neighbors."""
        return np.asarray(self.batch.neighbor_tokens)


@dataclass(frozen=True)
class Condition:
    """A way to score held-out text.

    Attributes:
      name: its key in results.json.
      meaning: what the report says of it.
      color, dash: of its line in plots ("#rrggbb", an SVG dash array).
      neighbors: makes what the model reads, tokens [B, C, K, R] with -1 where there is none; None skips retrieval.
      model: "retro" or "baseline".
      control: whether it is one that retrieval must beat (gray in the report's table).
    """

    name: str
    meaning: str
    color: str
    dash: str = ""
    neighbors: Callable[[Asked], Int[np.ndarray, "B C K R"]] | None = None
    model: str = "retro"
    control: bool = False


CONDITIONS: dict[str, Condition] = {}  # in the order of the report's columns


def register(condition: Condition) -> Condition:
    """Adds a condition.

    Raises:
      ValueError: one of that name is there.
    """
    if condition.name in CONDITIONS:
        raise ValueError(f"There is a condition named {condition.name!r} already; give this one another name.")
    CONDITIONS[condition.name] = condition
    return condition


def _random(asked: Asked):
    counts = (asked.real != PADDING).any(axis=-1).sum(axis=-1)
    drawn = asked.others.draw(asked.chunk_ids, counts, asked.real.shape[2])
    return asked.others.value(drawn).astype(asked.real.dtype)


def _oracle(asked: Asked):
    oracle = asked.real.copy()
    oracle[:, :, :1] = asked.others.value(asked.chunk_ids)[:, :, None]
    return oracle


for _condition in (
    Condition(
        "baseline", "a decoder without retrieval, trained on the same tokens", "#7d8590", "2 3", model="baseline"
    ),
    Condition("off", "RETRO with retrieval skipped", "#2b7fc4", "7 4"),
    Condition("on", "RETRO with its neighbors", "#d9622b", neighbors=lambda asked: asked.real),
    Condition("random", "control: as many database chunks by chance", "#1a9070", "10 3 2 3", _random, control=True),
    Condition(
        "empty",
        "control: every neighbor missing",
        "#a865b5",
        "3 3",
        lambda asked: np.full_like(asked.real, PADDING),
        control=True,
    ),
    Condition(
        "shuffled",
        "control: the neighbors of another chunk",
        "#8f7a1f",
        "4 2",
        lambda asked: random_neighbors(asked.batch, asked.seed).neighbor_tokens,
        control=True,
    ),
    Condition(
        "oracle",
        "the chunk's own true continuation as nearest neighbor; a cheat, and an upper bound",
        "#c2477f",
        "1 4",
        _oracle,
        control=True,
    ),
):
    register(_condition)


class OtherChunks:
    """Uniform draws from the database, never of the document that draws; a function of seed and chunk id alone."""

    def __init__(self, table, seed: int, removed: Bool[np.ndarray, "N"] | None = None):
        self.value = table.value
        self._seed, self._size = seed, table.database_chunks
        self._document_ids = np.asarray(table.document_ids[:])
        self._removed = np.zeros(len(self._document_ids), bool) if removed is None else removed
        self._gone = int(self._removed[: self._size].sum())
        ids, counts = np.unique(self._document_ids[: self._size], return_counts=True)
        self._own = dict(zip(ids.tolist(), counts.tolist(), strict=True))

    def draw(
        self, chunk_ids: Int[np.ndarray, "*shape"], counts: Int[np.ndarray, "*shape"], width: int
    ) -> Int[np.ndarray, "*shape K"]:
        """`counts` different database chunks for each chunk id, then -1 up to `width` (fewer in a tiny database)."""
        drawn = np.full((*chunk_ids.shape, width), PADDING, np.int64)
        for place in np.argwhere((chunk_ids != PADDING) & (counts > 0)):
            place = tuple(place)
            document = int(self._document_ids[chunk_ids[place]])
            generator = np.random.default_rng([self._seed, int(chunk_ids[place])])
            # Enough draws that, were all of the document's own chunks among them, the others suffice.
            wanted = min(self._size, int(counts[place]) + self._own.get(document, 0) + self._gone)
            candidates = generator.choice(self._size, wanted, replace=False)
            others = (self._document_ids[candidates] != document) & ~self._removed[candidates]
            candidates = candidates[others][: counts[place]]
            drawn[place][: len(candidates)] = candidates
        return drawn
