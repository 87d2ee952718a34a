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
from retro_jax.models.layers import NORM_EPSILON, bias, kernel, linear, ones, rms_norm, zeros
from retro_jax.models.positions import PositionTable, Rotary, rotate


class Attention(nnx.Module):
    """The weights of one attention and its update, without the residual. No biases: a row without keys gives zeros.

    Args:
      width: of the stream that attends (query, output and position projections, paper 3.3).
      memory_width: of the stream attended to (key and value projections).
      memory_norm: whether the stream attended to has an RMSNorm of its own.
      positions: whether logits depend on relative positions; if not, W_R and v do not exist.
      gate: whether the update is multiplied by tanh of a number that starts at 0.
      epsilon: of the norm of the stream that attends.
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
        gate: bool = False,
        epsilon: float = NORM_EPSILON,
    ):
        self.epsilon = epsilon
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
        if gate:
            self.update_gate = zeros()

    def to_self(
        self, x: Float[Array, "N I D"], mask: Mask, positions: PositionTable, attend: Callable
    ) -> Float[Array, "N I D"]:
        """The update of self-attention for the stream x, which is normalized here."""
        normed = rms_norm(x, self.norm[...], self.epsilon)
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
        queries = split_heads(linear(asking, self.query[...]), heads)
        positioned = hasattr(self, "position")
        outputs = attend(
            with_bias(queries, self.content_bias[...]),
            with_bias(queries, self.position_bias[...]) if positioned else None,
            split_heads(linear(memory, self.key[...]), heads),
            split_heads(linear(memory, self.value[...]), heads),
            split_heads(linear(positions.sinusoids, self.position[...])[None], heads)[:, 0] if positioned else None,
            mask,
            positions.distances,
        )
        update = linear(merge_heads(outputs), self.output[...])
        if not hasattr(self, "update_gate"):
            return update
        return (update.astype(jnp.float32) * jnp.tanh(self.update_gate[...])).astype(asking.dtype)  # as in `with_bias`


class RotaryAttention(nnx.Module):
    """Self-attention of the Llama family: rotary positions, no position logits, and heads of keys that several queries share.

    Args:
      key_heads: heads of keys and values; `heads` is a multiple of it.
      query_key_norm: whether each head's queries and keys pass an RMSNorm before they are turned (Qwen3).
      biases: whether queries, keys and values have biases (Qwen2).
      epsilon: of all these norms.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        output_gain: float,
        rngs: nnx.Rngs,
        key_heads: int,
        query_key_norm: bool = False,
        biases: bool = False,
        epsilon: float = NORM_EPSILON,
    ):
        self.heads, self.key_heads, self.epsilon = heads, key_heads, epsilon
        self.norm = ones(width)
        self.query = kernel(rngs, width, heads * head_dim)
        self.key = kernel(rngs, width, key_heads * head_dim)
        self.value = kernel(rngs, width, key_heads * head_dim)
        self.output = kernel(rngs, heads * head_dim, width, output_gain)
        if query_key_norm:
            self.query_norm, self.key_norm = ones(head_dim), ones(head_dim)
        if biases:
            self.query_bias, self.key_bias = zeros(heads, head_dim), zeros(key_heads, head_dim)
            self.value_bias = zeros(key_heads, head_dim)

    def to_self(
        self, x: Float[Array, "N I D"], mask: Mask, positions: Rotary, attend: Callable
    ) -> Float[Array, "N I D"]:
        """The update of self-attention for the stream x, which is normalized here."""
        normed = rms_norm(x, self.norm[...], self.epsilon)
        queries, keys, values = (
            self._project(normed, name, heads)
            for name, heads in (("query", self.heads), ("key", self.key_heads), ("value", self.key_heads))
        )
        if hasattr(self, "query_norm"):
            queries = rms_norm(queries, self.query_norm[...], self.epsilon)
            keys = rms_norm(keys, self.key_norm[...], self.epsilon)
        shared = self.heads // self.key_heads
        keys, values = jnp.repeat(rotate(keys, positions), shared, axis=0), jnp.repeat(values, shared, axis=0)
        outputs = attend(rotate(queries, positions), None, keys, values, None, mask, positions.distances)
        return linear(merge_heads(outputs), self.output[...])

    def _project(self, x: Float[Array, "N I D"], name: str, heads: int) -> Float[Array, "H N I S"]:
        projected = split_heads(linear(x, getattr(self, name)[...]), heads)
        if not hasattr(self, f"{name}_bias"):
            return projected
        return with_bias(projected, getattr(self, f"{name}_bias")[...])


def with_bias(x: Float[Array, "H N I S"], bias: Float[Array, "H S"]) -> Float[Array, "H N I S"]:
    """Adds a bias in float32: its gradient is a sum over all rows, which in bfloat16 stops growing."""
    return (x.astype(jnp.float32) + bias[:, None, None]).astype(x.dtype)


def split_heads(x: Float[Array, "N I HS"], heads: int) -> Float[Array, "H N I S"]:
    return jnp.transpose(x.reshape(*x.shape[:-1], heads, -1), (2, 0, 1, 3))


def merge_heads(x: Float[Array, "H N I S"]) -> Float[Array, "N I HS"]:
    _, rows, queries, _ = x.shape
    return jnp.transpose(x, (1, 2, 0, 3)).reshape(rows, queries, -1)
