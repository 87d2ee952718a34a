"""Multi-head attention with Transformer-XL relative positions: one core for all four kinds of attention.

logit(i, j) = [ (q_i + u) . k_j + (q_i + v) . W_R s(d(i, j)) ] / sqrt(head width), softmax over the keys the mask
allows. This file has the weights; the function that computes the update from queries, keys and values is chosen by name
among `kernels`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from retro_jax.models.kernels.known import Mask
from retro_jax.models.layers import bias, kernel, linear, ones, rms_norm
from retro_jax.models.positions import PositionTable


class Attention(nnx.Module):
    """The weights of one attention and its update, without the residual. No biases: a row without keys gives zeros.

    Args:
      width: of the stream that attends (query, output and position projections, paper 3.3).
      memory_width: of the stream attended to (key and value projections).
      memory_norm: whether the stream attended to has an RMSNorm of its own.
      positions: whether logits depend on relative positions; if not, W_R and v do not exist.
    """

    def __init__(
        self,
        width: int,
        memory_width: int,
        heads: int,
        head_dim: int,
        output_gain: float,
        rngs: nnx.Rngs,
        memory_norm: bool = False,
        positions: bool = True,
    ):
        self.norm = ones(width)
        if memory_norm:
            self.memory_norm = ones(memory_width)
        self.query = kernel(rngs, width, heads * head_dim)
        self.key = kernel(rngs, memory_width, heads * head_dim)
        self.value = kernel(rngs, memory_width, heads * head_dim)
        self.output = kernel(rngs, heads * head_dim, width, output_gain)
        if positions:
            self.position = kernel(rngs, width, heads * head_dim)
        self.content_bias = bias(rngs, heads, head_dim)
        if positions:
            self.position_bias = bias(rngs, heads, head_dim)

    def to_self(
        self, x: Float[Array, "N I D"], mask: Mask, positions: PositionTable, attend: Callable
    ) -> Float[Array, "N I D"]:
        """The update of self-attention for the stream x, which is normalized here."""
        normed = rms_norm(x, self.norm[...])
        return self(normed, normed, mask, positions, attend)

    def __call__(
        self,
        asking: Float[Array, "N I D"],
        memory: Float[Array, "N J E"],
        mask: Mask,
        positions: PositionTable,
        attend: Callable,
    ) -> Float[Array, "N I D"]:
        """The update for the stream `asking`, already normalized, from `memory`; `attend` (`known.Attend`) computes it.

        I and J may be multiples of the numbers of queries and keys in `positions`: several neighbors side by side, each
        with positions from its own start.
        """
        heads = self.content_bias.shape[0]
        dtype = asking.dtype
        queries = split_heads(linear(asking, self.query[...]), heads)
        positioned = hasattr(self, "position")
        outputs = attend(
            queries + self.content_bias[...].astype(dtype)[:, None, None],
            queries + self.position_bias[...].astype(dtype)[:, None, None] if positioned else None,
            split_heads(linear(memory, self.key[...]), heads),
            split_heads(linear(memory, self.value[...]), heads),
            split_heads(linear(positions.sinusoids, self.position[...])[None], heads)[:, 0] if positioned else None,
            mask,
            positions.distances,
        )
        return linear(merge_heads(outputs), self.output[...])


def split_heads(x: Float[Array, "N I HS"], heads: int) -> Float[Array, "H N I S"]:
    return jnp.transpose(x.reshape(*x.shape[:-1], heads, -1), (2, 0, 1, 3))


def merge_heads(x: Float[Array, "H N I S"]) -> Float[Array, "N I HS"]:
    _, rows, queries, _ = x.shape
    return jnp.transpose(x, (1, 2, 0, 3)).reshape(rows, queries, -1)
