"""launch/hosts/gpu_box.sh and its loop: restarts only after exit code 75, and stop saves."""

import os
import signal
import subprocess

import pytest
from launch_fixture import ROOT, launch, lines, stand_in, wait_for


@pytest.fixture
def box(tmp_path):
    """box(verb, *flags) on one work directory; whatever still runs at the end is stopped."""
    retro = stand_in(tmp_path)
    workdir = tmp_path / "a run's $(dir)"

    def call(verb, *flags):
        return launch("gpu_box", verb, f"--workdir={workdir}", *flags, retro=retro)

    call.workdir, call.log = workdir, workdir / "launch" / "train.log"
    yield call
    call("stop")


def ended(box) -> str:
    found = [line for line in lines(box.log) if line.startswith("train_loop: ended")]
    return found[-1] if found else ""


def steps(box) -> list[int]:
    return [int(line) for line in lines(box.workdir / "steps-0.txt")]


def test_preempted_and_saved_runs_again_until_done(box):
    result = box("start", "--config=x.py", "--config.steps=8", "--config.preempt_at=3", "--", "--profile=1:2 'a'")
    assert result.returncode == 0, result.stderr
    assert wait_for(lambda: ended(box), "the end") == "train_loop: ended with exit code 0."
    starts = lines(box.workdir / "starts-0.txt")
    assert len(starts) == 2 and starts[0] == starts[1]
    assert "\"--profile=1:2 'a'\"" in starts[0]  # quotes and spaces arrive as they were
    assert steps(box) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert "not running" in box("watch").stderr


@pytest.mark.parametrize("code", [1, 2, 137])
def test_other_ends_are_not_repeated(box, code):
    assert box("start", "--config=x.py", f"--config.exit={code}").returncode == 0
    assert wait_for(lambda: ended(box), "the end") == f"train_loop: ended with exit code {code}."
    assert len(lines(box.workdir / "starts-0.txt")) == 1


def test_stop_saves_and_restart_goes_on(box):
    flags = ("--config=x.py", "--config.steps=100000", "--config.seconds=0.05")
    assert box("start", *flags).returncode == 0
    wait_for(lambda: len(steps(box)) > 2, "a few steps")
    second = box("start", *flags)
    assert second.returncode == 1 and "is being trained already" in second.stderr
    assert box("stop").returncode == 0
    assert ended(box) == "train_loop: ended with exit code 75 after a stop."
    before = len(steps(box))
    assert box("restart", *flags).returncode == 0
    wait_for(lambda: len(steps(box)) > before + 2, "steps after the restart")
    assert box("restart", *flags).returncode == 0  # of one that runs: saved, ended, started
    wait_for(lambda: len(lines(box.workdir / "starts-0.txt")) == 3, "the third start")
    box("stop")
    done = steps(box)
    assert done == list(range(1, len(done) + 1))


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_the_loop_hands_every_signal_on(tmp_path, number):
    loop = [str(ROOT / "launch" / "hosts" / "train_loop.sh"), str(tmp_path / "state"), str(stand_in(tmp_path))]
    train = ["train", f"--workdir={tmp_path / 'run'}", "--config.steps=100000", "--config.seconds=0.05"]
    process = subprocess.Popen([*loop, *train], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with process:
        wait_for(lambda: lines(tmp_path / "run" / "steps-0.txt"), "a step")
        process.send_signal(number)
        assert process.wait() == 75
        assert "train_loop: ended with exit code 75 after a stop." in process.stderr.read()


def test_what_a_killed_loop_leaves_running_keeps_the_lock(box):
    """Guards against a second training in the same run."""
    flags = ("--config=x.py", "--config.steps=100000", "--config.seconds=0.05")
    assert box("start", *flags).returncode == 0
    wait_for(lambda: steps(box), "a step")
    os.kill(int((box.workdir / "launch" / "pid").read_text()), signal.SIGKILL)
    second = box("start", *flags)
    assert second.returncode == 1 and "is being trained already" in second.stderr
    assert box("stop").returncode == 0
    before = len(steps(box))
    assert box("start", *flags).returncode == 0
    wait_for(lambda: len(steps(box)) > before, "steps after the new start")


def test_what_was_killed_altogether_leaves_no_lock(box):
    assert box("start", "--config=x.py", "--config.steps=100000", "--config.seconds=0.05").returncode == 0
    wait_for(lambda: steps(box), "a step")
    os.killpg(int((box.workdir / "launch" / "pid").read_text()), signal.SIGKILL)
    wait_for(lambda: "not running" in box("stop").stderr, "the lock")
    assert box("start", "--config=x.py", "--config.steps=3").returncode == 0
