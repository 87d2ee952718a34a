"""The steps of a run on absent devices, training and evaluation: shapes, shardings, and the functions to compile."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.config import RunConfig
from retro_jax.data.batches import Batch, used_neighbors
from retro_jax.evaluate.scorers import token_bits
from retro_jax.models.retro import abstract_model
from retro_jax.parallel.sharding import (
    Mesh,
    batch_sharding,
    check_batch,
    check_model_sizes,
    check_processes,
    check_sizes,
    make_mesh,
    replicated,
    shardings,
)
from retro_jax.train.optimizer import make_optimizer
from retro_jax.train.state import abstract_state
from retro_jax.train.step import make_train_step


def abstract_batch(run: RunConfig, mesh: Mesh) -> Batch:
    """Shapes and shardings of a batch as the iterator gives it."""
    model, rows, cut = run.model, run.train.batch, batch_sharding(mesh)

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=cut)

    tokens = array(jnp.int32, model.sequence_length)
    return Batch(
        tokens=tokens,
        targets=tokens,
        loss_mask=array(jnp.float32, model.sequence_length),
        segments=array(jnp.int32, model.chunks),
        neighbor_tokens=array(jnp.int32, model.chunks, used_neighbors(model), model.retrieved_length),
    )


def abstract_step(run: RunConfig, devices):
    """(the jitted step, its abstract arguments) of `run` on `devices`.

    Raises:
      ValueError: sizes that the mesh of `run` cannot cut on so many devices.
    """
    mesh = make_mesh(run.train.mesh, devices)
    check_sizes(run, mesh)
    check_processes(mesh)
    optimizer = make_optimizer(run.train)
    step = make_train_step(run, optimizer, mesh, np.ones(run.model.vocabulary, np.int32))
    return step, (abstract_state(run, optimizer, mesh), abstract_batch(run, mesh))


def abstract_evaluation(run: RunConfig, devices):
    """(the jitted forward pass of `retro evaluate`, its abstract arguments) of `run` on `devices`: On, config.evaluate.batch
    sequences at once.

    Raises:
      ValueError: sizes that the mesh of `run` cannot cut on so many devices.
    """
    model, mesh = run.model, make_mesh(run.train.mesh, devices)
    check_model_sizes(model, mesh)
    check_batch(run.evaluate.batch, mesh, "config.evaluate.batch")
    _, shapes = abstract_model(model)
    params = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings(shapes, mesh),
    )

    def array(*shape):
        return jax.ShapeDtypeStruct((run.evaluate.batch, *shape), jnp.int32, sharding=batch_sharding(mesh))

    tokens = array(model.sequence_length)
    inputs = {"tokens": tokens, "targets": tokens, "segments": array(model.chunks)}
    neighbors = array(model.chunks, used_neighbors(model), model.retrieved_length) if model.retrieves else None
    step = jax.jit(partial(token_bits, model, mesh, False), out_shardings=replicated(mesh))
    return step, (params, inputs, neighbors)
