"""The training loop.

One order, the same in every step:

    1. batch     already on its way to the device, asked for while the step before was running
    2. dispatch  the compiled step; returns at once, the device works from here on
    3. save      on checkpoint steps only: wait for this step, and keep it if its loss and gradients are finite
    4. prefetch  the next batch is read and sent while the device computes
    5. metrics   of the *previous* step, so that the device never waits for the host
    6. hooks     every so often: losses with, without and with random neighbors

The iterator stands exactly behind the batch of the step when the checkpoint is written (3 comes before 4), and so a
resumed run sees the batches, and makes the parameters, of one that was never stopped, bit for bit.
"""

import sys
import time
import zlib
from pathlib import Path

import jax
import numpy as np

from retro_jax import run_directory
from retro_jax.batches import train_iterator
from retro_jax.checkpoints import Checkpoints
from retro_jax.clock import Clock
from retro_jax.config import RunConfig
from retro_jax.metrics import MetricWriter, Window
from retro_jax.optimizer import make_optimizer, schedule
from retro_jax.progress import progress
from retro_jax.retrieval_check import RetrievalCheck
from retro_jax.retrofit import initial_state
from retro_jax.sharding import check_sizes, describe, make_mesh, place_batch
from retro_jax.train_state import TrainState, abstract_state
from retro_jax.train_step import make_train_step


class DivergenceError(ValueError):
    """The loss or a gradient is not finite any more."""


def train(run: RunConfig, workdir: Path) -> TrainState:
    """Trains up to `run.train.steps`, from the newest whole checkpoint of `workdir` if there is one.

    Raises:
      ValueError: sizes that the mesh cannot cut, data that does not fit the model, a run directory of another config,
        a checkpoint of another tokenizer or database.
      DivergenceError: a loss or gradient is not finite; metrics are written, the last good checkpoint stays.
    """
    workdir = Path(workdir)
    mesh = make_mesh(run.train.mesh)
    check_sizes(run, mesh)
    data = run_directory.data_directory(run, workdir)
    fingerprints = run_directory.fingerprints(data)
    run_directory.claim(workdir, run, fingerprints)
    loop = Loop(run, workdir, data, fingerprints, mesh)
    try:
        return loop.run_to_end()
    finally:
        loop.close()


class Loop:
    """The parts of one run, and the loop over steps."""

    def __init__(self, run: RunConfig, workdir: Path, data: Path, fingerprints: dict, mesh):
        self.run, self.workdir, self.mesh = run, workdir, mesh
        self.optimizer = make_optimizer(run.train)
        self.rate = schedule(run.train)
        self.iterator = train_iterator(data / "joined", run.model, run.train)
        self.checkpoints = Checkpoints(
            workdir / "checkpoints", run_directory.identity(run, fingerprints), run.train.keep_checkpoints
        )
        restored = self.checkpoints.restore(abstract_state(run, self.optimizer, mesh), self.iterator)
        self.state = restored if restored is not None else initial_state(run, self.optimizer, mesh, fingerprints)
        self.step = int(self.state.step)
        self.train_step = make_train_step(run, self.optimizer, mesh, run_directory.token_bytes(data, run.model))
        self.check = RetrievalCheck.when_due(run, data / "joined", mesh)
        self.writer = MetricWriter(workdir, self.step)
        self.window = Window()
        self.clock = Clock(run, mesh, workdir)

    def compile(self, batch) -> None:
        """Compiles the step before the loop, so that its time is not taken for a step's."""
        started = time.perf_counter()
        self.train_step = self.train_step.lower(self.state, batch).compile()
        print(f"train: compiled the step in {time.perf_counter() - started:.1f} s", file=sys.stderr)
        self.clock.restart()

    def run_to_end(self) -> TrainState:
        train = self.run.train
        print(f"train: {describe(self.mesh, self.run.model)}, from step {self.step} to {train.steps}", file=sys.stderr)
        batch = previous = None
        if self.step < train.steps:
            batch = self.next_batch()
            self.compile(batch)
        bar = progress(description="train", total=train.steps, initial=self.step, unit="step")
        while self.step < train.steps:
            self.state, sums = self.train_step(self.state, batch)
            self.step += 1
            current = (self.step, sums, self.batch_crc)
            if self.step % train.checkpoint_every == 0 or self.step == train.steps:
                previous = self.report(previous, bar)
                current = self.report(current, bar)  # raises before a broken state is saved
                self.checkpoints.save(self.step, self.state, self.iterator)
            if self.step < train.steps:
                batch = self.next_batch()
            self.report(previous, bar)
            previous = current
            if self.check is not None and self.step % train.retrieval_check_every == 0:
                self.report_check()
        bar.close()
        self.checkpoints.wait()
        return self.state

    def next_batch(self):
        """The next batch, on its way to the device; the time this takes is the input wait."""
        started = time.perf_counter()
        batch = next(self.iterator)
        self.batch_crc = zlib.crc32(np.ascontiguousarray(batch.tokens))
        batch = place_batch(batch, self.mesh)
        self.clock.waited += time.perf_counter() - started
        return batch

    def report(self, entry, bar) -> None:
        """Takes one step's sums from the device (waiting for it), and writes a record every `log_every` steps."""
        if entry is None:
            return None
        step, sums, batch_crc = entry
        values = {key: float(value) for key, value in jax.device_get(sums).items()}
        self.window.add(values)
        bar.update(1)
        finite = np.isfinite(values["nll"]) and np.isfinite(values["grad_norm"])
        if step % self.run.train.log_every == 0 or step == self.run.train.steps or not finite:
            record = self.window.record()
            record |= {"learning_rate": float(self.rate(step - 1)), "batch_crc32": batch_crc}
            record |= self.clock.record(record["steps"])
            self.writer.write(step, record)
            self.window = Window()
            bar.set_postfix_str(f"loss {record['loss']:.3f}, {record['bpb']:.3f} bits per byte")
        if not finite:
            raise DivergenceError(
                f"Step {step}: loss {values['nll'] / max(values['tokens'], 1):.3g}, gradient norm "
                f"{values['grad_norm']:.3g}; a step must end finite. {self.workdir}/metrics.jsonl has the way there, "
                f"{self.workdir}/checkpoints the last good state. Lower config.train.learning_rate or "
                f"config.train.clip_norm, in another --workdir."
            )
        return None

    def report_check(self) -> None:
        record = self.check.losses(self.state.params)
        self.writer.write(self.step, record)
        if record["retrieval_alarm"]:
            print(
                f"\ntrain: ALARM at step {self.step}: validation loss {record['validation_loss_on']:.4f} with neighbors "
                f"is not below {record['validation_loss_random']:.4f} with random ones: retrieval does nothing (yet).",
                file=sys.stderr,
            )
        self.clock.restart()

    def close(self) -> None:
        self.clock.save()
        self.writer.close()
        self.checkpoints.close()
