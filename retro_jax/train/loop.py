"""The training loop.

Each step has the same order on every process:

    1. batch     already being sent to the device, requested during the step before
    2. dispatch  the compiled step; returns at once while the device computes
    3. save      on checkpoint steps and on a preemption notice: wait for this step, and keep it if it is healthy
    4. prefetch  the next batch is read and sent while the device computes
    5. metrics   of the *previous* step, so that the device never waits for the host
    6. hooks     at their interval: losses with, without and with random neighbors

A checkpoint holds the iterator's position after the batch of its step and the state of the spike limit. So
a resumed run reads the batches and computes the parameters of an uninterrupted one, bit for bit.
"""

import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from retro_jax.config import RunConfig
from retro_jax.core.lock import lock_directory
from retro_jax.core.streams import protect
from retro_jax.data.batches import train_iterator
from retro_jax.models.kernels.known import check_attention
from retro_jax.models.kernels.trial import try_self_attention
from retro_jax.parallel.agreement import on_first
from retro_jax.parallel.on_mesh import OnMesh
from retro_jax.parallel.preemption import LostHost, Preempted, Preemption
from retro_jax.parallel.roll_call import lost_host
from retro_jax.parallel.sharding import check_processes, check_sizes, describe, make_mesh, place_batch
from retro_jax.parallel.watchdog import Watchdog
from retro_jax.run_directory import directory as run_directory
from retro_jax.run_directory.checkpoints import Checkpoints
from retro_jax.run_directory.keeping import Keep
from retro_jax.run_directory.plain_path import require_path
from retro_jax.run_directory.restart import note_saved, require_no_progress, tell_others
from retro_jax.run_directory.whole import abandon_after, steps
from retro_jax.train.health import DivergenceError, SpikeError, SpikeLimit
from retro_jax.train.optimizer import make_optimizer
from retro_jax.train.profiling import Profile
from retro_jax.train.retrieval_check import RetrievalCheck
from retro_jax.train.retrofit import check_start, initial_state
from retro_jax.train.state import TrainState, abstract_state
from retro_jax.train.step import NO_LIMIT, make_train_step
from retro_jax.train.step_log import StepLog
from retro_jax.train.wandb import require_wandb

ROLL_BACKS = 3  # to one checkpoint, before the run is stopped
SETTLE_SECONDS = 10.0  # that the last save gets when another process is gone


def train(run: RunConfig, workdir: Path, profile: str = "", restart: bool = False) -> TrainState:
    """Trains up to `run.train.steps`, from the newest whole checkpoint of `workdir` if there is one.

    Args:
      workdir: the same directory for all processes.
      profile: "START:STOP", the steps to trace; empty: none.
      restart: begin at step 0 where a run has no whole checkpoint left; its files are moved aside.

    Raises:
      ValueError: sizes that the mesh cannot cut, data that does not fit the model, a run directory of another config, one
        in which another process trains, or one that shows progress without a whole checkpoint; a checkpoint of another
        tokenizer or database; storage that cannot hold the last checkpoint.
      DivergenceError: a loss or gradient is not finite; metrics are written, the last good checkpoint stays.
      Preempted: on SIGINT (Ctrl-C), SIGTERM or SIGHUP, after a save. A second SIGINT ends the process at once.
      LostHost: another process is gone.
    """
    protect()
    workdir = Path(workdir)
    if run.model.scan == "auto" and (begun := on_first(lambda: run_directory.begun_scan(workdir))) is not None:
        # The last bits of a step depend on it: a run goes on as it was begun.
        run = replace(run, model=replace(run.model, scan=begun))
    inputs = Inputs(run, workdir)
    profile = Profile(profile, workdir)
    lock = lock_directory(workdir, "train")
    on_first(lock.acquire)
    try:
        on_first(lambda: run_directory.check_claim(workdir, run))
        return _train(run, workdir, inputs, profile, restart)
    finally:
        if jax.process_index() == 0:
            lock.release()


def _train(run: RunConfig, workdir: Path, inputs: "Inputs", profile: Profile, restart: bool) -> TrainState:
    preemption = Preemption(jax.process_count())
    watchdog = Watchdog(workdir, jax.process_index(), jax.process_count(), run.train.stall_seconds)
    loop, ending = None, "done"
    try:
        loop = Loop(run, workdir, inputs, (preemption, watchdog, profile), restart)
        return loop.run_to_end()
    except Preempted:
        ending = "preempted"
        raise
    except Exception as error:
        ending = f"failed: {error}"
        if jax.process_count() > 1 and lost_host(error):
            if loop is not None:
                loop.checkpoints.wait_for_marker(SETTLE_SECONDS)
            loop = None  # closing would wait for the one that is gone
            raise LostHost(watchdog.describe_others()) from error
        raise
    finally:
        if loop is not None:
            loop.close()
        preemption.close()
        watchdog.close(ending)


class Inputs:
    """The inputs of a run, opened and checked before anything is written.

    Raises:
      ValueError, StageError: see `train`.
    """

    def __init__(self, run: RunConfig, workdir: Path):
        require_path(workdir, "--workdir")
        self.mesh = make_mesh(run.train.mesh)
        check_sizes(run, self.mesh)
        check_processes(self.mesh)
        Keep(run)
        placement = OnMesh(self.mesh)
        check_attention(run.model, placement.platform, placement.chip)
        try_self_attention(run.model, placement)
        data = run_directory.data_directory(run, workdir)
        self.fingerprints = run_directory.fingerprints(data)
        self.token_bytes = run_directory.token_bytes(data, run.model)
        self.iterator = train_iterator(data / "joined", run.model, run.train)
        self.check = RetrievalCheck.when_due(run, data / "joined", self.mesh)
        require_wandb(run)
        if not steps(workdir / "checkpoints"):
            check_start(run, self.fingerprints)


class Loop:
    """The parts of one run, and the loop over steps."""

    def __init__(self, run: RunConfig, workdir: Path, inputs: Inputs, around: tuple, restart: bool = False):
        self.run, self.workdir, self.mesh, self.fingerprints = run, workdir, inputs.mesh, inputs.fingerprints
        self.iterator, self.check = inputs.iterator, inputs.check
        self.preemption, self.watchdog, self.profile = around
        self.optimizer = make_optimizer(run.train)
        self.checkpoints = Checkpoints(
            workdir / "checkpoints",
            run_directory.identity(run, inputs.fingerprints),
            Keep(run, lambda: self.log.measured()),
            lambda step: note_saved(workdir, step),
        )
        if self.restore():
            on_first(lambda: tell_others(workdir, self.step, restart))
        else:
            on_first(lambda: require_no_progress(workdir, run.train.checkpoint_every, restart))
        self.saved = self.step
        self.roll_backs = {}  # times, by step
        self.train_step = make_train_step(run, self.optimizer, self.mesh, inputs.token_bytes)
        self.log = StepLog(run, workdir, self.mesh, self.step, self.spikes)

    def restore(self, at_most: int | None = None) -> bool:
        """State, step, iterator and spike limit of the newest whole checkpoint (True), or of a fresh start (False)."""
        self.watchdog.phase("restore")
        restored = self.checkpoints.restore(abstract_state(self.run, self.optimizer, self.mesh), at_most)
        if restored is None:
            self.state, facts = initial_state(self.run, self.optimizer, self.mesh, self.fingerprints), {}
        else:
            self.state, facts = restored
            self.iterator.set_state(facts["iterator"])
        self.spikes = SpikeLimit(self.run.train, facts.get("spikes"))
        self.step = int(self.state.step)
        self.position = self.read_to = self.iterator.get_state()
        return restored is not None

    def run_to_end(self) -> TrainState:
        train = self.run.train
        if jax.process_index() == 0:
            text = f"train: {describe(self.mesh, self.run.model)}, from step {self.step} to {train.steps}"
            print(text, file=sys.stderr)
        if self.step < train.steps:
            self.next_batch()
            self.compile()
        on_first(lambda: run_directory.claim(self.workdir, self.run, self.fingerprints, self.step))
        if self.check_is_due() and on_first(lambda: not self.log.has_check(self.step)):
            self.run_check()  # the process before was stopped before this point
        while self.step < train.steps:
            try:
                self.one_step()
            except SpikeError as spike:
                self.roll_back(spike)
        self.watchdog.phase("save")
        self.checkpoints.require_saved()
        return self.state

    def compile(self) -> None:
        """Compiles the step before the loop, so that compilation is not counted as a step's time."""
        self.watchdog.phase("compile", self.step)
        started = time.perf_counter()
        self.train_step = self.train_step.lower(self.state, self.batch, NO_LIMIT).compile()
        self.log.clock.compile_seconds = time.perf_counter() - started
        print(f"train: compiled the step in {self.log.clock.compile_seconds:.1f} s", file=sys.stderr)
        self.log.clock.restart()
        self.preemption.stop_here("train")

    def one_step(self) -> None:
        train = self.run.train
        self.profile.before(self.step + 1)
        self.watchdog.phase("step", self.step + 1)
        limit = np.float32(self.spikes.device_limit(self.step + 1))
        self.state, sums = self.train_step(self.state, self.batch, limit)
        self.step, self.position = self.step + 1, self.read_to
        self.log.add(self.step, sums, self.batch_crc, self.position)
        if self.preemption.reached():
            self.leave()
        if self.step % train.checkpoint_every == 0 or self.step == train.steps:
            self.save()
        if self.step < train.steps:
            self.next_batch()
        self.log.settle(1, self.checkpoints.stalled)
        self.profile.after(self.step, self.state)
        if self.check_is_due():
            self.run_check()

    def next_batch(self) -> None:
        """Requests the next batch and sends it to the device; its time is the input wait."""
        self.watchdog.phase("read a batch", self.step + 1)
        started = time.perf_counter()
        batch = next(self.iterator)
        tokens = np.ascontiguousarray(batch.tokens)
        self.batch_crc, self.read_to = (zlib.crc32(tokens), tokens.nbytes), self.iterator.get_state()
        self.batch = place_batch(batch, self.mesh)
        self.log.clock.waited += time.perf_counter() - started

    def save(self) -> None:
        """Saves the last step, once it is known to be healthy."""
        self.log.settle(0, self.checkpoints.stalled)
        if self.saved != self.step:
            self.watchdog.phase("save")
            facts = {"iterator": self.position, "spikes": self.spikes.state()}
            self.checkpoints.save(self.step, self.state, facts)
            self.saved = self.step

    def leave(self) -> None:
        """Saves and raises Preempted."""
        self.save()
        self.checkpoints.require_saved()
        raise Preempted(
            f"stopped by {self.preemption.name}; step {self.step} of {self.run.train.steps} is saved. The same command "
            f"continues from it.",
            self.preemption.number,
        )

    def roll_back(self, spike: SpikeError) -> None:
        """Returns to the last scheduled checkpoint and continues with the batches after the spike's.

        Before the first is due that is step 0. If none on schedule is left, it is the newest one before the spike.
        """
        every = self.run.train.checkpoint_every
        left_out = self.spikes.left_out
        self.checkpoints.wait()
        scheduled = (spike.step - 1) // every * every
        if not self.restore(scheduled) and scheduled and not self.restore(spike.step - 1):
            raise DivergenceError(
                f"Step {spike.step}: {spike}, and no whole checkpoint before it is left in {self.checkpoints.directory} to "
                f"go back to. Start again in another --workdir, with a lower config.train.learning_rate or with "
                f"--config.train.on_spike=skip."
            )
        self.roll_backs[self.step] = self.roll_backs.get(self.step, 0) + 1
        if self.roll_backs[self.step] > ROLL_BACKS:
            raise DivergenceError(
                f"Step {spike.step}: {spike}, after {ROLL_BACKS} returns to step {self.step} with other batches each "
                f"time. Lower config.train.learning_rate, or raise config.train.spike_factor, in another --workdir."
            )
        on_first(self.leave_behind)
        self.spikes.left_out = left_out + spike.step - self.step
        print(f"train: {spike}; back to step {self.step}, without the batches up to it.", file=sys.stderr)
        self.saved = self.step
        self.log.rewind(self.step, self.spikes)
        self.iterator.set_state(spike.position)
        self.next_batch()
        self.log.clock.rewind(self.step, self.checkpoints.stalled)

    def leave_behind(self) -> None:
        """Takes the checkpoints after the step that a roll back went to out of the way of the next start."""
        abandon_after(self.checkpoints.directory, self.step)
        try:
            note_saved(self.workdir, self.step)
        except OSError as error:
            print(f"train: saved.json is not rewritten ({error.strerror}).", file=sys.stderr)

    def check_is_due(self) -> bool:
        every = self.run.train.retrieval_check_every
        return self.check is not None and self.step > 0 and self.step % every == 0

    def run_check(self) -> None:
        self.log.settle(0, self.checkpoints.stalled)  # before the check's time passes
        self.watchdog.phase("retrieval check")
        began = time.perf_counter()
        record = self.check.losses(self.state.params, self.preemption.reached)
        if record is None:
            self.leave()
        self.log.write_check(self.step, record, began)

    def close(self) -> None:
        self.profile.close()
        self.log.close()
        self.checkpoints.close()
