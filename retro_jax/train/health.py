"""Health of a run: a limit for gradient norms, and an alarm when retrieval has no effect."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from retro_jax.config import TrainConfig


class DivergenceError(ValueError):
    """The loss or a gradient is not finite, or rolling back does not help."""


class SpikeError(Exception):
    """The gradient norm of a step is above the limit, and the config asks to roll back. Caught by the loop."""

    def __init__(self, step: int, norm: float, limit: float, position):
        super().__init__(f"gradient norm {norm:.3g} at step {step} is above the limit {limit:.3g}")
        self.step, self.position = step, position  # of the iterator, behind the batch of the step


class SpikeLimit:
    """`spike_factor` times the median gradient norm of the last `spike_window` steps.

    The limit of step s looks at the steps up to s - 2: the norm of s - 1 is still on the device when s is dispatched.
    So it is a function of what a checkpoint holds (`state`), whenever the run stops and resumes.
    """

    def __init__(self, train: TrainConfig, state: Mapping | None = None):
        self.factor, self.window = train.spike_factor, train.spike_window
        self.action = train.on_spike
        state = json.loads(json.dumps(state or {"norms": [], "left_out": 0}))
        self.norms: list = state["norms"]  # [step, norm], oldest first
        self.left_out = state["left_out"]  # steps whose update is not in the parameters

    def state(self) -> dict:
        return {"norms": list(self.norms), "left_out": self.left_out}

    def add(self, step: int, norm: float) -> None:
        self.norms = [*self.norms, [step, norm]][-(self.window + 1) :]

    def limit(self, step: int) -> float:
        """The limit: infinite until the window is full, or with on_spike="none"."""
        if self.action == "none":
            return math.inf
        seen = [norm for at, norm in self.norms if step - 2 - self.window < at <= step - 2]
        return self.factor * statistics.median(seen) if len(seen) == self.window else math.inf

    def device_limit(self, step: int) -> float:
        """The limit above which the compiled step skips an update."""
        return self.limit(step) if self.action == "skip" else math.inf


def divergence(step: int, sums: Mapping[str, float], workdir: Path) -> DivergenceError:
    """The error of a run whose loss is not finite, with the places of its metrics and last good state."""
    return DivergenceError(
        f"Step {step}: loss {sums['nll'] / max(sums['tokens'], 1):.3g}, gradient norm {sums['grad_norm']:.3g}; a step "
        f"must end finite. {workdir}/metrics.jsonl has the steps before, {workdir}/checkpoints the last good state. Lower "
        f"config.train.learning_rate or config.train.clip_norm, in another --workdir."
    )


def retrieval_alarm(records: Sequence[Mapping], checks: int) -> bool:
    """Whether On was no better than random neighbors in each of the last `checks` retrieval checks."""
    last = [record for record in records if "validation_loss_on" in record][-checks:]
    return len(last) == checks and all(
        record["validation_loss_on"] >= record["validation_loss_random"] for record in last
    )
