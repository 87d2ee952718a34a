"""Causal self-attention with relative positions on a GPU: padding to whole tiles, and the gradient."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from retro_jax.models.kernels.flash_gpu import BLOCK, LOGITS_BYTES
from retro_jax.models.kernels.flash_gpu.passes import backward, forward
from retro_jax.models.kernels.flash_gpu.tiles import Tiling
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
    logits_bytes: int = LOGITS_BYTES,
) -> Float[Array, "H N I S"]:
    """What `xla.attend` computes for decoder self-attention, from the ids of a `known.Mask`.

    Args:
      block: queries and keys of a tile, a power of two.
      interpret: run by XLA on any device, for tests.
      logits_bytes: of the heads' logits whose gradients the backward pass holds at once; it takes one head at least.
    """
    heads, rows, length, size = values.shape
    more = -length % block
    arrays = [
        jnp.pad(array.reshape(heads * rows, length, size), [(0, 0), (0, more), (0, 0)])
        for array in (content_queries, position_queries, keys, values)
    ]
    # Rows of the distances length - 1 to 0. Larger ones are those of padding, and a window's last rows are never used.
    table = jnp.pad(positions[:, :length], [(0, 0), (more, block), (0, 0)])
    ids = (
        jnp.pad(of.astype(jnp.int32), [(0, 0), (0, more)], constant_values=none)
        for of, none in ((mask.query_ids, NO_QUERY), (mask.key_ids, NO_KEY))
    )
    outputs = _attend(Tiling(block, interpret, logits_bytes), *arrays, table, *ids)
    return outputs[:, :length].reshape(heads, rows, length, size)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(tiling, *arrays):
    return forward(tiling, *arrays)[0].astype(arrays[0].dtype)


def _forward(tiling, *arrays):
    outputs, sums = (checkpoint_name(result, ATTENDED) for result in forward(tiling, *arrays))
    return outputs.astype(arrays[0].dtype), (arrays, outputs, sums)


def _backward(tiling, saved, gradient):
    arrays, outputs, sums = saved
    gradients = backward(tiling, *arrays, outputs, sums, gradient)
    return (*(one.astype(array.dtype) for one, array in zip(gradients, arrays, strict=False)), None, None)


_attend.defvjp(_forward, _backward)
