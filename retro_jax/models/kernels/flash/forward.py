"""The forward kernel: one block of queries against all earlier keys, with a running maximum and sum (online softmax)."""

import functools

import jax
import jax.numpy as jnp

from retro_jax.models.kernels.flash import FORWARD_PRODUCTS
from retro_jax.models.kernels.flash.tiles import (
    MASKED,
    Tile,
    Tiling,
    as_row,
    column,
    of_head,
    over_keys,
    pl,
    product,
    weights,
)


def forward(tiling: Tiling, content_queries, position_queries, keys, values, table, query_ids, key_ids):
    """(outputs [N, T, H S], log-sum-exp [H S / lanes, N, heads, T]), both float32.

    Outputs stay in float32 for the backward pass: the mean of dP under P is sum(dO O), which takes out exactly what
    dP has in common only if O is not rounded (`xla._attend_backward`).
    """
    rows, length, width = content_queries.shape
    query_rows, whole, distances, of_queries, of_keys, sums = tiling.specs(length)
    results = (
        jax.ShapeDtypeStruct(content_queries.shape, jnp.float32),
        jax.ShapeDtypeStruct((width // tiling.lanes, rows, tiling.heads, length), jnp.float32),
    )
    arrays = (content_queries, position_queries, keys, values, table, query_ids, key_ids)
    return pl.pallas_call(
        functools.partial(_kernel, tiling, length),
        in_specs=[query_rows, query_rows, whole, whole, distances, of_queries, of_keys],
        out_specs=(query_rows, sums),
        out_shape=results,
        name="flash_forward",
        **tiling.options(FORWARD_PRODUCTS, content_queries.shape, (*arrays, *results)),
    )(*arrays)


def _kernel(tiling, length, content_queries, position_queries, keys, values, table, query_ids, key_ids, outputs, sums):
    a, block = pl.program_id(2), tiling.block
    ids, total = column(query_ids[0]), jnp.zeros((block, tiling.lanes), jnp.float32)
    for head in range(tiling.heads):
        queries = [of_head(tiling, head, array[0]) for array in (content_queries, position_queries)]

        def step(c, carry, queries=queries):
            highest, sum_, mixed = carry
            tile = Tile(tiling, length, a, c)
            logits = tile.logits(*queries, keys, table, ids, key_ids)
            now = jnp.maximum(highest, jnp.max(logits, 1, keepdims=True))
            # Summed after rounding, so that the weights of the values sum to 1 in either precision.
            rounded = weights(logits, now).astype(values.dtype)
            shrink = jnp.exp(highest - now)
            sum_ = sum_ * shrink + jnp.sum(rounded.astype(jnp.float32), 1, keepdims=True)
            return now, sum_, mixed * shrink + product(rounded, values[0, tile.keys, :])

        start = (
            jnp.full((block, 1), MASKED, jnp.float32),
            jnp.zeros((block, 1), jnp.float32),
            jnp.zeros((block, tiling.lanes), jnp.float32),
        )
        highest, sum_, mixed = over_keys(a, step, start)
        sum_ = jnp.maximum(sum_, 1e-30)
        total = total + of_head(tiling, head, mixed / sum_)
        sums[0, 0, head : head + 1, :] = as_row(highest + jnp.log(sum_))
    outputs[0] = total
