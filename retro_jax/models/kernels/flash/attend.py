"""Causal self-attention with relative positions in fast memory: padding to whole tiles, and the gradient.

The kernels take [N, T, H S], as the projections give it: the compiler cancels the transposes here with those of
`models.attention`. Outputs and log-sum-exp have a name of their own, ATTENDED, so that remat keeps them and does not run the
forward kernel a second time.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from retro_jax.models.kernels.flash import BLOCK
from retro_jax.models.kernels.flash.backward import backward
from retro_jax.models.kernels.flash.forward import forward
from retro_jax.models.kernels.flash.tiles import LANES, Tiling
from retro_jax.models.layers import ATTENDED
from retro_jax.models.positions import Distances

NO_QUERY, NO_KEY = -3, -4  # ids of padding: equal to no other


def attend(
    content_queries: Float[Array, "H N I S"],
    position_queries: Float[Array, "H N I S"],
    keys: Float[Array, "H N I S"],
    values: Float[Array, "H N I S"],
    positions: Float[Array, "H W S"],
    mask,
    distances: Distances,
    block: int = BLOCK,
    interpret: bool = False,
) -> Float[Array, "H N I S"]:
    """What `xla.attend` computes for decoder self-attention, from the ids of a `known.Mask`.

    Args:
      block: queries and keys of a tile; shorter sequences take one tile.
      interpret: run by XLA on any device, for tests.
    """
    heads, _, length, head_dim = values.shape
    tiling = Tiling(head_dim, min(block, _up(length, LANES)), interpret)
    more, wider = _up(length, tiling.block) - length, -heads * head_dim % tiling.lanes
    arrays = [
        jnp.pad(_side_by_side(array), [(0, 0), (0, more), (0, wider)])
        for array in (content_queries, position_queries, keys, values)
    ]
    # Rows of the distances length - 1 to 0. Larger ones are those of padding, and a window's last rows are never used.
    table = jnp.pad(_side_by_side(positions[:, None, :length])[0], [(more, tiling.block), (0, wider)])
    ids = (
        jnp.pad(of.astype(jnp.int32), [(0, 0), (0, more)], constant_values=none)[:, None]
        for of, none in ((mask.query_ids, NO_QUERY), (mask.key_ids, NO_KEY))
    )
    outputs = _attend(tiling, *arrays, table, *ids)[:, :length, : heads * head_dim]
    return jnp.transpose(outputs.reshape(*outputs.shape[:2], heads, head_dim), (2, 0, 1, 3))


def _side_by_side(array: Float[Array, "H N I S"]) -> Float[Array, "N I HS"]:
    _, rows, length, _ = array.shape
    return jnp.transpose(array, (1, 2, 0, 3)).reshape(rows, length, -1)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(tiling, *arrays):
    return forward(tiling, *arrays)[0].astype(arrays[0].dtype)


def _forward(tiling, *arrays):
    outputs, sums = (checkpoint_name(result, ATTENDED) for result in forward(tiling, *arrays))
    return outputs.astype(arrays[0].dtype), (arrays, outputs, sums)


def _backward(tiling, saved, gradient):
    arrays, outputs, sums = saved
    *gradients, to_table = backward(tiling, arrays, outputs, sums, gradient)
    return (*gradients, to_table.astype(arrays[4].dtype), None, None)


_attend.defvjp(_forward, _backward)
