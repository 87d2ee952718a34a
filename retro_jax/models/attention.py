"""Multi-head attention with Transformer-XL relative positions: one core for all four kinds of attention.

logit(i, j) = [ (q_i + u) . k_j + (q_i + v) . W_R s(d(i, j)) ] / sqrt(head width), softmax over the keys the mask
allows. Heads lead every array ([H, N, ...]): the position product is then one matrix product a head over all rows,
and everything else one batched product over heads and rows.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from retro_jax.models.layers import bias, kernel, linear, ones, rms_norm
from retro_jax.models.positions import Distances, PositionTable, relative_shift, relative_unshift


class Attention(nnx.Module):
    """The weights of one attention and its update, without the residual. No biases: a row without keys gives zeros.

    Args:
      width: of the stream that asks (query, output and position projections, paper 3.3).
      memory_width: of what is asked (key and value projections).
      memory_norm: whether what is asked passes an RMSNorm of its own first.
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
    ):
        self.norm = ones(width)
        if memory_norm:
            self.memory_norm = ones(memory_width)
        self.query = kernel(rngs, width, heads * head_dim)
        self.key = kernel(rngs, memory_width, heads * head_dim)
        self.value = kernel(rngs, memory_width, heads * head_dim)
        self.output = kernel(rngs, heads * head_dim, width, output_gain)
        self.position = kernel(rngs, width, heads * head_dim)
        self.content_bias = bias(rngs, heads, head_dim)
        self.position_bias = bias(rngs, heads, head_dim)

    def to_self(
        self, x: Float[Array, "N I D"], mask: Bool[Array, "N #I I"], positions: PositionTable
    ) -> Float[Array, "N I D"]:
        """What the un-normed stream x learns from itself."""
        normed = rms_norm(x, self.norm[...])
        return self(normed, normed, mask, positions)

    def __call__(
        self,
        asking: Float[Array, "N I D"],
        memory: Float[Array, "N J E"],
        mask: Bool[Array, "N #I J"],
        positions: PositionTable,
    ) -> Float[Array, "N I D"]:
        """The update for `asking`, which has passed `self.norm` already, from `memory`; `mask` says who may read what.

        I and J may be whole multiples of the queries and keys of `positions`: several neighbors side by side, each of
        which counts its positions from its own start.
        """
        heads = self.content_bias.shape[0]
        dtype = asking.dtype
        queries = split_heads(linear(asking, self.query[...]), heads)
        outputs = attend(
            queries + self.content_bias[...].astype(dtype)[:, None, None],
            queries + self.position_bias[...].astype(dtype)[:, None, None],
            split_heads(linear(memory, self.key[...]), heads),
            split_heads(linear(memory, self.value[...]), heads),
            split_heads(linear(positions.sinusoids, self.position[...])[None], heads)[:, 0],
            mask,
            positions.distances,
        )
        return linear(merge_heads(outputs), self.output[...])


def split_heads(x: Float[Array, "N I HS"], heads: int) -> Float[Array, "H N I S"]:
    return jnp.transpose(x.reshape(*x.shape[:-1], heads, -1), (2, 0, 1, 3))


def merge_heads(x: Float[Array, "H N I S"]) -> Float[Array, "N I HS"]:
    _, rows, queries, _ = x.shape
    return jnp.transpose(x, (1, 2, 0, 3)).reshape(rows, queries, -1)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def attend(
    content_queries: Float[Array, "H N I S"],
    position_queries: Float[Array, "H N I S"],
    keys: Float[Array, "H N J S"],
    values: Float[Array, "H N J S"],
    positions: Float[Array, "H W S"],
    mask: Bool[Array, "N #I J"],
    distances: Distances,
) -> Float[Array, "H N I S"]:
    """softmax(content + shifted position logits) @ values; softmax in float32, products in the inputs' dtype.

    Queries and keys may come in several groups of `distances.queries` and `distances.keys`; `positions` has a row for
    each of `distances.rows()`. A query without any allowed key gives exact zeros, and zero gradients.
    """
    return _attend_forward(content_queries, position_queries, keys, values, positions, mask, distances)[0]


def _attend_forward(content_queries, position_queries, keys, values, positions, mask, distances):
    scale = content_queries.shape[-1] ** -0.5
    logits = _product("hnis,hnjs->hnij", content_queries, keys)
    by_distance = _product("hnis,hws->hniw", position_queries, positions)
    by_distance = by_distance.reshape(*by_distance.shape[:2], -1, distances.queries, by_distance.shape[-1])
    position_logits = relative_shift(by_distance, distances.keys)
    logits = (_grouped(logits, distances) + position_logits[..., None, :]).reshape(logits.shape)
    # The mask enters twice: a finite stand-in keeps the softmax of a row without keys free of NaN, and the product
    # with the mask then makes that row (and every masked key) exactly zero.
    logits = jnp.where(mask, scale * logits, -1e30)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True)) * mask
    weights = weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-30)
    weights = weights.astype(values.dtype)
    outputs = _product("hnij,hnjs->hnis", weights, values).astype(values.dtype)
    return outputs, (content_queries, position_queries, keys, values, positions, weights)


def _attend_backward(distances, saved, gradient):
    content_queries, position_queries, keys, values, positions, weights = saved
    dtype, scale = values.dtype, values.shape[-1] ** -0.5
    to_weights = _product("hnis,hnjs->hnij", gradient, values)
    # The mean of dP under P must take out exactly what dP has in common. Hence not the shorter rowsum(dO O), with O
    # rounded to bfloat16 (gradients of queries 10 to 50% wrong), and hence over the sum of the rounded P, which is not
    # quite 1 (8% against 1%).
    probabilities = weights.astype(jnp.float32)
    mean = jnp.sum(probabilities * to_weights, axis=-1, keepdims=True)
    mean = mean / jnp.maximum(jnp.sum(probabilities, axis=-1, keepdims=True), 1e-30)
    to_logits = scale * probabilities * (to_weights - mean)
    to_position_logits = jnp.sum(_grouped(to_logits, distances), axis=-2)
    to_distances = relative_unshift(to_position_logits, positions.shape[-2]).astype(dtype)
    to_distances = to_distances.reshape(*position_queries.shape[:3], -1)
    to_logits = to_logits.astype(dtype)
    # z is a dimension of size 1: see `linear` for why two dimensions are contracted.
    return (
        _product("hnij,hnjs->hnis", to_logits, keys).astype(dtype),
        _product("hniw,hws->hnis", to_distances, positions).astype(dtype),
        _product("hnzij,hnzis->hnjs", to_logits[:, :, None], content_queries[:, :, None]).astype(dtype),
        _product("hnzij,hnzis->hnjs", weights[:, :, None], gradient[:, :, None]).astype(dtype),
        _product("hniw,hnis->hws", to_distances, position_queries).astype(dtype),
        None,
    )


attend.defvjp(_attend_forward, _attend_backward)


def attend_slowly(content_queries, position_queries, keys, values, positions, mask, distances: Distances):
    """What `attend` computes, in the obvious form: gather by the distance matrix, softmax, autodiff."""
    row_of = {int(distance): row for row, distance in enumerate(distances.rows())}
    rows = jnp.asarray([[row_of.get(int(d), 0) for d in line] for line in distances.matrix()])
    query_groups, key_groups = content_queries.shape[2] // distances.queries, keys.shape[2] // distances.keys
    rows = jnp.tile(rows, (query_groups, key_groups))
    logits = jnp.einsum("hnis,hnjs->hnij", content_queries, keys)
    logits = logits + jnp.einsum("hnis,hijs->hnij", position_queries, positions[:, rows])  # [H, I, J, S] rows
    logits = logits * content_queries.shape[-1] ** -0.5
    some = jnp.any(mask, axis=-1, keepdims=True)
    weights = jax.nn.softmax(jnp.where(mask | ~some, logits, -1e30), axis=-1)
    return jnp.einsum("hnij,hnjs->hnis", jnp.where(mask, weights, 0.0), values)


def _grouped(logits, distances):
    return logits.reshape(*logits.shape[:2], -1, distances.queries, logits.shape[-1] // distances.keys, distances.keys)


def _product(form, left, right):
    return jnp.einsum(form, left, right, preferred_element_type=jnp.float32)
