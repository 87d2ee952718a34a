"""SIGINT, SIGTERM, SIGHUP: every loop stops at a safe point, saves, and continues later with the same bits."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from processes import differences, finish, log_path, start_run, wait_for
from training_fixture import BASELINE, MODEL, build_data, make_run

from launch import quickstart
from launch.command import steps as launch_steps
from retro_jax.config import MeshConfig
from retro_jax.parallel.preemption import SIGNALS, Interrupted, Preempted, Preemption, Signals, exit_code, kept_handlers
from retro_jax.run_directory.checkpoints import Checkpoints, load_params
from retro_jax.run_directory.whole import steps
from retro_jax.train.loop import Loop, train
from retro_jax.train.metrics import read_metrics
from retro_jax.train.retrieval_check import RetrievalCheck

MESH = MeshConfig(data=-1)
SMALL = dataclasses.replace(MODEL, layers=1, retrieval_layers=(1,))
RUN = {"steps": 6, "checkpoint_every": 4, "retrieval_check_every": 3, "mesh": MESH}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """The undisturbed run."""
    workdir = tmp_path_factory.mktemp("whole")
    (workdir / "data").symlink_to(data)
    train(make_run(SMALL, **RUN), workdir)
    return workdir


def after(function, when, number=signal.SIGTERM):
    """`function` that sends this process a signal after its call number `when`."""
    calls = [0]

    def wrapped(*arguments, **keywords):
        result = function(*arguments, **keywords)
        calls[0] += 1
        if calls[0] == when:
            os.kill(os.getpid(), number)
        return result

    return wrapped


def stop_in_a_step(monkeypatch, number):
    monkeypatch.setattr(Loop, "next_batch", after(Loop.next_batch, 3, number))
    return 3


def stop_in_a_save(monkeypatch, number):
    monkeypatch.setattr(Checkpoints, "save", after(Checkpoints.save, 1, number))
    return 5  # the save of step 4 ends, and so does the step after it


def stop_in_a_check(monkeypatch, number):
    make = RetrievalCheck.__init__

    def made(check, *arguments):
        make(check, *arguments)
        check.loss = after(check.loss, 2, number)

    monkeypatch.setattr(RetrievalCheck, "__init__", made)
    return 3


@pytest.mark.parametrize(
    ("stop", "number", "code"),
    [
        pytest.param(stop_in_a_step, signal.SIGTERM, 75, marks=pytest.mark.slow),
        (stop_in_a_save, signal.SIGINT, 130),
        (stop_in_a_check, signal.SIGHUP, 75),
    ],
)
def test_a_notice_in_every_loop_saves_and_changes_nothing(tmp_path, monkeypatch, data, whole, stop, number, code):
    (tmp_path / "data").symlink_to(data)
    before = [signal.getsignal(number) for number in SIGNALS]
    with monkeypatch.context() as patch:
        step = stop(patch, number)
        words = f"{number.name}; step {step} of 6 is saved. The same command continues from it"
        with pytest.raises(Preempted, match=words) as stopped:
            train(make_run(SMALL, **RUN), tmp_path)
    assert exit_code(stopped.value.number) == code
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert steps(tmp_path / "checkpoints")[-1] == step
    assert load_params(tmp_path)[2] == step  # whole
    train(make_run(SMALL, **RUN), tmp_path)
    assert differences(tmp_path, whole, 6) == []
    checks = [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl") if "validation_loss_on" in record]
    assert checks == [3, 6]  # the one that was cut short is done again


def test_a_notice_before_the_first_step_saves_nothing(tmp_path, monkeypatch, data):
    (tmp_path / "data").symlink_to(data)
    monkeypatch.setattr(Loop, "restore", after(Loop.restore, 1))
    with pytest.raises(Preempted, match="nothing was half-written. Run the same `retro train` again"):
        train(make_run(BASELINE, **RUN), tmp_path)
    assert steps(tmp_path / "checkpoints") == []


def test_a_turn_that_all_agree_on_is_asked_of_jax(monkeypatch):
    """With several processes jax carries the notice: every turn has the next number, and True persists."""
    from jax.experimental import multihost_utils

    asked = []
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda turn: asked.append(turn) or turn == 3, raising=True
    )
    handler = signal.getsignal(signal.SIGTERM)
    preemption = Preemption(processes=2)
    assert signal.getsignal(signal.SIGTERM) == handler  # jax's own is left alone
    assert [preemption.reached() for _ in range(5)] == [False, False, True, True, True]
    assert asked == [1, 2, 3]
    preemption.close()


@pytest.mark.slow
def test_the_command_ends_with_75_and_says_how_to_go_on(tmp_path):
    build_data(tmp_path / "data")
    workdir = tmp_path / "run"
    running = start_run(workdir, tmp_path / "data", "--config.train.steps=5000", devices=1)
    wait_for(workdir, 2, running)
    running[0].send_signal(signal.SIGTERM)
    assert finish(running) == [75]
    assert "is saved. The same command continues from it." in log_path(workdir).read_text()
    params, _, step = load_params(workdir)
    assert step >= 2 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "codes"), [(signal.SIGINT, [75, 130]), (signal.SIGHUP, [75, 75])])
def test_each_signal_to_one_of_two_processes_saves_on_both(tmp_path, data, number, codes):
    """jax carries SIGTERM alone."""
    workdir = tmp_path / "run"
    far = ["--config.train.steps=5000", "--config.train.checkpoint_every=5000"]
    running = start_run(workdir, data, *far, processes=2)
    wait_for(workdir, 2, running)
    running[1].send_signal(number)
    assert finish(running) == codes
    assert "or a signal to another process; step" in log_path(workdir, 0).read_text()
    assert steps(workdir / "checkpoints") == [load_params(workdir)[2]]


@pytest.mark.parametrize("number", SIGNALS)
def test_work_that_needs_no_save_stops_at_once(number):
    before = [signal.getsignal(other) for other in SIGNALS]
    with pytest.raises(Interrupted, match=number.name), Signals():
        try:
            os.kill(os.getpid(), number)
        except Exception:  # of a library on its way
            pytest.fail("it was taken for an error")
    assert [signal.getsignal(other) for other in SIGNALS] == before


def test_an_ignored_signal_stays_ignored():
    """`nohup` ignores SIGHUP, a script's background job SIGINT."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
        assert Signals.first is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_library_that_takes_the_signal_gives_it_back():
    with Signals():
        handler = signal.getsignal(signal.SIGTERM)
        with kept_handlers():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        assert signal.getsignal(signal.SIGTERM) == handler


def test_a_thread_may_train():
    """Python delivers signals to the main thread alone."""
    answers = []

    def work():
        preemption = Preemption(processes=1)
        answers.append(preemption.reached())
        preemption.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]


LONG_CALL = """
import hashlib, sys
from retro_jax.parallel.preemption import Signals
with Signals("stopping at the next safe point"):
    print("begun", file=sys.stderr, flush=True)
    hashlib.pbkdf2_hmac("sha256", b"x", b"x", 10**9)  # minutes in C, as a compilation is
"""


def test_a_second_ctrl_c_ends_even_a_long_call_at_once():
    process = subprocess.Popen([sys.executable, "-c", LONG_CALL], stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stderr.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)  # a scheduler that asks twice does not end it
        assert "SIGTERM: stopping at the next safe point; Ctrl-C twice" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert "SIGTERM" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert "SIGINT: stopping at the next safe point; Ctrl-C once more stops it" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.stderr.read() == "Ctrl-C again: stopped at once; finished files are complete.\n"


class Step:
    """Stands for a step's process: ends by itself some time after its parent got a signal."""

    number, heard = signal.SIGTERM, None

    def __init__(self, command):
        Step.heard = threading.Event()

    def wait(self):
        os.kill(os.getpid(), self.number)
        assert self.heard.wait(60)
        return 75

    def send_signal(self, number):
        assert number == self.number
        self.heard.set()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)])
def test_quickstart_hands_a_signal_on_and_waits(tmp_path, monkeypatch, capsys, number, code):
    monkeypatch.setattr(Step, "number", number)
    monkeypatch.setattr(launch_steps.subprocess, "Popen", Step)
    monkeypatch.setattr(launch_steps, "in_foreground", lambda: False)
    assert quickstart.main(["--config=configs/quickstart.py:smoke", f"--workdir={tmp_path}"]) == code
    assert f"retro quickstart: interrupted by {number.name}. Finished files are kept" in capsys.readouterr().err


def test_quickstart_leaves_ctrl_c_to_the_terminal(monkeypatch):
    """Guards against sending Ctrl-C twice to the step, which would end it without its save."""

    class Quiet(Step):
        def send_signal(self, number):
            pytest.fail("handed on")

    def in_foreground():
        Step.heard.set()
        return True

    monkeypatch.setattr(Step, "number", signal.SIGINT)
    monkeypatch.setattr(launch_steps.subprocess, "Popen", Quiet)
    monkeypatch.setattr(launch_steps, "in_foreground", in_foreground)
    assert launch_steps.run_step(launch_steps.Step("", "train", [])) == 75
