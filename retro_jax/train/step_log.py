"""Turns the sums of steps, fetched one step late, into records, spike limits and alarms."""

import sys
import time
from pathlib import Path

import jax
import numpy as np

from retro_jax.config import RunConfig
from retro_jax.core.progress import progress
from retro_jax.core.streams import side_channel
from retro_jax.parallel.agreement import joined_crc32
from retro_jax.parallel.sharding import Mesh
from retro_jax.train.clock import Clock
from retro_jax.train.health import SpikeError, SpikeLimit, divergence, retrieval_alarm
from retro_jax.train.metrics import MetricWriter, NoWriter, Window
from retro_jax.train.optimizer import schedule
from retro_jax.train.wandb import open_board


class StepLog:
    """Fetches the sums of each step on every process; process 0 writes them."""

    def __init__(self, run: RunConfig, workdir: Path, mesh: Mesh, step: int, spikes: SpikeLimit):
        self.train, self.workdir, self.spikes = run.train, workdir, spikes
        self.rate = schedule(run.train)
        self.first = jax.process_index() == 0
        self.writer = MetricWriter(workdir, step, open_board(run, workdir)) if self.first else NoWriter()
        self.window = Window()
        # Steps whose sums are still on the device: (step, sums, batch CRC, iterator position, when it had ended if it has).
        self.pending = []
        self.clock, self.clock_channel = Clock(run, mesh, workdir, step), side_channel("seconds.json")
        self.bar = progress(
            description="train", total=run.train.steps, initial=step, unit="step", disable=not self.first
        )

    def add(self, step: int, sums, batch_crc: tuple[int, int], position) -> None:
        """Adds a dispatched step.

        Args:
          batch_crc: CRC-32 and length in bytes of the tokens that this process read for it.
          position: the iterator's behind its batch.
        """
        # CPUs run a step while it is dispatched, and the one before is reported after that.
        ended = time.perf_counter() if all(value.is_ready() for value in sums.values()) else None
        self.pending.append((step, sums, batch_crc, position, ended))

    def settle(self, keep: int, stalled: float) -> None:
        """Fetches the sums of all pending steps but the last `keep` from the device, waiting for them.

        Args:
          stalled: seconds that the loop has waited for saves so far.

        Raises:
          DivergenceError: a loss or gradient is not finite.
          SpikeError: a gradient norm above the limit, where the config asks to roll back.
        """
        while len(self.pending) > keep:
            self._report(*self.pending.pop(0), stalled)

    def _report(
        self, step: int, sums, batch_crc: tuple[int, int], position, ended: float | None, stalled: float
    ) -> None:
        values = {key: float(value) for key, value in jax.device_get(sums).items()}
        ended = ended or time.perf_counter()
        self.window.add(values)
        self.bar.update(1)
        limit, norm = self.spikes.limit(step), values["grad_norm"]
        self.spikes.add(step, norm)
        self.spikes.left_out += int(values["skipped"])
        finite = np.isfinite(values["nll"]) and np.isfinite(norm)
        if step % self.train.log_every == 0 or step == self.train.steps or not finite:
            self._write(step, batch_crc, stalled, ended)
        if not finite:
            raise divergence(step, values, self.workdir)
        if norm > limit and self.train.on_spike == "roll_back":
            raise SpikeError(step, norm, limit, position)

    def _write(self, step: int, batch_crc: tuple[int, int], stalled: float, ended: float) -> None:
        record = self.window.record()
        record |= {"learning_rate": float(self.rate(step - 1)), "batch_crc32": joined_crc32(*batch_crc)}
        record |= {"skipped_steps": self.spikes.left_out}
        record |= self.clock.record(step, record["steps"], stalled, ended)
        self.writer.write(step, record)
        self._save_clock()
        self.window = Window()
        self.bar.set_postfix_str(f"loss {record['loss']:.3f}, {record['bpb']:.3f} bits per byte", refresh=False)

    def rewind(self, step: int, spikes: SpikeLimit) -> None:
        """Returns to `step`; later steps are repeated."""
        self.spikes, self.pending, self.window = spikes, [], Window()
        self.writer.rewind(step)
        self.bar.n = step
        self.bar.refresh()

    def has_check(self, step: int) -> bool:
        """Whether the retrieval check of `step` is in the metrics; for process 0."""
        return any(record["step"] == step and "validation_loss_on" in record for record in self.writer.records)

    def measured(self) -> dict[int, dict[str, float]]:
        """The numbers written so far, by step and name; for process 0, on any thread."""
        found: dict[int, dict[str, float]] = {}
        for record in tuple(self.writer.records):
            numbers = {name: value for name, value in record.items() if isinstance(value, (int, float))}
            found.setdefault(record["step"], {}).update(numbers)
        return found

    def write_check(self, step: int, record: dict, began: float) -> None:
        """Writes a retrieval check, and logs the alarm when the last ones were all bad.

        Args:
          began: when the check began (time.perf_counter); its time is no step's.
        """
        if self.first:
            checks = self.train.retrieval_alarm_checks
            alarm = retrieval_alarm([*self.writer.records, record], checks)
            self.writer.write(step, record | {"retrieval_alarm": float(alarm)})
            if alarm:
                print(
                    f"train: ALARM at step {step}: in {checks} check(s) in a row, validation loss with neighbors (now "
                    f"{record['validation_loss_on']:.4f}) was not below that with random ones "
                    f"({record['validation_loss_random']:.4f}): retrieval does nothing (yet).",
                    file=sys.stderr,
                )
        self.clock.leave_out(began)

    def _save_clock(self) -> None:
        if self.first:
            with self.clock_channel:
                self.clock.save()

    def close(self) -> None:
        self._save_clock()
        self.bar.close()
        self.writer.close()
