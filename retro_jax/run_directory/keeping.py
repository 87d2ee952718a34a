"""Which whole checkpoints of a run stay: orbax's preservation policies, by name in the config.

    config.train.keep_checkpoints = 3       the newest three; 0 keeps all
    config.train.keep_also.every = 10_000   and those of every 10,000 steps
    config.train.keep_also.best = 2         and the two with the lowest config.train.keep_metric

A checkpoint stays if any policy keeps it. `register(Policy(...))` adds a policy from any module before `retro train` runs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from orbax.checkpoint import checkpoint_managers as orbax

from retro_jax.config import RunConfig
from retro_jax.core.registry import add
from retro_jax.run_directory.whole import whole_path


@dataclass(frozen=True)
class Kept:
    """What a policy sees of a whole checkpoint (orbax's `PolicyCheckpointInfo`).

    Attributes:
      time: when it became whole.
      metrics: the numbers that metrics.jsonl has for its step, by name.
    """

    step: int
    time: datetime
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Policy:
    """A rule for keeping checkpoints.

    Attributes:
      name: its key in config.train.keep_also.
      meaning: what its number means, for messages.
      make: gives an object with orbax's `should_preserve(checkpoints, *, context)`; `checkpoints` are `Kept`, oldest first.
        It raises ValueError where the policy does not fit the run.
    """

    name: str
    meaning: str
    make: Callable[[int, RunConfig], orbax.PreservationPolicy]


POLICIES: dict[str, Policy] = {}


def register(policy: Policy) -> Policy:
    """Adds a policy.

    Raises:
      ValueError: one of that name is there.
    """
    return add(POLICIES, policy, "a checkpoint policy")


# Where each metric of config.train.keep_metric comes from: the setting that says how often it is measured.
INTERVALS = {
    "loss": "log_every",
    "bpb": "log_every",
    "validation_loss_on": "retrieval_check_every",
    "validation_loss_off": "retrieval_check_every",
    "validation_loss_random": "retrieval_check_every",
}


def _best(number: int, run: RunConfig) -> orbax.PreservationPolicy:
    metric, every = run.train.keep_metric, run.train.checkpoint_every
    setting = INTERVALS[metric]
    interval = getattr(run.train, setting)
    if setting == "retrieval_check_every" and not (interval and run.model.retrieves and run.model.neighbors):
        raise ValueError(
            f"config.train.keep_also.best ranks checkpoints by config.train.keep_metric={metric}, but this run has no "
            f"retrieval checks that measure it. Take --config.train.keep_metric=loss or bpb."
        )
    if every % interval:
        raise ValueError(
            f"config.train.keep_also.best needs {metric} at every checkpoint, but config.train.checkpoint_every={every} is "
            f"not a multiple of config.train.{setting}={interval}; set the second to a divisor of {every}."
        )
    # orbax takes the last of a sorted list. A checkpoint that was not measured yet ranks below all others.
    return orbax.BestN(get_metric_fn=lambda found: found.get(metric, math.inf), reverse=True, n=number)


for _policy in (
    Policy("latest", "how many of the newest stay", lambda number, run: orbax.LatestN(n=number)),
    Policy("every", "those at multiples of so many steps stay", lambda number, run: orbax.EveryNSteps(number)),
    Policy("best", "how many with the lowest config.train.keep_metric stay", _best),
):
    register(_policy)


class Keep:
    """The policies of a run's config together.

    `keeps_all` where the config deletes nothing. `metrics` gives the numbers measured so far, by step and name.

    Raises:
      ValueError: a policy that is not known, or does not fit the run.
    """

    def __init__(self, run: RunConfig, metrics: Callable[[], Mapping[int, Mapping[str, float]]] = dict):
        train, self.metrics = run.train, metrics
        if unknown := sorted(set(train.keep_also) - set(POLICIES)):
            known = "; ".join(f"{name}: {policy.meaning}" for name, policy in POLICIES.items())
            raise ValueError(f"config.train.keep_also.{unknown[0]} is not a checkpoint policy; known are {known}.")
        if train.keep_checkpoints < 0:
            raise ValueError(
                f"config.train.keep_checkpoints is how many to keep, 0 for all, but is {train.keep_checkpoints}; set it to "
                f"0 or more."
            )
        self.keeps_all = not train.keep_checkpoints
        self.policies = [orbax.LatestN(n=train.keep_checkpoints)]
        if train.on_spike == "roll_back":  # where it goes back to
            self.policies.append(orbax.EveryNSteps(train.checkpoint_every, max_to_keep=1))
        self.policies += [POLICIES[name].make(number, run) for name, number in train.keep_also.items()]

    def __call__(self, whole: Sequence[Path]) -> list[bool]:
        """Whether each of the whole checkpoints, oldest first, stays."""
        measured = self.metrics()
        found = [
            Kept(
                int(path.name),
                datetime.fromtimestamp(whole_path(path).stat().st_mtime, UTC),
                measured.get(int(path.name), {}),
            )
            for path in whole
        ]
        together = orbax.AnyPreservationPolicy(self.policies)
        return together.should_preserve(found, context=orbax.PreservationContext())
