"""The backward kernel: gradients of queries, keys, values and position table, with the weights computed again."""

import functools

import jax
import jax.numpy as jnp

from retro_jax.models.kernels.flash import BACKWARD_PRODUCTS
from retro_jax.models.kernels.flash.tiles import (
    Tile,
    Tiling,
    column,
    of_head,
    over_keys,
    pl,
    pltpu,
    product,
    unshift,
    weights,
)


def backward(tiling: Tiling, arrays: tuple, outputs, sums, gradient):
    """Gradients of the first five of `forward`'s `arrays`; the table's is float32.

    Keys, values and table gather their gradients in fast memory while the grid goes over the blocks of queries; the
    table's also over sequences.
    """
    content_queries, table = arrays[0], arrays[4]
    rows, length, width = content_queries.shape
    query_rows, whole, distances, of_queries, of_keys, of_sums = tiling.specs(length)
    like = jax.ShapeDtypeStruct(content_queries.shape, content_queries.dtype)
    results = (like, like, like, like, jax.ShapeDtypeStruct(table.shape, jnp.float32))
    inputs = (*arrays, outputs, sums, gradient)
    return pl.pallas_call(
        functools.partial(_kernel, tiling, length),
        in_specs=[query_rows, query_rows, whole, whole, distances, of_queries, of_keys]
        + [query_rows, of_sums, query_rows],
        out_specs=(query_rows, query_rows, whole, whole, distances),
        out_shape=results,
        scratch_shapes=[pltpu.VMEM((length, tiling.lanes), jnp.float32)] * 2,
        name="flash_backward",
        **tiling.options(BACKWARD_PRODUCTS, content_queries.shape, (*inputs, *results)),
    )(*inputs)


def _kernel(tiling, length, *references):
    content_queries, position_queries, keys, values, table, query_ids, key_ids, *references = references
    outputs, sums, gradient, to_content, to_position, to_keys, to_values, to_table, key_sum, value_sum = references
    sequence, a, dtype = pl.program_id(1), pl.program_id(2), content_queries.dtype

    @pl.when(a == 0)
    def _():
        key_sum[...] = jnp.zeros_like(key_sum)
        value_sum[...] = jnp.zeros_like(value_sum)

    @pl.when((sequence == 0) & (a == 0))
    def _():
        to_table[...] = jnp.zeros_like(to_table)

    ids = column(query_ids[0])
    totals = (jnp.zeros((tiling.block, tiling.lanes), jnp.float32),) * 2
    for head in range(tiling.heads):
        mine = functools.partial(of_head, tiling, head)
        content, position, given = mine(content_queries[0]), mine(position_queries[0]), mine(gradient[0])
        offset = column(sums[0, 0, head : head + 1, :])
        mean = jnp.sum(given.astype(jnp.float32) * outputs[0], 1, keepdims=True)

        def step(c, totals, mine=mine, content=content, position=position, given=given, offset=offset, mean=mean):
            tile = Tile(tiling, length, a, c)
            probabilities = weights(tile.logits(content, position, keys, table, ids, key_ids), offset)
            to_weights = product(given, values[0, tile.keys, :], "nt")
            to_logits = tiling.scale * probabilities * (to_weights - mean)
            to_distances = unshift(to_logits).astype(dtype)
            to_logits = to_logits.astype(dtype)
            value_sum[tile.keys, :] += product(probabilities.astype(dtype), given, "tn")
            key_sum[tile.keys, :] += product(to_logits, content, "tn")
            to_table[tile.window, :] += product(to_distances, position, "tn")
            return (
                totals[0] + product(to_logits, mine(keys[0, tile.keys, :])),
                totals[1] + product(to_distances, mine(table[tile.window, :])),
            )

        totals = over_keys(a, step, totals)
    to_content[0], to_position[0] = (total.astype(dtype) for total in totals)

    @pl.when(a == pl.num_programs(2) - 1)
    def _():
        to_keys[0] = key_sum[...].astype(dtype)
        to_values[0] = value_sum[...].astype(dtype)
