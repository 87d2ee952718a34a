"""launch/hosts/slurm.sh against a real slurmctld and two slurmd on this machine; run by `make test-slurm`.

The whole log (daemons, jobs, the run) is left in runs/test-slurm.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from launch_fixture import ROOT, launch, lines, program, stand_in, wait_for
from places import FIXTURES
from slurm_machine import PACKAGES, missing, slurm_machine
from training_fixture import build_data

from retro_jax.run_directory.checkpoints import load_params

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
LOGS = ROOT / "runs" / "test-slurm"


@pytest.fixture(scope="module")
def slurm():
    """SLURM's variables; the logs stay."""
    if missing():
        pytest.fail(f"needs Debian's packages: apt-get install {' '.join(PACKAGES)} (missing: {', '.join(missing())})")
    if LOGS.exists():
        shutil.rmtree(LOGS)
    with slurm_machine(LOGS / "cluster") as variables:
        yield variables


@pytest.fixture
def job(slurm, request):
    """job(verb, *flags) runs launch/hosts/slurm.sh on two nodes; job.state() is what scontrol says of the last job."""
    workdir = LOGS / request.node.name
    retro = stand_in(workdir)

    def call(verb, *flags, retro=retro, **variables):
        words = [f"--workdir={workdir}", "--nodes=2", *flags]
        result = launch("slurm", verb, *words, retro=retro, JAX_PLATFORMS="cpu", **slurm, **variables)
        if result.stdout.startswith("Submitted batch job"):
            call.number = result.stdout.split()[-1]
        return result

    def state() -> dict[str, str]:
        shown = subprocess.run(
            ["scontrol", "show", "job", call.number], env=os.environ | slurm, capture_output=True, text=True, check=True
        )
        return dict(word.split("=", 1) for word in shown.stdout.split() if "=" in word)

    call.workdir, call.state = workdir, state
    call.log = lambda: "\n".join(lines(workdir / "launch" / f"slurm-{call.number}.log"))
    yield call
    call("stop")


def task(job, number: int) -> int:
    """The process of a task that runs now, or 0."""
    wanted = {f"SLURM_JOB_ID={job.number}", f"SLURM_PROCID={number}"}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            variables = set((path / "environ").read_bytes().decode(errors="replace").split("\0"))
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted <= variables and Path(os.fsdecode(words[0])).name.startswith("python"):
            return int(path.name)
    return 0


def ended(job) -> bool:
    return job.state()["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def steps(job, number: int) -> list[str]:
    return lines(job.workdir / f"steps-{number}.txt")


def starts(job, number: int) -> int:
    return len(lines(job.workdir / f"starts-{number}.txt"))


def test_a_killed_task_is_requeued_and_finishes(job):
    assert job("start", "--config=x.py", "--config.steps=60", "--config.seconds=0.1").returncode == 0
    wait_for(lambda: len(steps(job, 1)) > 5 and task(job, 1), "a few steps of task 1", 60)
    again = job("start", "--config=x.py")
    assert again.returncode == 1 and "is in the queue already" in again.stderr
    os.kill(task(job, 1), signal.SIGKILL)
    wait_for(lambda: ended(job), "the end of the job", 120)
    state = job.state()
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("COMPLETED", "0:0", "1")
    assert "the step ended with 137; asking to be requeued" in job.log()
    assert [starts(job, number) for number in (0, 1)] == [2, 2]
    assert [steps(job, number) for number in (0, 1)] == [[str(step) for step in range(1, 61)]] * 2
    assert "the job has left the queue" in job("watch").stderr


def test_preempted_and_saved_is_requeued(job):
    assert job("start", "--config=x.py", "--config.steps=10", "--config.preempt_at=4").returncode == 0
    wait_for(lambda: ended(job), "the end of the job", 120)
    assert (job.state()["JobState"], job.state()["Restarts"]) == ("COMPLETED", "1")
    assert "the step ended with 75; asking to be requeued" in job.log()
    assert [steps(job, number) for number in (0, 1)] == [[str(step) for step in range(1, 11)]] * 2


@pytest.mark.parametrize("code", ["1", "2"])
def test_a_mistake_is_not_repeated(job, code):
    assert job("start", "--config=x.py", f"--config.exit={code}").returncode == 0
    wait_for(lambda: ended(job), "the end of the job", 60)
    assert (job.state()["JobState"], job.state()["ExitCode"]) == ("FAILED", f"{code}:0")
    assert (job.state()["Restarts"], starts(job, 0)) == ("0", 1)


def test_stop_saves_and_restart_goes_on(job):
    endless = ("--config=x.py", "--config.steps=100000", "--config.seconds=0.1")
    assert job("start", *endless).returncode == 0
    wait_for(lambda: len(steps(job, 1)) > 3, "a few steps", 60)
    assert job("restart", *endless).returncode == 0  # of a running job: requeued
    wait_for(lambda: starts(job, 1) == 2 and task(job, 1), "a second start", 60)
    assert job("stop").returncode == 0
    wait_for(lambda: ended(job), "the end of the job", 60)
    asked, _, answer = job.log().splitlines()[-3:]
    assert "the step ended with 75; asking to be requeued" in asked
    assert answer.endswith("not requeued")
    before = len(steps(job, 0))
    assert job("restart", *endless).returncode == 0  # of one that has left the queue: submitted
    wait_for(lambda: len(steps(job, 0)) > before, "steps after the restart", 60)


def test_the_time_limit_saves_before_it_requeues(job):
    """The signal two minutes before the end reaches the tasks through the batch script."""
    assert (
        job("start", "--config=x.py", "--config.steps=100000", "--config.seconds=0.2", "--time=0:02:00").returncode == 0
    )
    wait_for(lambda: "asking to be requeued" in job.log(), "the signal", 90)
    assert "the step ended with 75; asking to be requeued" in job.log()
    job("stop")


CONFIG = """
from ml_collections import ConfigDict
from training_fixture import make_run

from retro_jax.config import MeshConfig, to_dict


def get_config(argument=""):
    mesh = MeshConfig(data=2, fsdp=1, tensor=1)
    return ConfigDict(to_dict(make_run(steps=40, checkpoint_every=4, mesh=mesh)))
"""


@pytest.fixture
def real(job, tmp_path_factory):
    """The program `retro`, the flags of a run of 40 steps on two devices, and its data."""
    tests = FIXTURES
    directory = tmp_path_factory.mktemp("real")
    config = directory / "tiny.py"
    config.write_text(CONFIG)
    data = build_data(directory / "data")
    path = f"PYTHONPATH={ROOT}:{tests}"
    retro = program(directory / "retro", f'#!/bin/sh\nexec env {path} {sys.executable} -m launch "$@"\n')
    return retro, [f"--config={config}", f"--config.data.directory={data}"]


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    params, _, step = load_params(workdir)
    assert step == 40
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def batches(workdir: Path) -> dict[int, int]:
    records = map(json.loads, lines(workdir / "metrics.jsonl"))
    return {record["step"]: record["batch_crc32"] for record in records if "batch_crc32" in record}


def test_training_whose_task_is_killed_ends_as_if_nothing_had_been(job, real):
    """Two tasks of `retro train` with one device each; SIGKILL of one; requeued, resumed, finished: the parameters and
    batches are bit for bit those of one process with two devices that nobody disturbed."""
    retro, flags = real
    alone = job.workdir / "alone"
    two = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [retro, "train", *flags, f"--workdir={alone}"], cwd=ROOT, env=two, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

    assert job("start", *flags, retro=retro, XLA_FLAGS="").returncode == 0
    checkpoints = job.workdir / "checkpoints"
    wait_for(lambda: (checkpoints / "8.whole.json").exists() or ended(job), "the checkpoint of step 8", 900)
    os.kill(task(job, 1), signal.SIGKILL)
    wait_for(lambda: ended(job), "the end of the job", 900)
    state = job.state()
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("COMPLETED", "0:0", "1"), job.log()
    disturbed, undisturbed = parameters(job.workdir), parameters(alone)
    assert disturbed.keys() == undisturbed.keys()
    assert [name for name in disturbed if not np.array_equal(disturbed[name], undisturbed[name])] == []
    assert batches(job.workdir) == batches(alone)
