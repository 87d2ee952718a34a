"""Runs the trainings and evaluations of a sweep on a Ray cluster: Ray places them by the devices that they ask for.

The process of a step runs on the node that Ray chose and writes to the shared storage. It holds a lock of its own there, so
that a step which outlives its node's Ray process is waited for and not done twice. Builds run from here with `--engine=ray`:
their shards spread over the cluster by themselves.
"""

import dataclasses
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from absl import flags

from data_pipeline.stages.run import StageError
from launch.command.steps import as_of_a_shell
from launch.sweep.plan import Plan, Task
from launch.sweep.run import Here, Running
from launch.sweep.state import log_path, one_at_a_time
from retro_jax.config import RunConfig
from retro_jax.core.lock import FileLock
from retro_jax.parallel.preemption import EXIT_CODE

SAVING = 900.0  # seconds in which a step saves and ends


@contextmanager
def ray_starter(plan: Plan, values: flags.FlagValues) -> Iterator:
    """What `run_tasks` starts tasks with, connected to the cluster of the flags.

    Raises:
      StageError: as `RayEngine`.
    """
    from data_pipeline.stages.ray import RayJobs

    name = f"driver-{socket.gethostname()}-{os.getpid()}"
    with _SeenByNodes(plan.workdir, name) as lock, RayJobs(values.address, lock, values.accelerator) as jobs:
        build = ["--engine=ray", f"--address={values.address}", f"--accelerator={values.accelerator}"]
        yield partial(_start, jobs, build)


class _SeenByNodes(FileLock):
    """The file by which nodes show that they have the same storage."""

    error = busy = StageError

    def __init__(self, workdir: Path, name: str):
        self.directory = Path(workdir).absolute()
        super().__init__(self.directory / "state" / f"{name}.lock", "One process has one lock", "Run it again.")


def _start(jobs, build: Sequence[str], plan: Plan, task: Task, lock: FileLock) -> Running:
    if task.step.verb == "build":
        step = dataclasses.replace(task.step, arguments=[*task.step.arguments, *build])
        return Here(plan, dataclasses.replace(task, step=step), lock)
    work = partial(run_on_node, str(plan.workdir), task.key, [f"launch.{task.step.verb}", *task.step.arguments])
    return _Job(jobs, jobs.start(work, devices(task.run)), log_path(plan.workdir, task.key))


def devices(run: RunConfig) -> int:
    """How many accelerators a step asks for: those of its mesh, one for an axis that takes what is left."""
    return math.prod(max(size, 1) for size in dataclasses.astuple(run.train.mesh))


class _Job:
    def __init__(self, jobs, job, log: Path):
        self._jobs, self._job, self._log = jobs, job, log

    def poll(self) -> int | None:
        try:
            return self._jobs.poll(self._job)
        except StageError as error:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with open(self._log, "a", encoding="utf-8") as log:
                print(error, file=log)
            return 1

    def signal(self, number: int) -> None:
        self._jobs.stop(self._job)


def run_on_node(workdir: str, key: str, words: Sequence[str]) -> int:
    """Runs `python -m WORDS` on this node under the step's lock; returns its exit code."""
    log, command = log_path(Path(workdir), key), [sys.executable, "-m", *words]
    log.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(Path(workdir), f"{key}.node") as lock, open(log, "a", encoding="utf-8") as output:
        print(f"$ {shlex.join(command)}  # on {socket.gethostname()}", file=output, flush=True)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, pass_fds=(lock.fileno(),)
        )
        try:
            return as_of_a_shell(process.wait())
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait(SAVING)
            return EXIT_CODE
