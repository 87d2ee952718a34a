"""The retrieval check costs no more memory than the training step beside it, and its parts change no number."""

import dataclasses

import jax
import numpy as np
import pytest
from test_sharding import devices, make_batch
from training_fixture import MODEL, build_data, make_run

from retro_jax.config import MeshConfig
from retro_jax.parallel.sharding import make_mesh, place_batch
from retro_jax.train.optimizer import make_optimizer
from retro_jax.train.retrieval_check import RetrievalCheck
from retro_jax.train.state import abstract_state, initial_params
from retro_jax.train.step import NO_LIMIT, make_loss_step, make_train_step

SMALL = dataclasses.replace(MODEL, layers=1, retrieval_layers=(1,), remat="full", loss_block=0)


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    return build_data(tmp_path_factory.mktemp("data")) / "joined"


@pytest.mark.parametrize("off", [False, True], ids=["with neighbors", "off"])
def test_parts_change_no_loss(off):
    """Micro-batches hold unequal counts of targets; on a mesh they are cut once more."""
    config = MeshConfig(data=2)
    mesh = make_mesh(config, devices(config))
    params, batch = initial_params(make_run(SMALL, mesh=config), mesh), place_batch(make_batch(SMALL), mesh)
    given = (params, batch, None if off else batch.neighbor_tokens)
    whole, parts = (compiled(make_loss_step(SMALL, mesh, count), *given)(*given) for count in (1, 4))
    np.testing.assert_allclose(jax.device_get(parts), jax.device_get(whole), rtol=1e-6)
    assert whole[1] > 0


def test_the_check_fits_where_the_accumulated_step_fits(joined):
    """Guards against a run that fits in parts and is out of memory at its first check, which took the batch as a whole."""
    one = MeshConfig(data=1)
    run = make_run(SMALL, batch=32, accumulation=32, mesh=one)
    mesh, optimizer = make_mesh(one, devices(one)), make_optimizer(run.train)
    check = RetrievalCheck(run, joined, mesh)
    batch = check.pairs[0][0]
    state = abstract_state(run, optimizer, mesh)
    step = make_train_step(run, optimizer, mesh, np.ones(SMALL.vocabulary, np.int32))
    most = temporaries(compiled(step, state, batch, NO_LIMIT))
    for neighbors in (batch.neighbor_tokens, None):
        assert temporaries(compiled(check.loss, state.params, batch, neighbors)) <= most, neighbors is None


def compiled(step, *arguments):
    """In half the time; speed is not what is tested."""
    return step.lower(*arguments).compile({"xla_backend_optimization_level": 0})


def temporaries(program) -> int:
    return program.memory_analysis().temp_size_in_bytes
