"""The training step of a run on devices that are not there: its shapes, where they lie, and the step to compile."""

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.config import RunConfig
from retro_jax.data.batches import Batch, used_neighbors
from retro_jax.parallel.sharding import Mesh, batch_sharding, check_sizes, make_mesh
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
    optimizer = make_optimizer(run.train)
    step = make_train_step(run, optimizer, mesh, np.ones(run.model.vocabulary, np.int32))
    return step, (abstract_state(run, optimizer, mesh), abstract_batch(run, mesh))
