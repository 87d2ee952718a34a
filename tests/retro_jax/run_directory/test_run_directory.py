"""A run directory is claimed late, never shared, never restarted silently, and not blocked by a damaged side file."""

import dataclasses
import json
import shutil
import types

import jax.numpy as jnp
import pytest
from training_fixture import BASELINE, build_data, make_run

from retro_jax.config import DataConfig, MeshConfig, to_dict
from retro_jax.core.lock import lock_directory
from retro_jax.parallel.preemption import Preempted
from retro_jax.run_directory.checkpoints import load_params
from retro_jax.run_directory.whole import find_fault, steps, whole_path
from retro_jax.train.health import DivergenceError, SpikeError
from retro_jax.train.loop import Inputs, Loop, train
from retro_jax.train.metrics import read_metrics

SMALL = dataclasses.replace(BASELINE, layers=1)
MESH = MeshConfig(data=-1)
RUN = {"steps": 4, "checkpoint_every": 2, "warmup_steps": 1, "mesh": MESH}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build_data(tmp_path_factory.mktemp("data"))


def small(data, model=SMALL, **train_config):
    run = make_run(model, **RUN | train_config)
    return dataclasses.replace(run, data=dataclasses.replace(DataConfig(), directory=str(data)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    train(small(data), workdir)
    return workdir


@pytest.fixture
def workdir(tmp_path, finished):
    """A copy of a finished run."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


MISTAKES = {
    "vocabulary": ({"model": dataclasses.replace(SMALL, vocabulary=65)}, "vocabulary=64"),
    "sequence": ({"model": dataclasses.replace(SMALL, sequence_length=8)}, "sequence_length=8, but the shards"),
    "batch": ({"batch": 12}, "batch"),
    "mesh": ({"mesh": MeshConfig(data=3, fsdp=1, tensor=1)}, "mesh sizes multiply"),
    "weights": ({"subset_weights": {"nobody": 1.0}}, "subset_weights names 'nobody'"),
    "initialize_from": ({"initialize_from": "/nowhere"}, "/nowhere is not a run directory"),
    "trainable": ({"trainable": "retrieval"}, "initialize_from=RUN_DIRECTORY"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_refused_start_claims_nothing(tmp_path, data, name):
    """Guards against claiming a directory before the checks: after vocabulary=4095 was refused, 4096 was 'another config'."""
    changes, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        train(small(data, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_wrong_profile_claims_nothing(tmp_path, data):
    with pytest.raises(ValueError, match="START:STOP"):
        train(small(data), tmp_path / "run", profile="5")
    assert not (tmp_path / "run").exists()


def test_a_path_that_is_not_utf8_is_refused_at_the_start(tmp_path, data):
    with pytest.raises(ValueError, match="--workdir=.* must be UTF-8"):
        train(small(data), tmp_path / "\udc80")
    with pytest.raises(ValueError, match="at most 3,500 are possible"):
        train(small(data), tmp_path.joinpath(*["n" * 200] * 20))
    assert list(tmp_path.iterdir()) == []


def test_a_config_of_which_nothing_came_is_in_nobodys_way(tmp_path, data, monkeypatch):
    """A start that runs out of memory, or is killed, before its first record."""

    def out_of_memory(loop):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "one_step", out_of_memory)
        with pytest.raises(MemoryError):
            train(small(data, learning_rate=0.5), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["learning_rate"] == 0.5
    train(small(data), tmp_path / "run")
    assert steps(tmp_path / "run" / "checkpoints") == [2, 4]
    with pytest.raises(ValueError, match="another config: train.learning_rate"):
        train(small(data, learning_rate=0.5), tmp_path / "run")


def test_an_altered_count_of_bytes_is_named(tmp_path):
    """Guards against an altered token_bytes.npy, which would only change bits per byte."""
    data = build_data(tmp_path / "data")
    path = data / "tokenizer" / "token_bytes.npy"
    content = bytearray(path.read_bytes())
    content[-4] ^= 2
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"token_bytes.npy was altered"):
        train(small(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_runs_in_one_directory(workdir, data):
    """Guards against two writers: metrics.jsonl got 64,350 NUL bytes, and both ended with 0."""
    before = sorted(path.name for path in workdir.rglob("*"))
    with (
        lock_directory(workdir, "train"),
        pytest.raises(ValueError, match="One `retro train` at a time.*another --work"),
    ):
        train(small(data), workdir)
    assert sorted(path.name for path in workdir.rglob("*")) == before
    assert not (workdir / "train.lock").exists()


def empty(path):
    path.write_text("")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path):
    path.write_bytes(b"\xff\x00[1,")


def lose(path):
    path.unlink()


@pytest.mark.parametrize("name", ["config.json", "seconds.json", "saved.json", "versions.json"])
@pytest.mark.parametrize("spoil", [empty, cut, garble, lose])
def test_a_damaged_side_file_is_made_again(workdir, data, capfd, name, spoil):
    """Guards against an empty file that ends the run with 'Expecting value: line 1 column 1 (char 0)'."""
    spoil(workdir / name)
    damaged = (workdir / name).read_bytes() if (workdir / name).exists() else None
    train(small(data), workdir)
    assert isinstance(json.loads((workdir / name).read_text()), dict)
    assert json.loads((workdir / "saved.json").read_text()) == {"step": 4}
    assert json.loads((workdir / "config.json").read_text()) == json.loads(json.dumps(to_dict(small(data))))
    if damaged is not None and name != "versions.json":  # which every start rewrites
        assert (workdir / f"{name}.damaged-0").read_bytes() == damaged
        assert f"{workdir / name} is damaged" in capfd.readouterr().err


def test_a_damaged_config_does_not_let_another_run_in(workdir, data):
    empty(workdir / "config.json")
    with pytest.raises(ValueError, match=r"belongs to another run: train.learning_rate"):
        train(small(data, learning_rate=0.5), workdir)
    assert (workdir / "config.json").read_text() == ""
    with pytest.raises(ValueError, match=r"config.json is damaged.*`retro train` command of the run rewrites it"):
        load_params(workdir)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "checkpoints"])
def test_something_else_under_the_name_of_a_file_is_named(tmp_path, data, name):
    path = tmp_path / "run" / name
    if name == "checkpoints":
        path.parent.mkdir()
        path.write_text("")
    else:
        path.mkdir(parents=True)
    with pytest.raises(ValueError, match=f"{name} must be a f"):
        train(small(data), tmp_path / "run")


def test_damaged_lines_of_metrics_are_taken_out_and_kept(workdir, data, capfd):
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    content = lines[0] + bytes(64) + b"\n" + lines[1][:30] + b"\n\xff\n[1]\n" + b"".join(lines[1:]) + b'{"step": 5'
    path.write_bytes(content)
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3, 4]
    assert f"{path} has 4 damaged line(s), the first is line 2; left out" in capfd.readouterr().err
    train(small(data), workdir)
    assert path.read_bytes() == b"".join(lines)
    assert (workdir / "metrics.jsonl.damaged-0").read_bytes() == content
    assert "removed, and all kept in metrics.jsonl.damaged-0" in capfd.readouterr().err


def test_an_abandoned_line_that_was_cut_short_swallows_none(workdir, data):
    """Lines behind the checkpoint are moved there; they must not continue a line that a kill cut short."""
    whole_path(workdir / "checkpoints" / "4").unlink()
    (workdir / "metrics.abandoned.jsonl").write_text('{"step": 3, "lo')
    train(small(data), workdir)
    assert [record["step"] for record in read_metrics(workdir / "metrics.abandoned.jsonl")] == [3, 4]


def test_an_empty_listing_of_the_newest_goes_back_to_the_one_before(workdir, data, capfd):
    empty(whole_path(workdir / "checkpoints" / "4"))
    train(small(data), workdir)
    assert find_fault(workdir / "checkpoints" / "4") is None
    error = capfd.readouterr().err
    assert "step 4 is not whole (4.whole.json is damaged" in error and "from step 2 to 4" in error


def test_a_lost_newest_checkpoint_is_told(workdir, data, capfd):
    shutil.rmtree(workdir / "checkpoints" / "4")
    whole_path(workdir / "checkpoints" / "4").unlink()
    train(small(data), workdir)
    assert "step 4 was saved and is now missing" in capfd.readouterr().err


def test_a_run_whose_checkpoints_are_gone_stops_and_restart_begins_anew(workdir, data, capfd):
    shutil.rmtree(workdir / "checkpoints")
    before = (workdir / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"saved.json: step 4 was saved.*there is none in .*checkpoints.*--restart"):
        train(small(data), workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == before
    train(small(data), workdir, restart=True)
    assert steps(workdir / "checkpoints") == [2, 4] and len(read_metrics(workdir / "metrics.jsonl")) == 4
    assert (workdir / "before.restart-0" / "metrics.jsonl").read_bytes() == before
    train(small(data), workdir, restart=True)  # as a scheduler does: what is whole is never given up
    assert "in spite of --restart" in capfd.readouterr().err
    assert not (workdir / "before.restart-1").exists()


def test_every_checkpoint_damaged_stops(workdir, data):
    for step in (2, 4):
        empty(workdir / "checkpoints" / str(step) / "params" / "manifest.ocdbt")
    with pytest.raises(
        ValueError, match=r"no checkpoint is whole: step 4 \(params/manifest.*; step 2 \(params/manifest"
    ):
        train(small(data), workdir)


def test_killed_before_the_first_save_begins_again(tmp_path, data, monkeypatch):
    next_batch = Loop.next_batch

    def fall(loop):
        if loop.step == 1:
            raise KeyboardInterrupt
        next_batch(loop)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "next_batch", fall)
        with pytest.raises(KeyboardInterrupt):
            train(small(data), tmp_path / "run")
    train(small(data), tmp_path / "run")
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 4


def test_everything_works_below_a_name_with_brackets(tmp_path, data):
    workdir = tmp_path / "lr=1e-3,layers=[2,4]"
    run = small(shutil.copytree(data, workdir / "data"))
    train(run, workdir, profile="2:3")
    shutil.copytree(workdir, tmp_path / "moved to [x]")
    params, _, step = load_params(tmp_path / "moved to [x]")
    assert step == 4 and params
    assert list((workdir / "profile").rglob("*.xplane.pb")) and list(workdir.glob("events.out.tfevents.*"))


class Stop:
    """Makes the loop get a notice once, after `step`."""

    def __init__(self, monkeypatch, step):
        self.step, self.loop, one_step = step, None, Loop.one_step

        def remember(loop):
            self.loop = loop
            one_step(loop)

        monkeypatch.setattr(Loop, "one_step", remember)
        monkeypatch.setattr("retro_jax.parallel.preemption.Preemption.reached", lambda notice: self.now())

    def now(self):
        return self.loop is not None and self.loop.step == self.step


def spike_at(monkeypatch, step):
    """Makes the batch of a step one with a hundred times the gradient."""
    next_batch = Loop.next_batch

    def spiking(loop):
        next_batch(loop)
        if loop.read_to["next_index"] == step:
            loop.batch = dataclasses.replace(loop.batch, loss_mask=loop.batch.loss_mask / 100)

    monkeypatch.setattr(Loop, "next_batch", spiking)


def test_a_roll_back_finds_its_checkpoint_under_keep(tmp_path, data, monkeypatch, capfd):
    """Guards against a roll back to step 0 after an unscheduled save: 6 by schedule, 7 on a notice, spike at 8."""
    spike_at(monkeypatch, 8)
    spikes = {"on_spike": "roll_back", "spike_window": 3, "spike_factor": 2.0}
    run = small(data, steps=9, checkpoint_every=3, keep_checkpoints=1, **spikes)
    with monkeypatch.context() as patch:
        Stop(patch, 7)
        with pytest.raises(Preempted):
            train(run, tmp_path / "run")
    assert steps(tmp_path / "run" / "checkpoints") == [6, 7]
    train(run, tmp_path / "run")
    assert "back to step 6, without the batches up to it" in capfd.readouterr().err
    assert steps(tmp_path / "run" / "checkpoints") == [9]


def test_a_run_that_went_back_and_is_stopped_goes_on_from_there(tmp_path, data, monkeypatch, capfd):
    """Guards against a start from the checkpoint that the run went back behind: it would spike and go back at each start.

    4 is on schedule, 6 is saved on a notice, the spike at 7 leads back to 4, and the next notice comes at 5.
    """
    spike_at(monkeypatch, 7)
    run = small(data, steps=8, checkpoint_every=4, on_spike="roll_back", spike_window=3, spike_factor=2.0)
    for notice in (6, 5):
        with monkeypatch.context() as patch:
            Stop(patch, notice)
            with pytest.raises(Preempted, match=f"step {notice} of 8 is saved. The same command continues from it"):
                train(run, tmp_path / "run")
    assert steps(tmp_path / "run" / "checkpoints") == [4, 5]
    assert (tmp_path / "run" / "checkpoints" / "6.abandoned-0.whole.json").exists()
    capfd.readouterr()
    train(run, tmp_path / "run")
    said = capfd.readouterr().err
    assert "from step 5 to 8" in said and "back to step" not in said
    assert [record["step"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")] == list(range(1, 9))


@pytest.mark.parametrize("left", [3, None])
def test_a_roll_back_takes_the_newest_that_is_left_or_stops(tmp_path, data, left):
    """Guards against 'back to step 0' where the scheduled checkpoint is gone: step 4 here, spike at 5."""
    run = small(data, steps=6, on_spike="roll_back")
    watchdog = types.SimpleNamespace(phase=lambda *_: None)
    loop = Loop(run, tmp_path, Inputs(run, tmp_path), (None, watchdog, None))
    spike = SpikeError(5, 9.0, 1.0, {"next_index": 5})
    if left is None:
        with pytest.raises(DivergenceError, match="no whole checkpoint before it is left in .*checkpoints"):
            loop.roll_back(spike)
        return
    loop.checkpoints.save(left, dataclasses.replace(loop.state, step=jnp.int32(left)), {"iterator": loop.position})
    loop.roll_back(spike)
    assert loop.step == left
