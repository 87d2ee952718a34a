"""The slow twin of attention: tests compare every implementation with it."""

import jax
import jax.numpy as jnp

from retro_jax.models.positions import Distances


def attend_slowly(content_queries, position_queries, keys, values, positions, mask, distances: Distances):
    """What every attention computes, in the obvious form: gather by the distance matrix, softmax, autodiff."""
    row_of = {int(distance): row for row, distance in enumerate(distances.rows())}
    rows = jnp.asarray([[row_of.get(int(d), 0) for d in line] for line in distances.matrix()])
    query_groups, key_groups = content_queries.shape[2] // distances.queries, keys.shape[2] // distances.keys
    rows = jnp.tile(rows, (query_groups, key_groups))
    logits = jnp.einsum("hnis,hnjs->hnij", content_queries, keys)
    if positions is not None:
        logits = logits + jnp.einsum("hnis,hijs->hnij", position_queries, positions[:, rows])  # [H, I, J, S] rows
    logits = logits * content_queries.shape[-1] ** -0.5
    some = jnp.any(mask, axis=-1, keepdims=True)
    weights = jax.nn.softmax(jnp.where(mask | ~some, logits, -1e30), axis=-1)
    return jnp.einsum("hnij,hnjs->hnis", jnp.where(mask, weights, 0.0), values)
