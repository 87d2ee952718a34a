"""`retro train` in real processes on this machine, one or several to a run, with virtual CPU devices."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retro_jax.run_directory.checkpoints import load_params
from retro_jax.train.clock import OF_THE_MACHINE
from retro_jax.train.metrics import read_metrics
from retro_jax.train.optimizer import flatten

TESTS = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def start_run(
    workdir: Path,
    data: Path,
    *more: str,
    processes: int = 1,
    devices: int = 2,
    program: Sequence[str] = (),
    model: str = "decoder",
) -> list[subprocess.Popen]:
    """Starts a run of `processes` with `devices` in all; their output goes to WORKDIR.PROCESS.log.

    Args:
      more: arguments of `retro train`.
      program: what Python runs in place of `-m launch.train`.
    """
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    arguments = [f"--config={TESTS / 'tiny_run.py'}:{model}", f"--workdir={workdir}", f"--config.data.directory={data}"]
    arguments += ["--config.train.mesh.data=-1", *more]
    port = free_port()
    running = []
    for process in range(processes):
        several = [f"--coordinator=localhost:{port}", f"--processes={processes}", f"--process={process}"]
        command = [
            sys.executable,
            *(program or ["-m", "launch.train"]),
            *arguments,
            *(several if processes > 1 else []),
        ]
        with open(log_path(workdir, process), "ab") as log:
            running.append(
                subprocess.Popen(command, env=environment, cwd=TESTS.parent, stdout=log, stderr=subprocess.STDOUT)
            )
    return running


def wait_for(workdir: Path, step: int, running: Sequence[subprocess.Popen], seconds: float = 240) -> None:
    """Returns when the metrics of `step` are written; raises where a process ends before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        path = workdir / "metrics.jsonl"
        if path.exists() and any(record["step"] >= step for record in read_metrics(path)):
            return
        if all(process.poll() is not None for process in running):
            break
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached:\n{log_path(workdir).read_text()[-3000:]}")


def log_path(workdir: Path, process: int = 0) -> Path:
    return workdir.with_name(f"{workdir.name}.{process}.log")


def finish(running: Sequence[subprocess.Popen], seconds: float = 240) -> list[int]:
    """Their exit codes; ends what is not done in time."""
    try:
        return [process.wait(seconds) for process in running]
    finally:
        for process in running:
            process.kill()


def run_to_end(workdir: Path, data: Path, *more: str, **options) -> list[int]:
    return finish(start_run(workdir, data, *more, **options))


def differences(found: Path, expected: Path, step: int) -> list[str]:
    """What two runs differ in: a parameter's bits at `step`, or a record that is not of the machine; [] is what we want."""
    one, other = (flatten(load_params(workdir, step)[0]) for workdir in (found, expected))
    lines = [f"parameter {path}" for path in expected_paths(one, other) if not np.array_equal(one[path], other[path])]
    records = [
        [
            {key: value for key, value in record.items() if key not in OF_THE_MACHINE}
            for record in sorted(read_metrics(workdir / "metrics.jsonl"), key=place)
        ]
        for workdir in (found, expected)
    ]
    if len(records[0]) != len(records[1]):
        lines.append(f"{len(records[0])} records instead of {len(records[1])}")
    for here, there in zip(*records, strict=False):
        lines += [f"step {there['step']}: {key}" for key in there if here.get(key) != there[key]]
    return lines


def place(record: dict) -> tuple:
    """By step; a retrieval check stands before or behind its step's record, as the run was stopped between or not."""
    return record["step"], "loss" in record


def expected_paths(one: dict, other: dict) -> list:
    assert sorted(one) == sorted(other)
    return sorted(one)
