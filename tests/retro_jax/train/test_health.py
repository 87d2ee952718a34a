"""Spikes, alarms, storage errors, and the machine's figures in the metrics."""

import dataclasses
import errno
import io
import json
import math
import re
import sys
import types

import jax
import numpy as np
import pytest
from processes import differences
from training_fixture import BASELINE, build_data, make_run

from retro_jax.config import MeshConfig, completed, to_dict
from retro_jax.core.storage import storage_fault
from retro_jax.parallel import watchdog
from retro_jax.parallel.sharding import make_mesh, place_batch
from retro_jax.run_directory import checkpoints as checkpoints_module
from retro_jax.run_directory import directory as run_directory
from retro_jax.run_directory.checkpoints import load_params
from retro_jax.run_directory.whole import find_fault, newest_whole, steps
from retro_jax.train import clock, metrics
from retro_jax.train.health import DivergenceError, SpikeLimit, retrieval_alarm
from retro_jax.train.loop import Loop, train
from retro_jax.train.metrics import MetricWriter, read_metrics
from retro_jax.train.optimizer import make_optimizer
from retro_jax.train.state import create_state
from retro_jax.train.step import make_train_step
from retro_jax.train.wandb import plain_id

SMALL = dataclasses.replace(BASELINE, layers=1)
MESH = MeshConfig(data=-1)
RUN = {"steps": 12, "checkpoint_every": 3, "spike_window": 3, "spike_factor": 2.0, "mesh": MESH}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def workdir(tmp_path, data):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "data").symlink_to(data)
    return tmp_path / "run"


def test_the_limit_is_a_multiple_of_the_running_median():
    spikes = SpikeLimit(make_run(on_spike="skip", spike_window=3, spike_factor=4.0).train)
    limits = []
    for step, norm in enumerate([1.0, 9.0, 2.0, 3.0, 100.0, 5.0], start=1):
        limits.append(spikes.limit(step))  # the norm of the step before is not known yet when it is dispatched
        spikes.add(step, norm)
    assert limits == [math.inf] * 4 + [4 * 2.0, 4 * 3.0]  # of 1, 9, 2 and of 9, 2, 3


def test_the_limit_goes_on_from_a_checkpoint():
    train_config = make_run(on_spike="skip", spike_window=3, spike_factor=4.0).train
    spikes = SpikeLimit(train_config)
    for step in range(1, 9):
        spikes.add(step, float(step))
    again = SpikeLimit(train_config, json.loads(json.dumps(spikes.state())))
    assert again.limit(9) == spikes.limit(9) == 4 * 6.0
    assert len(spikes.state()["norms"]) == 4


def test_a_skipped_update_leaves_parameters_and_moments_bit_for_bit():
    run = make_run(SMALL, on_spike="skip", mesh=MESH)
    mesh, optimizer = make_mesh(run.train.mesh), make_optimizer(run.train)
    step = make_train_step(run, optimizer, mesh, np.ones(64, np.int32))
    rng = np.random.default_rng(0)
    from retro_jax.data.batches import Batch

    tokens = rng.integers(3, 64, (8, 16)).astype(np.int32)
    segments, neighbors = np.zeros((8, 4), np.int32), np.zeros((8, 4, 0, 8), np.int32)
    batch = place_batch(Batch(tokens, tokens, np.ones((8, 16), np.float32), segments, neighbors), mesh)
    state, sums = step(create_state(run, optimizer, mesh), batch)
    assert sums["skipped"] == 0
    before = jax.device_get(state)
    state, sums = step(state, batch, np.float32(float(sums["grad_norm"]) / 100))
    assert sums["skipped"] == 1 and int(state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), before.params)
    adam, schedule = state.opt_state[1][0], state.opt_state[1][2]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(adam), before.opt_state[1][0])
    assert int(schedule.count) == 2  # the learning rate follows the step
    before = jax.device_get(state)
    state, sums = step(state, batch, np.float32(1e9))
    assert sums["skipped"] == 0
    assert not np.array_equal(state.params["embedding"], before.params["embedding"])


def spiked(monkeypatch, at):
    """Makes the batches of some global numbers spike: their loss is divided by a hundredth of the tokens."""
    next_batch = Loop.next_batch

    def spiking(loop):
        next_batch(loop)
        if loop.read_to["next_index"] - 1 in at:
            loop.batch = dataclasses.replace(loop.batch, loss_mask=loop.batch.loss_mask / 100)

    monkeypatch.setattr(Loop, "next_batch", spiking)


def stopping(monkeypatch, at):
    """Makes the loop fail once when it reads the batch after step `at`."""
    next_batch, fallen = Loop.next_batch, []

    def falling(loop):
        if loop.step == at and not fallen:
            fallen.append(at)
            raise KeyboardInterrupt
        next_batch(loop)

    monkeypatch.setattr(Loop, "next_batch", falling)


@pytest.mark.parametrize(
    ("action", "falls"),
    [
        ("roll_back", [8]),
        pytest.param("skip", [5, 8, 10], marks=pytest.mark.slow),
        pytest.param("roll_back", [5, 10], marks=pytest.mark.slow),
    ],
)
def test_a_spike_is_left_out_and_a_resumed_run_does_the_same(tmp_path, data, monkeypatch, capfd, action, falls):
    """The batch of step 8 spikes. Runs that fail before, at and after it end with the same bits."""
    spiked(monkeypatch, {7})
    runs = []
    for at in (None, *falls):
        workdir = tmp_path / f"falls-{at}"
        workdir.mkdir()
        (workdir / "data").symlink_to(data)
        with monkeypatch.context() as patch:
            stopping(patch, at)
            if at is not None:
                with pytest.raises(KeyboardInterrupt):
                    train(make_run(SMALL, on_spike=action, **RUN), workdir)
            train(make_run(SMALL, on_spike=action, **RUN), workdir)
        runs.append(workdir)
    records = read_metrics(runs[0] / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 13))
    assert records[-1]["skipped_steps"] == (1 if action == "skip" else 2)  # back from 8 to 6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_params(runs[0], 12)[0]))
    for workdir in runs[1:]:
        assert differences(workdir, runs[0], 12) == []
    if action == "roll_back":
        assert "is above the limit" in capfd.readouterr().err
        crcs = [record["batch_crc32"] for record in records]
        assert len(set(crcs)) == 12  # no batch is seen twice, and two are never trained on


def test_rolling_back_again_and_again_is_given_up(workdir, monkeypatch):
    spiked(monkeypatch, set(range(7, 100)))
    with pytest.raises(DivergenceError, match="after 3 returns to step 6 .*raise config.train.spike_factor"):
        train(make_run(SMALL, on_spike="roll_back", **RUN), workdir)


def test_the_alarm_wants_every_check_of_the_window_bad():
    good, bad = ({"validation_loss_on": on, "validation_loss_random": 2.0} for on in (1.9, 2.0))
    step = {"step": 1, "loss": 3.0}
    assert not retrieval_alarm([bad, bad], 3)
    assert retrieval_alarm([good, bad, step, bad, step, bad], 3)
    assert not retrieval_alarm([bad, bad, good], 3)
    assert retrieval_alarm([good, bad], 1)


class Refusing:
    """Storage that refuses the saves of some steps."""

    def __init__(self, monkeypatch, error, at):
        save = checkpoints_module.ocp.save_checkpointables_async

        def refuse(path, *arguments, **keywords):
            if int(path.name) in at:
                raise error
            return save(path, *arguments, **keywords)

        monkeypatch.setattr(checkpoints_module.ocp, "save_checkpointables_async", refuse)
        monkeypatch.setattr(checkpoints_module.Checkpoints, "faults", 0)  # or `retro train` in a later test ends pytest


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_training_goes_on_when_a_save_is_refused(workdir, monkeypatch, capfd):
    Refusing(monkeypatch, FULL, {6})
    train(make_run(SMALL, **RUN), workdir)
    assert steps(workdir / "checkpoints") == [3, 9, 12]
    assert all(find_fault(workdir / "checkpoints" / str(step)) is None for step in (3, 9, 12))
    error = capfd.readouterr().err
    assert "step 6 could not be saved (No space left on device); training goes on" in error


def test_a_last_save_that_is_refused_ends_the_run_with_the_older_ones_whole(workdir, monkeypatch):
    Refusing(monkeypatch, ValueError("PERMISSION_DENIED: Permission denied: x"), {9, 12})
    with pytest.raises(ValueError, match="last checkpoint could not be saved: Permission denied.*run the same command"):
        train(make_run(SMALL, **RUN), workdir)
    assert steps(workdir / "checkpoints") == [3, 6]
    monkeypatch.undo()
    train(make_run(SMALL, **RUN), workdir)
    assert steps(workdir / "checkpoints") == [3, 6, 9, 12]


def test_another_error_of_a_save_is_not_passed_over(workdir, monkeypatch):
    Refusing(monkeypatch, ValueError("no such handler"), {3})
    with pytest.raises(ValueError, match="no such handler"):
        train(make_run(SMALL, **RUN), workdir)
    assert storage_fault(ValueError("no such handler")) is None


def test_metrics_that_storage_refuses_are_written_later(tmp_path, monkeypatch, capfd):
    writer = MetricWriter(tmp_path, 0)
    writer.write(1, {"loss": 1.0})
    append = MetricWriter._append

    def half(writer):
        with open(writer.path, "ab") as file:
            file.write(writer.unwritten.encode()[:5])  # what a full disk still takes
        raise FULL

    monkeypatch.setattr(MetricWriter, "_append", half)
    writer.write(2, {"loss": 2.0})
    assert "step 2 is not written yet (No space left on device)" in capfd.readouterr().err
    monkeypatch.setattr(MetricWriter, "_append", append)
    writer.write(3, {"loss": 3.0})
    writer.close()
    assert [record["loss"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 2.0, 3.0]


def test_refused_metrics_of_steps_that_a_roll_back_repeats_are_dropped(tmp_path, monkeypatch):
    """Guards against a curve with steps of the path that was left, and one without the step before it."""

    def refuse(writer):
        raise FULL

    writer = MetricWriter(tmp_path, 0)
    writer.write(1, {"loss": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(MetricWriter, "_append", refuse)
        for step in (2, 3, 4):
            writer.write(step, {"loss": 9.0})
    writer.rewind(2)
    assert [record["step"] for record in writer.records] == [1, 2]
    for step in (3, 4):
        writer.write(step, {"loss": 3.0})
    writer.close()
    found = read_metrics(tmp_path / "metrics.jsonl")
    assert [(record["step"], record["loss"]) for record in found] == [(1, 1.0), (2, 9.0), (3, 3.0), (4, 3.0)]


def test_wandb_gets_the_records_where_a_project_is_named(workdir, monkeypatch):
    seen = {"logs": []}

    class StandIn:
        def log(self, record, step):
            seen["logs"].append((step, record["loss"]))
            if step == 2:
                raise RuntimeError("no network")

        def finish(self):
            seen["finished"] = True

    module = types.SimpleNamespace(init=lambda **facts: seen.update(facts) or StandIn())
    monkeypatch.setitem(sys.modules, "wandb", module)
    train(make_run(SMALL, wandb_project="mine", steps=4, warmup_steps=1, mesh=MESH), workdir)
    assert seen["project"] == "mine" and seen["id"] == "run" and seen["resume"] == "allow" and seen["finished"]
    assert [step for step, _ in seen["logs"]] == [1, 2, 3, 4]  # a service that fails stops nothing


def test_a_missing_wandb_names_the_extra(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'retro_jax\[wandb\]'"):
        train(make_run(SMALL, wandb_project="mine", mesh=MESH), workdir)


def test_a_profile_is_written_and_nonsense_refused(workdir):
    with pytest.raises(ValueError, match="--profile is START:STOP.*but is '5'"):
        train(make_run(SMALL, **RUN), workdir, profile="5")
    train(make_run(SMALL, **RUN), workdir, profile="2:4")
    assert list((workdir / "profile").rglob("*.xplane.pb"))
    record = read_metrics(workdir / "metrics.jsonl")[-1]
    assert 0 < record["goodput"] <= 1 and record["compile_seconds"] > 0 and record["checkpoint_stall"] >= 0
    assert record["host_memory"] > 2**26
    seconds = json.loads((workdir / "seconds.json").read_text())
    assert seconds["step"] == 12 and 0 < seconds["step_seconds"] < seconds["seconds"]


def test_a_config_from_before_these_keys_is_the_same_run():
    run = make_run()
    old = to_dict(run)
    for name in (
        "on_spike",
        "spike_factor",
        "spike_window",
        "stall_seconds",
        "wandb_project",
        "retrieval_alarm_checks",
    ):
        del old["train"][name]
    assert completed(old) == to_dict(run)  # key by key, for that is how a run directory is compared


def broken(*arguments, **keywords):
    raise ValueError("made up")


def test_no_side_channel_ends_training(workdir, monkeypatch, capsys):
    """TensorBoard, wandb, the trace, the clock, heartbeats, git: each logs its failure once."""
    monkeypatch.setattr(metrics, "RecordWriter", broken)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=broken))
    monkeypatch.setattr(jax.profiler, "start_trace", broken)
    monkeypatch.setattr(clock, "write_json", broken)
    monkeypatch.setattr(watchdog, "write_json", broken)
    monkeypatch.setattr(run_directory.subprocess, "run", broken)
    train(make_run(SMALL, wandb_project="mine", **RUN), workdir, profile="2:3")
    assert newest_whole(workdir / "checkpoints") == 12
    assert [record["step"] for record in read_metrics(workdir / "metrics.jsonl")] == list(range(1, 13))
    err = capsys.readouterr().err.splitlines()
    for name in ("tensorboard", "wandb", "profile", "seconds.json", "watchdog"):
        assert err.count(f"{name}: ValueError: made up; training continues.") == 1, (name, err)


class Gone(io.StringIO):
    """A stream whose reader went away."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_streams_that_fail_do_not_end_training(workdir, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", Gone())
    train(make_run(SMALL, **RUN), workdir)
    assert newest_whole(workdir / "checkpoints") == 12 and sys.stderr.fault is not None
    sys.stdout.close()


@pytest.mark.parametrize("name", ["lr=1e-3,layers=[2,4]", "a:b", "x" * 255, "run?"])
def test_wandb_gets_an_id_that_it_takes(name):
    """The service refuses / \\ # ? % : and long ids; valid names stay, so that old curves continue."""
    plain = plain_id(name)
    assert re.fullmatch(r"[\w.=,+-]{1,128}", plain) and plain == plain_id(name) != plain_id(name + "?")
    assert plain_id("seed=3,lr=1e-3") == "seed=3,lr=1e-3"
