"""Means over seeds with their 95% interval by Student's t."""

import math
from collections.abc import Sequence

from retro_jax.evaluate.report.figures.charts import Interval

# The 0.975 quantile of Student's t for 1 to 10 degrees of freedom.
QUANTILES = (12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.30600, 2.26216, 2.22814)
NORMAL = 1.959964  # the same of the normal distribution


def mean_over_seeds(values: Sequence[float]) -> Interval:
    """The mean with its 95% interval; a single value has no interval.

    The interval says how much the mean would move with other seeds. It assumes that the figures of seeds are about normal.
    """
    mean, count = math.fsum(values) / len(values), len(values)
    if count < 2:
        return Interval(mean)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = quantile(count - 1) * deviation / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def quantile(degrees: int) -> float:
    """The 0.975 quantile of Student's t: from the table, beyond it by the Cornish-Fisher expansion."""
    if degrees <= len(QUANTILES):
        return QUANTILES[degrees - 1]
    z = NORMAL
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )
