"""What decides a verdict: checks of intervals against ranges, by one rule for all claims."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from points import Missing, Study
from quantities import Estimate, Expression, estimate

SMALL = 0.005  # of the baseline's bits per byte: a difference below it counts as none
REPRODUCED, FAILED, OPEN, WAITING = "reproduced", "not reproduced", "not measurable here", "not measured yet"
HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
RULE = f"""A claim is a list of checks. A check asks that a difference lies in a range: below 0, above 0, or within a margin. Its
interval covers 95% over documents and seeds: the variance of the mean over seeds is that over documents (jackknife; all models score
the same documents) plus that over seeds, and the interval is Student's with Welch's degrees of freedom.

* A check **holds** if the interval lies in the range and, for a sign, all seeds have that sign.
* It **fails** if the interval lies outside of the range, or, for a sign, if the interval holds 0 and no difference larger than
  {SMALL:.1%} of the baseline's bits per byte.
* Otherwise it is **undecided**: the data allow both answers.

A claim is *{REPRODUCED}* if all checks hold, *{FAILED}* if one fails, *{OPEN}* if none fails and one is undecided, and *{WAITING}*
while a point is missing."""


@dataclass(frozen=True)
class Check:
    """A difference that a claim says something about.

    Attributes:
      says: in words.
      quantity: the difference.
      low, high: ends of the range, as shares of `reference`; 0 and infinity for a sign.
      reference: what margins are shares of; None: the range is absolute.
      unit: of the difference.
    """

    says: str
    quantity: Callable[[Study], Expression]
    low: float = -math.inf
    high: float = math.inf
    reference: Callable[[Study], Expression] | None = None
    unit: str = "bits per byte"


@dataclass(frozen=True)
class Checked:
    check: Check
    state: str
    found: Estimate | None = None
    missing: str = ""
    scale: float = 1.0

    @property
    def why(self) -> str:
        """The reason of a check that does not hold."""
        if self.missing:
            return f"{self.check.says}: {self.missing} is missing"
        ends = f"{self.found.low:+.4f} to {self.found.high:+.4f}"
        if self.state == FAILS:
            return f"{self.check.says}: no, the interval is {ends}"
        seeds = "" if self.found.agree else ", and seeds differ in sign"
        return f"{self.check.says}: the interval {ends} allows both answers{seeds}"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper or of a paper about it.

    Attributes:
      number: of the list of claims; letters for follow-ups.
      says, paper: the claim, and the paper's figure with its place.
    """

    number: str
    says: str
    paper: str
    checks: Sequence[Check]


def run_check(check: Check, study: Study) -> Checked:
    """Decides a check by RULE."""
    try:
        found = estimate(check.quantity(study))
        scale = 1.0 if check.reference is None else estimate(check.reference(study)).mean
    except Missing as missing:
        return Checked(check, WAITING, missing=str(missing))
    low, high = (end * scale if end else 0.0 for end in (check.low, check.high))
    return Checked(check, _state(found, low, high, SMALL * scale), found, scale=scale)


def _state(found: Estimate, low: float, high: float, small: float) -> str:
    sign = 0.0 in (low, high)
    if low <= found.low and found.high <= high and (found.agree or not sign):
        return HOLDS
    if found.high < low or found.low > high:
        return FAILS
    if sign and found.low <= 0 <= found.high and max(-found.low, found.high) <= small:
        return FAILS
    return UNDECIDED


def verdict(checked: Sequence[Checked]) -> str:
    """The verdict of a claim, of its checks alone."""
    states = {one.state for one in checked}
    if FAILS in states:
        return FAILED
    if WAITING in states:
        return WAITING
    return OPEN if UNDECIDED in states else REPRODUCED
