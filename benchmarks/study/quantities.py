"""Differences with intervals over seeds and documents.

An expression is a sum of ratios, each of one point under one condition: the bits of its documents over their bytes (or tokens).
All ratios of an expression are over the same documents and seeds, so differences are paired.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t as student


@dataclass(frozen=True)
class Ratio:
    """Sums over D documents, for each seed.

    Attributes:
      factor: of the ratio in its expression.
      ids: of the documents.
      bits: by seed.
      sizes: what the bits are divided by.
    """

    factor: float
    ids: Int[np.ndarray, "D"]
    bits: Mapping[int, Float[np.ndarray, "D"]]
    sizes: Float[np.ndarray, "D"]


@dataclass(frozen=True)
class Expression:
    ratios: tuple[Ratio, ...]

    def __add__(self, other: "Expression") -> "Expression":
        return Expression(self.ratios + other.ratios)

    def __sub__(self, other: "Expression") -> "Expression":
        return self + other * -1.0

    def __mul__(self, factor: float) -> "Expression":
        return Expression(tuple(replace(ratio, factor=ratio.factor * factor) for ratio in self.ratios))


@dataclass(frozen=True)
class Estimate:
    """The mean over seeds, with a 95% interval.

    Attributes:
      by_seed: the value of each seed.
      documents: how many there are.
    """

    mean: float
    low: float
    high: float
    by_seed: Mapping[int, float]
    documents: int

    @property
    def agree(self) -> bool:
        """Whether the values of all seeds have one sign."""
        return len({math.copysign(1, value) for value in self.by_seed.values()}) == 1


def estimate(expression: Expression) -> Estimate:
    """The value of an expression over the seeds and documents that all of its ratios have.

    The variance of the mean is that over documents (jackknife of the mean over seeds) plus that over seeds (of the values of the
    seeds, none where there is one). The interval is Student's, with Welch's degrees of freedom.

    Raises:
      ValueError: no seed or no document in common.
    """
    ratios = expression.ratios
    seeds = sorted(set.intersection(*(set(ratio.bits) for ratio in ratios)))
    ids = sorted(set.intersection(*(set(ratio.ids.tolist()) for ratio in ratios)))
    if not seeds or len(ids) < 2:
        raise ValueError("no seed, or fewer than two documents, in common")
    tops = [[_of(ratio, ratio.bits[seed], ids) for seed in seeds] for ratio in ratios]
    sizes = [_of(ratio, ratio.sizes, ids) for ratio in ratios]
    factors = [ratio.factor for ratio in ratios]
    values = [
        sum(factor * top[place].sum() / size.sum() for factor, top, size in zip(factors, tops, sizes, strict=True))
        for place in range(len(seeds))
    ]
    count = len(ids)
    without = sum(
        factor * (np.mean(top, axis=0).sum() - np.mean(top, axis=0)) / np.maximum(size.sum() - size, 1e-12)
        for factor, top, size in zip(factors, tops, sizes, strict=True)
    )
    of_documents = float(((without - without.mean()) ** 2).sum() * (count - 1) / count)
    of_seeds = float(np.var(values, ddof=1) / len(seeds)) if len(seeds) > 1 else 0.0
    mean, reach = float(np.mean(values)), _reach(of_documents, count - 1, of_seeds, len(seeds) - 1)
    return Estimate(mean, mean - reach, mean + reach, dict(zip(seeds, map(float, values), strict=True)), count)


def _of(ratio: Ratio, values: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    order = np.argsort(ratio.ids)
    return np.asarray(values, np.float64)[order[np.searchsorted(ratio.ids, ids, sorter=order)]]


def _reach(one: float, one_freedom: int, other: float, other_freedom: int) -> float:
    """Half of the 95% interval of a mean whose variance is the sum of two estimated ones (Welch and Satterthwaite)."""
    total = one + other
    if total == 0:
        return 0.0
    parts = one**2 / one_freedom + (other**2 / other_freedom if other else 0.0)
    return float(student.ppf(0.975, total**2 / parts) * math.sqrt(total))
