"""The metrics of an evaluation: one record each, and the one place to add another.

    register(Metric("bits_a_token", "bits of one scored token", lambda scored: scored.bits.sum() / scored.tokens.sum()))

adds one from anywhere before `retro evaluate` runs: it stands in results.json by subset and condition, and in the report.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Scored:
    """The chunks of some whole documents under one condition."""

    token_bits: Float[np.ndarray, "N M"]  # 0 where nothing is scored
    token_bytes: Int[np.ndarray, "N M"]  # UTF-8 bytes of the scored tokens
    token_scored: Int[np.ndarray, "N M"]  # 1 on text tokens
    documents: Int[np.ndarray, "N"]  # of each chunk, from 0

    def _by_document(self, table) -> Float[np.ndarray, "D"]:
        return np.bincount(self.documents, weights=table.sum(axis=1, dtype=np.float64))

    @cached_property
    def bits(self) -> Float[np.ndarray, "D"]:
        """Bits of each document."""
        return self._by_document(self.token_bits)

    @cached_property
    def bytes(self) -> Float[np.ndarray, "D"]:
        """UTF-8 bytes of each document's scored text."""
        return self._by_document(self.token_bytes)

    @cached_property
    def tokens(self) -> Float[np.ndarray, "D"]:
        """Scored tokens of each document."""
        return self._by_document(self.token_scored)


@dataclass(frozen=True)
class Metric:
    """A figure of every subset under every condition.

    Attributes:
      name: its key in results.json.
      meaning: what the report says of it.
      value: the figure, over all tokens of the documents together.
      digits: behind the point in the report.
    """

    name: str
    meaning: str
    value: Callable[[Scored], float]
    digits: int = 4


METRICS: dict[str, Metric] = {}  # in the order of the report


def register(metric: Metric) -> Metric:
    """Adds a metric.

    Raises:
      ValueError: one of that name is there.
    """
    if metric.name in METRICS:
        raise ValueError(f"There is a metric named {metric.name!r} already; give this one another name.")
    METRICS[metric.name] = metric
    return metric


register(Metric("bpb", "bits per UTF-8 byte, over all bytes", lambda scored: scored.bits.sum() / scored.bytes.sum()))
register(
    Metric(
        "perplexity",
        "perplexity a token, over all tokens",
        lambda scored: 2.0 ** (scored.bits.sum() / scored.tokens.sum()),
        2,
    )
)
