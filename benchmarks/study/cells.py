"""Figures as they stand in the cells of a page."""

from points import Missing, Study
from quantities import Estimate, estimate


def interval(found: Estimate) -> str:
    return f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def difference(found: Estimate) -> str:
    """With a note where 0 lies within the interval; two values that are equal in every digit have none."""
    shown = found.low > 0 or found.high < 0 or found.low == found.high
    return interval(found) + ("" if shown else ", not shown")


def value(study: Study, point: str, condition: str, subset: str) -> str:
    """The mean over seeds; a dash where the point or its condition is missing."""
    try:
        return f"{estimate(study.bits(point, condition, subset)).mean:.4f}"
    except Missing:
        return "-"
