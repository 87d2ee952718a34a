"""What is known of each point of a sweep, and the figure by which points are compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from retro_jax.core.files import read_json
from retro_jax.evaluate.metrics import METRICS

DEFAULT = "bpb"
DIFFERENCES = ("on_minus_off", "on_minus_baseline", "on_minus_random")
EXACT = "exact_match"
HIGHER_IS_BETTER = ("accuracy", EXACT)
FIRST_SET = "held_out"
REMEDY = "Run the same `retro sweep` again; it evaluates the point again."
DONE = "done"


@dataclass(frozen=True)
class Outcome:
    """A point of a sweep.

    Attributes:
      group: points of one group differ in the seed alone.
      axes: the keys that vary in the sweep, with the values of this point.
      state: "done", "failed", "blocked" (a baseline or another point that it needs failed) or "missing".
      why: of a point that is not done.
      workdir: of its evaluation.
      condition: under which its model is compared: "on", or "baseline" where it does not retrieve.
      cost: "seconds", "tokens" and "flops" of its training, and "parameters" of its model; None where unknown.
    """

    name: str
    group: str
    seed: int
    axes: Mapping[str, Any]
    state: str
    workdir: Path
    condition: str = "on"
    why: str = ""
    cost: Mapping[str, float | None] = field(default_factory=dict)

    @cached_property
    def results(self) -> Mapping:
        """The content of results.json; empty for a point that is not done."""
        return read_json(self.workdir / "results.json", REMEDY, keys=("sets",)) if self.state == DONE else {}

    def figures(self, set_name: str = "", subset: str = "all") -> Mapping:
        """The figures of a subset of a set; empty where there are none."""
        sets = self.results.get("sets", {})
        found = sets.get(set_name or (FIRST_SET if FIRST_SET in sets else next(iter(sets), "")), {})
        return found.get("all", {}) if subset == "all" else found.get("subsets", {}).get(subset, {})

    def value(self, metric: str = DEFAULT) -> float | None:
        """The figure by which points are compared: of all of held_out, or of the first set where that was not evaluated."""
        if metric == EXACT:
            found = next(iter(self.results.get("questions", {}).values()), {})
            return found.get(EXACT, {}).get(self.condition, {}).get("mean")
        if metric in DIFFERENCES:
            return self.figures().get(metric, {}).get("mean")
        return self.figures().get(metric, {}).get(self.condition)


def known_metrics() -> list[str]:
    return [*METRICS, *DIFFERENCES, EXACT]


def check_metric(metric: str) -> None:
    """Raises ValueError for an unknown metric."""
    if metric not in known_metrics():
        raise ValueError(f"--metric={metric} is not a metric; known metrics: {', '.join(known_metrics())}.")


def best_first(values: Mapping[str, float], metric: str) -> list[str]:
    """The names, best first; of equal ones in the order given."""
    return sorted(values, key=lambda name: -values[name] if metric in HIGHER_IS_BETTER else values[name])


def by_group(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes of each group, in order."""
    groups: dict[str, list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault(one.group, []).append(one)
    return groups
