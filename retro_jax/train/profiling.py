"""`--profile=START:STOP`: a trace of some steps under WORKDIR/profile, for TensorBoard's profile tab or Perfetto."""

import re
import sys
from pathlib import Path

import jax

from retro_jax.core.streams import side_channel


class Profile:
    """Traces the steps START to STOP - 1; an empty `steps` traces none.

    Raises:
      ValueError: `steps` is not START:STOP with 0 < START < STOP.
    """

    def __init__(self, steps: str, workdir: Path):
        self.directory, self.running = Path(workdir) / "profile", False
        self.channel = side_channel("profile")
        found = re.fullmatch(r"(\d+):(\d+)", steps or "0:0")
        self.start, self.stop = map(int, found.groups()) if found else (0, 0)
        if steps and not 0 < self.start < self.stop:
            raise ValueError(
                f"--profile is START:STOP in steps, the last one not traced, but is {steps!r}; e.g. 10:13."
            )

    def before(self, step: int) -> None:
        if step == self.start:
            with self.channel:
                jax.profiler.start_trace(str(self.directory))
                self.running = True

    def after(self, step: int, state) -> None:
        """Ends the trace after the last step, once the device has finished it."""
        if self.running and step >= self.stop - 1:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        if self.running:
            self.running = False
            with self.channel:
                jax.profiler.stop_trace()
                print(
                    f"train: the trace is in {self.directory}; see it with tensorboard --logdir={self.directory}",
                    file=sys.stderr,
                )
