"""The compiled forward passes of an evaluation, on the mesh and with the shardings of training.

A checkpoint is loaded onto the mesh (`run_directory.checkpoints.load_params`), so no host holds the full model. Every
process passes the full batch and places its own part on its devices. Every process receives all results, a few bytes a
token.
"""

import math
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from retro_jax.config import ModelConfig
from retro_jax.models.loss import first_choice, token_nll
from retro_jax.models.retro import merge
from retro_jax.parallel.on_mesh import OnMesh
from retro_jax.parallel.sharding import Mesh, pin_stream, place_whole, replicated

# (inputs of `blocks.Block.inputs`, neighbor tokens or None) -> what `Scorer.fetch` turns into bits and hits.
Started = tuple[Array, Array]


class Scorer:
    """Bits of each target, and whether it is the model's first choice.

    Args:
      params: placed on the mesh.
      greedy: compute the first choice too; otherwise hits are 0.
    """

    def __init__(self, config: ModelConfig, params: dict, mesh: Mesh, greedy: bool = False):
        self._params, self._place = params, partial(place_whole, mesh=mesh)
        self._run = jax.jit(partial(token_bits, config, mesh, greedy), out_shardings=replicated(mesh))

    def start(self, inputs: Mapping[str, np.ndarray], neighbors: Int[np.ndarray, "B C K R"] | None) -> Started:
        """Sends a batch to the devices and returns without waiting."""
        placed = {name: self._place(array) for name, array in inputs.items()}
        return self._run(self._params, placed, None if neighbors is None else self._place(neighbors))

    @staticmethod
    def fetch(started: Started) -> tuple[Float[np.ndarray, "B T"], Int[np.ndarray, "B T"]]:
        """Bits (0 where there is no target) and hits (0 or 1) of a batch, on every process."""
        bits, hits = started
        return np.asarray(bits), np.asarray(hits)


def token_bits(
    config: ModelConfig,
    mesh: Mesh,
    greedy: bool,
    params: dict,
    inputs: Mapping[str, Int[Array, "..."]],
    neighbors: Int[Array, "B C K R"] | None,
) -> tuple[Float[Array, "B T"], Int[Array, "B T"]]:
    """The function that `Scorer` compiles; `retro preflight --step=evaluate` compiles it too."""
    model, targets = merge(config, params), inputs["targets"]
    hidden = model.hidden(inputs["tokens"], inputs["segments"], neighbors, OnMesh(mesh))
    hidden = pin_stream(hidden, mesh)
    bits = token_nll(hidden, model.readout, targets, config.loss_block) / math.log(2)
    if not greedy:
        return bits, jnp.zeros(targets.shape, jnp.int8)
    choice = first_choice(hidden, model.readout, config.loss_block)
    return bits, ((choice == targets) & (targets >= 0)).astype(jnp.int8)
