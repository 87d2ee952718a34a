"""A run that an earlier version began goes on with its own config.model.scan, which was no "auto"."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from training_fixture import MODEL, build_data, make_run

from retro_jax.config import MeshConfig
from retro_jax.run_directory.checkpoints import load_params
from retro_jax.run_directory.directory import begun_scan
from retro_jax.train import loop

TRAIN = {"steps": 4, "mesh": MeshConfig(data=-1)}


@pytest.mark.parametrize("begun", [True, False])
def test_a_run_goes_on_as_it_was_begun(tmp_path, monkeypatch, begun):
    """Guards against last bits that change in a run that continues under the new default."""
    (tmp_path / "run").mkdir()
    build_data(tmp_path / "run" / "data")
    made, make = [], loop.make_train_step
    monkeypatch.setattr(loop, "make_train_step", lambda run, *more: made.append(run.model.scan) or make(run, *more))
    assert begun_scan(tmp_path / "run") is None
    loop.train(make_run(dataclasses.replace(MODEL, scan=begun), **TRAIN), tmp_path / "run")
    whole, _, _ = load_params(tmp_path / "run", 4)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    loop.train(make_run(MODEL, **TRAIN), tmp_path / "run")
    assert MODEL.scan == "auto" and made == [begun, begun] and begun_scan(tmp_path / "run") is begun
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "run", 4)[0], whole)
