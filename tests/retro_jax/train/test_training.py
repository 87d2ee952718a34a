"""The loop: resuming after kills, logging, refusals and stops."""

import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from places import FIXTURES
from recording import assert_reads, recorded
from training_fixture import BASELINE, build_data, make_run

from retro_jax.config import MeshConfig
from retro_jax.config.model import OF_ROTARY
from retro_jax.run_directory.checkpoints import load_params
from retro_jax.run_directory.whole import steps
from retro_jax.train.clock import OF_THE_MACHINE
from retro_jax.train.health import DivergenceError
from retro_jax.train.loop import train
from retro_jax.train.metrics import read_metrics

ALL_DEVICES = MeshConfig(data=-1)

# A run of 12 steps with a checkpoint every 3. It sends itself SIGKILL when it asks for the batch after step KILL_AT: the
# step is then under way, and after a multiple of 3 its checkpoint is being written.
CHILD = """
import os, signal, sys
from pathlib import Path
from retro_jax.train import loop as training
from training_fixture import make_run

workdir, kill_at = Path(sys.argv[1]), int(sys.argv[2])
next_batch = training.Loop.next_batch

def next_batch_or_die(loop):
    if loop.step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return next_batch(loop)

training.Loop.next_batch = next_batch_or_die
training.train(make_run(steps=12, checkpoint_every=3), workdir)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build_data(tmp_path_factory.mktemp("data"))


def run_child(workdir, data, kill_at=-1):
    """Exit code of a training process of its own, on one device."""
    workdir.mkdir(exist_ok=True)
    if not (workdir / "data").exists():
        (workdir / "data").symlink_to(data)
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(FIXTURES)}
    command = [sys.executable, "-c", CHILD, str(workdir), str(kill_at)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def timeless(record):
    return {key: value for key, value in record.items() if key not in OF_THE_MACHINE}


def test_killed_and_resumed_equals_undisturbed(tmp_path, data):
    """Guards against a resumed run that differs.

    After SIGKILL between checkpoints and during a save, parameters, batches and metrics equal an undisturbed run's bit for bit.
    """
    assert run_child(tmp_path / "whole", data) == 0
    assert run_child(tmp_path / "killed", data, kill_at=5) == -signal.SIGKILL
    assert run_child(tmp_path / "killed", data, kill_at=9) == -signal.SIGKILL
    assert run_child(tmp_path / "killed", data) == 0

    expected, _, _ = load_params(tmp_path / "whole", 12)
    found, _, _ = load_params(tmp_path / "killed", 12)
    jax.tree.map(np.testing.assert_array_equal, found, expected)

    whole, killed = (
        [timeless(record) for record in read_metrics(tmp_path / run / "metrics.jsonl")] for run in ("whole", "killed")
    )
    assert [record["step"] for record in whole] == list(range(1, 13))
    assert len({record["batch_crc32"] for record in whole}) == 12
    assert killed == whole
    abandoned = read_metrics(tmp_path / "killed" / "metrics.abandoned.jsonl")
    assert all(timeless(record) == whole[record["step"] - 1] for record in abandoned)
    assert json.loads((tmp_path / "killed" / "seconds.json").read_text())["seconds"] > 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A finished run on 8 devices, 4 steps, with a retrieval check."""
    workdir = tmp_path_factory.mktemp("run")
    (workdir / "data").symlink_to(data)
    with recorded() as recorder:
        kept = {"keep_checkpoints": 2, "keep_also": {"best": 1}, "keep_metric": "loss"}
        recorder.watch(run := make_run(steps=4, retrieval_check_every=3, mesh=ALL_DEVICES, **kept))
        train(run, workdir)
    of_rotary = [f"model.{name}" for name in OF_ROTARY]  # of the other kind of decoder alone; refused for this one
    assert_reads("train", recorder.keys, besides=of_rotary)
    return workdir


def test_a_run_directory_holds_what_it_should(finished):
    assert json.loads((finished / "config.json").read_text())["train"]["steps"] == 4
    versions = json.loads((finished / "versions.json").read_text())
    assert sorted(versions["fingerprints"]) == ["database", "joined", "tokenizer"]
    assert versions["packages"]["jax"] == jax.__version__ and versions["git_revision"]
    assert steps(finished / "checkpoints") == [2, 4]
    assert list(finished.glob("events.out.tfevents.*"))


def test_a_record_holds_what_it_should(finished):
    records = read_metrics(finished / "metrics.jsonl")
    step = records[0]
    assert sorted(step) == sorted(
        ["step", "steps", "loss", "bpb", "tokens", "tokens_per_second", "mfu", "input_wait", "learning_rate"]
        + ["goodput", "compile_seconds", "checkpoint_stall", "host_memory", "skipped_steps"]
        + ["batch_crc32", "grad_norm", "grad_norm_encoder", "grad_norm_cca", "grad_norm_decoder"]
    )
    assert 0.5 < step["loss"] / np.log(64) < 2.0  # a fresh model knows nothing of 64 tokens
    assert abs(step["bpb"] - step["loss"] / np.log(2)) < 0.5  # nearly every target is one byte
    assert step["learning_rate"] == pytest.approx(1e-7)
    norms = [step[f"grad_norm_{part}"] for part in ("encoder", "cca", "decoder")]
    assert min(norms) > 0 and step["grad_norm"] == pytest.approx(np.linalg.norm(norms), rel=1e-5)
    assert [record["step"] for record in records] == [1, 2, 3, 3, 4]
    check = records[3]  # behind the record of its step: else the step's time would be that of the check
    assert sorted(check) == sorted(
        ["step", "validation_loss_on", "validation_loss_off", "validation_loss_random", "retrieval_alarm"]
    )
    assert check["retrieval_alarm"] == 0.0  # three bad checks in a row are needed, and this is the first


def test_a_finished_run_is_left_alone(finished):
    before = (finished / "metrics.jsonl").read_bytes()
    state = train(make_run(steps=4, retrieval_check_every=3, mesh=ALL_DEVICES), finished)
    assert int(state.step) == 4
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_directory_of_another_config_is_refused(finished):
    before = sorted(path.name for path in finished.rglob("*"))
    with pytest.raises(ValueError, match=r"another config: train.steps \(there 4, now 9\).*another --workdir"):
        train(make_run(steps=9, mesh=ALL_DEVICES), finished)
    assert sorted(path.name for path in finished.rglob("*")) == before


def test_a_directory_of_other_data_is_refused(finished, tmp_path):
    """Guards against training on the data of another run."""
    build_data(tmp_path / "other", seed=2)
    run = tmp_path / "run"
    shutil.copytree(finished, run, symlinks=True)
    (run / "data").unlink()
    (run / "data").symlink_to(tmp_path / "other")
    with pytest.raises(ValueError, match="fingerprint of database .*fingerprint of joined .*fingerprint of tokenizer"):
        train(make_run(steps=4, retrieval_check_every=3, mesh=ALL_DEVICES), run)


def test_no_data_names_the_flag(tmp_path):
    with pytest.raises(ValueError, match=r"no joined shards in .*--config.data.directory=DIRECTORY"):
        train(make_run(mesh=ALL_DEVICES), tmp_path)


def test_another_vocabulary_is_refused(tmp_path, data):
    (tmp_path / "data").symlink_to(data)
    run = make_run(BASELINE.__class__(**{**vars(BASELINE), "vocabulary": 128}), mesh=ALL_DEVICES)
    with pytest.raises(ValueError, match="config.model.vocabulary=128"):
        train(run, tmp_path)


def test_divergence_stops_with_metrics_and_the_last_good_checkpoint(tmp_path, data):
    (tmp_path / "data").symlink_to(data)
    run = make_run(
        BASELINE, steps=40, learning_rate=1e38, warmup_steps=3, checkpoint_every=1, log_every=5, mesh=ALL_DEVICES
    )
    with pytest.raises(DivergenceError, match="a step must end finite.*last good state.*another --workdir"):
        train(run, tmp_path)
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert last["loss"] in ("nan", "inf") or last["grad_norm"] in ("nan", "inf")
    params, _, step = load_params(tmp_path)
    assert step == last["step"] - 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
