"""The training state, one pytree of plain dicts and arrays."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from retro_jax.config import RunConfig
from retro_jax.models.retro import abstract_model, initialize
from retro_jax.parallel.sharding import Mesh, shardings
from retro_jax.train.optimizer import split_trainable


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    step: Int[Array, ""]  # steps taken
    params: dict  # nested dict of float32 arrays
    opt_state: Any  # moments of the trainable parameters, sharded like them


def abstract_state(run: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a state; no array is made."""
    _, params = abstract_model(run.model)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = TrainState(step, params, jax.eval_shape(optimizer.init, split_trainable(params, run.train.trainable)[0]))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, mesh),
    )


def state_shardings(run: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The NamedSharding of every leaf of a state."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_state(run, optimizer, mesh))


def initial_params(run: RunConfig, mesh: Mesh) -> dict:
    """Random parameters from the config's seed, each leaf made on its devices; the same numbers on every mesh."""
    _, params = abstract_model(run.model)
    return jax.jit(lambda: initialize(run.model, run.train.seed), out_shardings=shardings(params, mesh))()


def create_state(
    run: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh, params: dict | None = None
) -> TrainState:
    """A state at step 0, around the given parameters or random ones."""
    params = initial_params(run, mesh) if params is None else params
    wanted = state_shardings(run, optimizer, mesh)
    # Moments are zeros and depend on no parameter's values: without out_shardings every device would hold all of them.
    start = jax.jit(optimizer.init, out_shardings=wanted.opt_state)
    step = jax.device_put(jnp.zeros((), jnp.int32), wanted.step)
    return TrainState(step, params, start(split_trainable(params, run.train.trainable)[0]))
