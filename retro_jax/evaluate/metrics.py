"""The metrics of an evaluation: one record each.

    register(Metric("bits_a_token", "bits of one scored token", lambda scored: scored.bits.sum() / scored.tokens.sum()))

adds a metric from any module, before `retro evaluate` runs. It appears in results.json by subset and condition, and in
the report.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from retro_jax.core.registry import add


@dataclass(frozen=True)
class Scored:
    """Sums over each of D documents under one condition. Text that is not scored is not counted."""

    bits: Float[np.ndarray, "D"]
    bytes: Int[np.ndarray, "D"]  # UTF-8 bytes of the scored text
    tokens: Int[np.ndarray, "D"]
    words: Int[np.ndarray, "D"]  # in the set's original tokenization; 0 where the protocol counts none
    hits: Int[np.ndarray, "D"]  # scored tokens that were the model's first choice; -1 where that was not computed


@dataclass(frozen=True)
class Metric:
    """A figure of every subset under every condition.

    Attributes:
      name: its key in results.json.
      meaning: its description in the report.
      value: the figure, over all tokens of the documents together; None where it is not defined for the set.
      digits: decimal places in the report.
    """

    name: str
    meaning: str
    value: Callable[[Scored], float | None]
    digits: int = 4


METRICS: dict[str, Metric] = {}  # in the order of the report


def register(metric: Metric) -> Metric:
    """Adds a metric.

    Raises:
      ValueError: a metric of that name exists.
    """
    return add(METRICS, metric, "a metric")


def _ratio(bits, counts) -> float | None:
    """Bits for each unit counted; None where the set counts none."""
    return float(bits.sum() / counts.sum()) if counts.sum() else None


def _perplexity(bits, counts) -> float | None:
    ratio = _ratio(bits, counts)
    return None if ratio is None else 2.0**ratio


def _accuracy(scored: Scored) -> float | None:
    looked_at = (scored.hits >= 0) & (scored.tokens > 0)
    return float((scored.hits == scored.tokens)[looked_at].mean()) if looked_at.any() else None


for _metric in (
    Metric("bpb", "bits per UTF-8 byte, over all bytes", lambda scored: _ratio(scored.bits, scored.bytes)),
    Metric(
        "perplexity", "perplexity a token, over all tokens", lambda scored: _perplexity(scored.bits, scored.tokens), 2
    ),
    Metric(
        "word_perplexity",
        "perplexity a word of the set's original tokenization",
        lambda scored: _perplexity(scored.bits, scored.words),
        2,
    ),
    Metric("accuracy", "share of documents whose scored tokens are all the model's first choice", _accuracy),
):
    register(_metric)
