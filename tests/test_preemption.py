"""SIGTERM: every loop stops at a safe point, saves, and goes on later as if nothing had been."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest
from processes import differences, finish, log_path, start_run, wait_for
from training_fixture import BASELINE, MODEL, build_data, compiled_once, make_run

from retro_jax.checkpoints import Checkpoints, load_params
from retro_jax.config import MeshConfig
from retro_jax.metrics import read_metrics
from retro_jax.preemption import Preempted, Preemption
from retro_jax.retrieval_check import RetrievalCheck
from retro_jax.training import Loop, train
from retro_jax.whole import steps

MESH = MeshConfig(data=-1)
SMALL = dataclasses.replace(MODEL, layers=1, retrieval_layers=(1,))
RUN = {"steps": 6, "checkpoint_every": 4, "retrieval_check_every": 3, "mesh": MESH}


pytestmark = pytest.mark.usefixtures(compiled_once.__name__)


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


def after(function, when, calls=None):
    """`function` that sends this process SIGTERM after its call number `when`."""
    calls = [0] if calls is None else calls

    def wrapped(*arguments, **keywords):
        result = function(*arguments, **keywords)
        calls[0] += 1
        if calls[0] == when:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    return wrapped


def stop_in_a_step(monkeypatch):
    monkeypatch.setattr(Loop, "next_batch", after(Loop.next_batch, 3))
    return 3


def stop_in_a_save(monkeypatch):
    monkeypatch.setattr(Checkpoints, "save", after(Checkpoints.save, 1))
    return 5  # the save of step 4 ends, and so does the step after it


def stop_in_a_check(monkeypatch):
    make = RetrievalCheck.__init__

    def made(check, *arguments):
        make(check, *arguments)
        check.loss = after(check.loss, 2)

    monkeypatch.setattr(RetrievalCheck, "__init__", made)
    return 3


@pytest.mark.parametrize(
    "stop", [pytest.param(stop_in_a_step, marks=pytest.mark.slow), stop_in_a_save, stop_in_a_check]
)
def test_a_notice_in_every_loop_saves_and_changes_nothing(tmp_path, monkeypatch, data, whole, stop):
    (tmp_path / "data").symlink_to(data)
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        step = stop(patch)
        with pytest.raises(Preempted, match=f"SIGTERM; step {step} of 6 is saved. The same command goes on from it"):
            train(make_run(SMALL, **RUN), tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before
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
    """With several processes jax carries the notice: every turn has the next number, and True stays."""
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
    assert "is saved. The same command goes on from it." in log_path(workdir).read_text()
    params, _, step = load_params(workdir)
    assert step >= 2 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
