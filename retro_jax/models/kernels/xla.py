"""The default attention: matmuls and a softmax that XLA compiles for every device, with a gradient of its own.

Heads lead every array ([H, N, ...]): the position product is then one matmul a head over all rows, and
everything else one batched product over heads and rows.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from retro_jax.models.positions import Distances, relative_shift, relative_unshift


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def attend(
    content_queries: Float[Array, "H N I S"],
    position_queries: Float[Array, "H N I S"] | None,
    keys: Float[Array, "H N J S"],
    values: Float[Array, "H N J S"],
    positions: Float[Array, "H W S"] | None,
    mask: Bool[Array, "N #I J"],
    distances: Distances,
) -> Float[Array, "H N I S"]:
    """softmax(content + shifted position logits) @ values; softmax in float32, products in the inputs' dtype.

    Queries and keys may come in several groups of `distances.queries` and `distances.keys`; `positions` has a row for
    each of `distances.rows()`, or is None, as `position_queries` then is: there are no position logits. A query without
    any allowed key gives exact zeros, and zero gradients.
    """
    return _attend_forward(content_queries, position_queries, keys, values, positions, mask, distances)[0]


def _attend_forward(content_queries, position_queries, keys, values, positions, mask, distances):
    scale = content_queries.shape[-1] ** -0.5
    logits = _product("hnis,hnjs->hnij", content_queries, keys)
    if positions is not None:
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
    to_position_queries = to_positions = None
    if positions is not None:
        to_position_logits = jnp.sum(_grouped(to_logits, distances), axis=-2)
        to_distances = relative_unshift(to_position_logits, positions.shape[-2]).astype(dtype)
        to_distances = to_distances.reshape(*position_queries.shape[:3], -1)
        to_position_queries = _product("hniw,hws->hnis", to_distances, positions).astype(dtype)
        to_positions = _product("hniw,hnis->hws", to_distances, position_queries).astype(dtype)
    to_logits = to_logits.astype(dtype)
    return (
        _product("hnij,hnjs->hnis", to_logits, keys).astype(dtype),
        to_position_queries,
        _over_queries(to_logits, content_queries).astype(dtype),
        _over_queries(weights, gradient).astype(dtype),
        to_positions,
        None,
    )


attend.defvjp(_attend_forward, _attend_backward)


def _over_queries(weights, rows):
    """Sums the queries' rows by their weights for each key: [H, N, J, S]."""
    # On a CPU it is fastest to turn the small result in float32, and to contract two dimensions in bfloat16 (`linear`).
    if weights.dtype == jnp.float32:
        return jnp.swapaxes(_product("hnis,hnij->hnsj", rows, weights), -1, -2)
    return _product("hnzij,hnzis->hnjs", weights[:, :, None], rows[:, :, None])


def _grouped(logits, distances):
    return logits.reshape(*logits.shape[:2], -1, distances.queries, logits.shape[-1] // distances.keys, distances.keys)


def _product(form, left, right):
    return jnp.einsum(form, left, right, preferred_element_type=jnp.float32)
