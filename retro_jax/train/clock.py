"""Speed of a run: tokens a second, utilization, waiting times, memory and goodput."""

import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from retro_jax.config import RunConfig
from retro_jax.core.files import write_json
from retro_jax.core.side_files import read_object, set_aside
from retro_jax.models.counts import flops_per_token
from retro_jax.parallel.sharding import Mesh

# Keys of a record that describe the machine, not the model: they may differ between equal runs.
OF_THE_MACHINE = (
    "tokens_per_second",
    "mfu",
    "input_wait",
    "goodput",
    "compile_seconds",
    "checkpoint_stall",
    "host_memory",
    "device_memory",
)


class Clock:
    """Times the steps between two records.

    seconds.json holds, over all starts of the run, the `seconds` that processes ran and the `step_seconds` among them
    that went into steps which count: those done again after a resume are taken out in proportion.
    """

    def __init__(self, run: RunConfig, mesh: Mesh, workdir: Path, step: int = 0):
        self.flops = flops_per_token(run.model, run.train.trainable)
        self.tokens_a_step = run.train.batch * run.model.sequence_length
        self.peak = (run.train.peak_flops or measured_peak(run.model.compute_dtype)) * mesh.devices.size
        self.path = Path(workdir) / "seconds.json"
        found = self._read()
        self.earlier, self.step = found["seconds"], step
        self.step_seconds = found.get("step_seconds", 0.0) * min(1.0, step / max(found.get("step", 0), 1))
        self.started = time.perf_counter()
        self.compile_seconds = self.stalled_before = 0.0
        self.restart()

    def _read(self) -> dict:
        """The times of earlier starts from seconds.json; empty if it is missing or damaged."""
        try:
            found = read_object(self.path) or {"seconds": 0.0}
            if not all(isinstance(value, int | float) for value in found.values()) or "seconds" not in found:
                raise ValueError(f"{self.path} is damaged (it holds {found!r:.60}).")
            return found
        except ValueError as error:
            if jax.process_index() == 0:
                set_aside(self.path, str(error), "time is counted from 0 again")
            return {"seconds": 0.0}

    def restart(self) -> None:
        """Excludes the time so far (compilation, reading) from step times."""
        self.last, self.waited = time.perf_counter(), 0.0

    def leave_out(self, since: float) -> None:
        """Takes the time since then out of the step times; steps before it keep theirs."""
        self.last += time.perf_counter() - since

    def rewind(self, step: int, stalled: float) -> None:
        """After a return to `step`: the time of the steps behind it goes out in proportion, as after a resume.

        Args:
          stalled: as in `record`.
        """
        self.step_seconds *= min(1.0, step / max(self.step, 1))
        self.step, self.stalled_before = min(step, self.step), stalled
        self.restart()

    def record(self, step: int, steps: int, stalled: float, ended: float) -> dict[str, float]:
        """Rates over the `steps` since the last record, which ended at `step`.

        Args:
          stalled: seconds that the loop has waited for saves since the process started.
          ended: when the step had ended (time.perf_counter).
        """
        elapsed = max(ended - self.last, 1e-9)
        stall, self.stalled_before = stalled - self.stalled_before, stalled
        self.step, self.step_seconds = step, self.step_seconds + max(elapsed - stall, 0.0)
        tokens = steps * self.tokens_a_step / elapsed
        record = {
            "tokens_per_second": tokens,
            "mfu": tokens * self.flops / self.peak,
            "input_wait": self.waited / elapsed,
            "goodput": min(self.step_seconds / self.seconds(), 1.0),
            "compile_seconds": self.compile_seconds,
            "checkpoint_stall": stall,
            **memory(),
        }
        self.last, self.waited = ended, 0.0
        return record

    def seconds(self) -> float:
        """Wall time of this process and of earlier ones, up to their last save of seconds.json."""
        return self.earlier + time.perf_counter() - self.started

    def save(self) -> None:
        write_json(self.path, {"seconds": self.seconds(), "step_seconds": self.step_seconds, "step": self.step})


def memory() -> dict[str, float]:
    """`host_memory`: resident bytes of this process; `device_memory`: peak bytes of its first device, if it reports them."""
    found = {}
    try:
        with open("/proc/self/statm") as file:
            found["host_memory"] = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass  # no Linux
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        found["device_memory"] = stats["peak_bytes_in_use"]
    return found


def measured_peak(dtype: str) -> float:
    """FLOP/s of a device on a square matmul in `dtype`, summed up in float32: the best of five."""
    size = 1_024 if jax.default_backend() == "cpu" else 8_192  # an H200 does 25 TFLOP/s at 1,024 rows, 745 at 8,192
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    product(matrix, matrix).block_until_ready()
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
