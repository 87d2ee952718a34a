"""Which checkpoints stay: orbax's policies by name, and one that is registered from outside the package."""

import dataclasses
import json

import pytest
from made_up_checkpoints import write_whole
from training_fixture import BASELINE, MODEL, build_data, make_run

from launch.command.arguments import parse
from launch.train import VERB
from retro_jax.config import DataConfig, MeshConfig, RunConfig, TrainConfig, check_train
from retro_jax.run_directory import keeping
from retro_jax.run_directory.keeping import Keep, Policy
from retro_jax.run_directory.whole import prune, steps, whole_path
from retro_jax.train.loop import train
from retro_jax.train.metrics import read_metrics

METRICS = {3: 0.5, 6: 0.2, 9: 0.4, 12: 0.3, 15: 0.9}  # a loss by step


class PowersOfTwo:
    """A policy of somebody else: steps that are a power of its base."""

    def __init__(self, base):
        self.base = base

    def should_preserve(self, checkpoints, *, context):
        powers = {self.base**exponent for exponent in range(20)}
        return [checkpoint.step in powers for checkpoint in checkpoints]


@pytest.fixture
def powers(monkeypatch):
    monkeypatch.setattr(keeping, "POLICIES", dict(keeping.POLICIES))
    keeping.register(Policy("powers", "those at powers of that number", lambda number, run: PowersOfTwo(number)))


def run_of(**train_config):
    base = {"keep_checkpoints": 1, "checkpoint_every": 3, "log_every": 1}
    return RunConfig(train=TrainConfig(**base | train_config))


def left(directory, run, metrics=None, at=METRICS):
    """Steps that are left after checkpoints were saved one after the other."""
    keep = Keep(run, lambda: {step: {"loss": loss} for step, loss in (metrics or METRICS).items()})
    for step in at:
        write_whole(directory, step)
        prune(directory, keep, step, {step})
    return steps(directory)


@pytest.mark.parametrize(
    ("also", "expected"),
    [
        ({}, [15]),
        ({"every": 6}, [6, 12, 15]),
        ({"best": 2}, [6, 12, 15]),
        ({"best": 1, "every": 9}, [6, 9, 15]),
        ({"latest": 3}, [9, 12, 15]),
    ],
)
def test_what_stays(tmp_path, also, expected):
    assert left(tmp_path, run_of(keep_also=also, keep_metric="loss")) == expected


def test_a_checkpoint_that_was_not_measured_is_not_the_best(tmp_path):
    """One saved on a signal between two records; BestN's default would keep all of them for ever."""
    run = run_of(keep_also={"best": 1}, keep_metric="loss")
    assert left(tmp_path, run, metrics={6: 0.2}, at=(3, 5, 6, 7, 8)) == [6, 8]


def test_a_damaged_checkpoint_is_not_the_best(tmp_path):
    """It is neither counted nor deleted, and the second best stays in its place."""
    run = run_of(keep_also={"best": 1}, keep_metric="loss")
    for step in (6, 12):
        write_whole(tmp_path, step)
    file = tmp_path / "6" / "params" / "manifest.ocdbt"
    file.write_text(file.read_text().swapcase())
    assert left(tmp_path, run, at=(9, 15)) == [6, 12, 15]


def test_a_policy_sees_step_time_and_metrics(tmp_path, monkeypatch):
    seen = []

    class Look(PowersOfTwo):
        def should_preserve(self, checkpoints, *, context):
            seen[:] = checkpoints
            return [True] * len(checkpoints)

    monkeypatch.setattr(keeping, "POLICIES", dict(keeping.POLICIES))
    keeping.register(Policy("look", "", lambda number, run: Look(number)))
    left(tmp_path, run_of(keep_also={"look": 1}), at=(3, 6))
    assert [(one.step, one.metrics) for one in seen] == [(3, {"loss": 0.5}), (6, {"loss": 0.2})]
    assert [one.time.timestamp() for one in seen] == [
        pytest.approx(whole_path(tmp_path / step).stat().st_mtime, abs=1e-5) for step in ("3", "6")
    ]


def test_a_name_is_registered_once(powers):
    with pytest.raises(ValueError, match="a checkpoint policy named 'powers' already"):
        keeping.register(Policy("powers", "", lambda number, run: PowersOfTwo(number)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"keep_also": {"bets": 1}},
            "keep_also.bets is not a checkpoint policy; known are latest: .*; every: .*; best: ",
        ),
        ({"keep_also": {"best": 1}}, "but this run has no retrieval checks that measure it. Take .*keep_metric=loss"),
        (
            {"keep_also": {"best": 1}, "keep_metric": "bpb", "log_every": 2},
            "checkpoint_every=3 is not a multiple of config.train.log_every=2; set the second to a divisor of 3",
        ),
        ({"keep_checkpoints": -1}, "keep_checkpoints is how many to keep, 0 for all, but is -1"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, data, changes, message):
    run = small(data, **{"checkpoint_every": 3, "keep_checkpoints": 1} | changes)
    with pytest.raises(ValueError, match=message):
        train(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_best_of_a_retrieval_check_needs_one_at_every_checkpoint():
    run = make_run(MODEL, keep_checkpoints=1, keep_also={"best": 1}, checkpoint_every=4, retrieval_check_every=2)
    assert Keep(run)
    with pytest.raises(
        ValueError, match="checkpoint_every=5 is not a multiple of config.train.retrieval_check_every=2"
    ):
        Keep(dataclasses.replace(run, train=dataclasses.replace(run.train, checkpoint_every=5)))


def test_policies_beside_all_checkpoints_change_nothing_and_are_refused():
    with pytest.raises(ValueError, match="keep_checkpoints=0 keeps every checkpoint, so .*keep_also={'every': 5}"):
        check_train(TrainConfig(keep_also={"every": 5}))


def test_policies_on_the_command_line(tmp_path):
    flags = [
        "--config.train.keep_checkpoints=2",
        "--config.train.keep_also.every=10",
        "--config.train.keep_also.best=3",
    ]
    run = parse(VERB, ["--config=configs/quickstart.py:smoke", f"--workdir={tmp_path}", *flags]).run
    assert (run.train.keep_checkpoints, run.train.keep_also) == (2, {"every": 10, "best": 3})
    with pytest.raises(
        ValueError, match="keep_metric must be one of validation_loss_on.*but is 'los'.*did you mean loss"
    ):
        parse(VERB, ["--config=configs/quickstart.py:smoke", f"--workdir={tmp_path}", "--config.train.keep_metric=los"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build_data(tmp_path_factory.mktemp("data"))


def small(data, **train_config):
    run = make_run(
        dataclasses.replace(BASELINE, layers=1),
        **{"steps": 9, "checkpoint_every": 1, "mesh": MeshConfig(data=-1)} | train_config,
    )
    return dataclasses.replace(run, data=dataclasses.replace(DataConfig(), directory=str(data)))


def test_a_policy_from_outside_and_the_best_in_a_training_run(tmp_path, data, powers):
    """Nothing of ours is edited: the registered name is a key of the config, and what it says stays."""
    also = {"powers": 2, "best": 1}
    train(small(data, keep_checkpoints=1, keep_also=also, keep_metric="loss"), tmp_path / "run")
    losses = {record["step"]: record["loss"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")}
    best = min(losses, key=losses.get)
    assert steps(tmp_path / "run" / "checkpoints") == sorted({1, 2, 4, 8, 9, best})
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["keep_also"] == also


def test_policies_may_change_between_two_starts(tmp_path, data):
    train(small(data, steps=4, keep_checkpoints=2), tmp_path / "run")
    train(small(data, steps=4, keep_checkpoints=1, keep_also={"every": 2}, keep_metric="bpb"), tmp_path / "run")
    assert steps(tmp_path / "run" / "checkpoints") == [3, 4]
