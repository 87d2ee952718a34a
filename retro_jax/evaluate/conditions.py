"""The conditions under which text is scored: one record each.

A condition says which model reads the text and which neighbors it reads. Retrieval must beat the controls: the losses
of a model that uses its neighbors are ordered oracle < on < random, shuffled ~ off.

    register(Condition("nearest", "RETRO with its nearest neighbor alone", "#444444", "1 2", neighbors=nearest, control=True))

adds a condition from any module, before `retro evaluate` runs. It is scored and appears in results.json, the table and
the report.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Int, Int64

from retro_jax.core.dimensions import PADDING
from retro_jax.core.registry import add
from retro_jax.data.batches import Batch, random_neighbors
from retro_jax.evaluate.sets import Neighbors, TextSet


@dataclass(frozen=True)
class Asked:
    """The input from which a condition makes neighbors: the chunks of a batch, and the source of their neighbors."""

    rows: Int64[np.ndarray, "B C"]  # of the set; -1 is padding
    text: TextSet
    source: Neighbors
    k: int
    batch_seed: int  # for what is drawn over a batch
    seed: int  # for what is drawn chunk by chunk

    @cached_property
    def ids(self) -> Int64[np.ndarray, "B C K"]:
        """Ids of the first k neighbors of each chunk."""
        ids = np.full((*self.rows.shape, self.k), PADDING, np.int64)
        there = self.rows != PADDING
        ids[there] = self.source.find(self.rows[there])[0][:, : self.k]
        return ids

    @cached_property
    def real(self) -> Int[np.ndarray, "B C K R"]:
        """Tokens of the first k neighbors of each chunk."""
        return self.source.value(self.ids)

    def continued(self) -> Int[np.ndarray, "B C R"]:
        """Tokens of each chunk of the batch and of the next chunk of its document."""
        last = int(self.text.edges[-1]) - 1
        rows = np.where(self.rows == PADDING, 0, self.rows)
        owner = np.searchsorted(self.text.edges, np.stack([rows, np.minimum(rows + 1, last)]), side="right")
        follows = (owner[0] == owner[1]) & (rows < last)
        first, second = self.text.tokens(rows), self.text.tokens(np.minimum(rows + 1, last))
        both = np.concatenate([first, np.where(follows[..., None], second, PADDING)], axis=-1)
        return np.where((self.rows != PADDING)[..., None], both, PADDING)


@dataclass(frozen=True)
class Condition:
    """A way to score held-out text.

    Attributes:
      name: its key in results.json.
      meaning: its description in the report.
      color, dash: of its line in plots ("#rrggbb", an SVG dash array).
      neighbors: makes the tokens that the model reads, [B, C, K, R] with -1 for a missing neighbor; None skips
        retrieval.
      model: "retro" or "baseline".
      control: whether retrieval must beat it (gray in the report's table).
      k, share, database: how many neighbors it reads, from which share of the documents, of which database. 0, 1.0 and
        "" stand for the model's config, all documents and the build's database.
    """

    name: str
    meaning: str
    color: str
    dash: str = ""
    neighbors: Callable[[Asked], Int[np.ndarray, "B C K R"]] | None = None
    model: str = "retro"
    control: bool = False
    k: int = 0
    share: float = 1.0
    database: str = ""


CONDITIONS: dict[str, Condition] = {}  # in the order of the report's columns


def register(condition: Condition) -> Condition:
    """Adds a condition.

    Raises:
      ValueError: a condition of that name exists.
    """
    return add(CONDITIONS, condition, "a condition")


def _random(asked: Asked):
    counts = (asked.ids != PADDING).sum(axis=-1)
    return asked.source.value(asked.source.draw(asked.rows, counts, asked.k, asked.seed))


def _shuffled(asked: Asked):
    nothing = np.empty(0)
    return random_neighbors(Batch(nothing, nothing, nothing, asked.rows, asked.real), asked.batch_seed).neighbor_tokens


def _oracle(asked: Asked):
    oracle = asked.real.copy()
    oracle[:, :, :1] = asked.continued()[:, :, None]
    return oracle


for _condition in (
    Condition("baseline", "a decoder without retrieval", "#7d8590", "2 3", model="baseline"),
    Condition("off", "RETRO with retrieval skipped", "#2b7fc4", "7 4"),
    Condition("on", "RETRO with its neighbors", "#d9622b", neighbors=lambda asked: asked.real),
    Condition("random", "control: as many random database chunks", "#1a9070", "10 3 2 3", _random, control=True),
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
        _shuffled,
        control=True,
    ),
    Condition(
        "oracle",
        "the chunk's true continuation as nearest neighbor; an upper bound, not a result",
        "#c2477f",
        "1 4",
        _oracle,
        control=True,
    ),
):
    register(_condition)


def variants(ks=(), shares=(), databases=()) -> list[Condition]:
    """Variants of On: other numbers of neighbors, shares of the database, other databases; a condition for each.

    Args:
      ks: numbers of neighbors.
      shares: of the build's documents, in (0, 1).
      databases: data directories of builds with the same encoder.
    """
    on = CONDITIONS["on"]
    return [
        *(replace(on, name=f"on k={k}", meaning=f"RETRO with {k} neighbors", k=k) for k in ks),
        *(
            replace(on, name=f"on share={share:g}", meaning=f"RETRO with {share:.4g} of the database", share=share)
            for share in shares
        ),
        *(
            replace(on, name=f"on database={path}", meaning=f"RETRO with the database {path}", database=path)
            for path in databases
        ),
    ]
