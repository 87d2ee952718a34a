"""The kernels: forward, and backward.

The grid goes over pairs of a head and a sequence (number h N + n) and over blocks of queries, or backward of keys, each of which
one program adds up alone. Backward it also writes the gradients of the logits. Those of queries and positions are plain
products with them, which XLA makes for a few heads at a time, so that no array of all heads' logits exists.
"""

import jax
import jax.numpy as jnp

from retro_jax.models.kernels.flash_gpu.tiles import MASKED, Tiling, pl, product, triton, weights
from retro_jax.models.positions import relative_unshift

ARRAYS = ("content", "position", "keys", "values", "table", "query_ids", "key_ids", "outputs", "sums", "gradient")
SHARED = ("query_ids", "key_ids")  # by all heads


def forward(tiling: Tiling, *arrays):
    """(outputs [P, T, S], log-sum-exp [P, T]), both float32, of content and position queries, keys and values [P, T, S],
    the table [H, T + b, S] and the ids of queries and keys [N, T]; P = H N."""
    content = arrays[0]
    return _run(
        tiling, _forward, "flash_gpu_forward", arrays, [(content.shape, "float32"), (content.shape[:2], "float32")]
    )


def backward(tiling: Tiling, *arrays):
    """Float32 gradients of `forward`'s first five arrays; `arrays` has outputs, log-sum-exp and the cotangent behind them."""
    heads, (pairs, length, _) = arrays[4].shape[0], arrays[0].shape
    at_once = tiling.heads_at_once(heads, pairs // heads * length**2 * arrays[2].dtype.itemsize)
    given = dict(zip(ARRAYS, arrays, strict=True))
    shared = {name: given.pop(name) for name in SHARED}
    groups = {name: array.reshape(heads // at_once, -1, *array.shape[1:]) for name, array in given.items()}
    found = jax.lax.map(lambda group: _backward_of_heads(tiling, group | shared), groups)
    return [gradient.reshape(-1, *gradient.shape[2:]) for gradient in found]


def _backward_of_heads(tiling, given):
    """The gradients of a few heads, whose gradients of the logits are held at once."""
    content, position, keys, table = (given[name] for name in ("content", "position", "keys", "table"))
    pairs, length, _ = content.shape
    results = [(content.shape, "float32")] * 2 + [((pairs, length, length), keys.dtype)]
    to_keys, to_values, to_logits = _run(
        tiling, _backward, "flash_gpu_backward", [given[name] for name in ARRAYS], results
    )
    # In the order of the table; the last row of `relative_unshift` is never read.
    by_head = (table.shape[0], -1, *content.shape[1:])
    to_distances = relative_unshift(to_logits, length + 1)[..., :length].reshape(*by_head[:2], length, length)
    to_table = _einsum("hniw,hnis->hws", to_distances, position.reshape(by_head))
    return (
        _einsum("pij,pjs->pis", to_logits, keys),
        _einsum("hniw,hws->hnis", to_distances, table[:, :length]).reshape(content.shape),
        to_keys,
        to_values,
        jnp.pad(to_table, [(0, 0), (0, tiling.block), (0, 0)]),
    )


def _einsum(form, left, right):
    return jnp.einsum(form, left, right, preferred_element_type=jnp.float32)


def _run(tiling, kernel, name, arrays, results):
    """Runs `kernel(tiling, arrays by name, results, scratch)`; every reference is that of the program's pair."""
    pairs, length, _ = arrays[0].shape
    sequences = arrays[5].shape[0]
    of = {"table": lambda p: p // sequences, "query_ids": lambda p: p % sequences, "key_ids": lambda p: p % sequences}
    blocks = length // tiling.block

    def spec(shape, pair=lambda p: p):
        return pl.BlockSpec((None, *shape[1:]), lambda p, i: (pair(p), *(0,) * (len(shape) - 1)))

    def body(*references):
        *found, scratch = references[len(arrays) :]
        kernel(tiling, dict(zip(ARRAYS, references[: len(arrays)], strict=False)), found, scratch)

    scratch = (pairs, blocks, tiling.block, 2 * tiling.block)
    *found, _ = pl.pallas_call(
        body,
        grid=(pairs, blocks),
        in_specs=[spec(array.shape, of.get(name, lambda p: p)) for name, array in zip(ARRAYS, arrays, strict=False)],
        out_specs=[spec(shape) for shape, _ in results]
        + [pl.BlockSpec((None, None, *scratch[2:]), lambda p, i: (p, i, 0, 0))],
        out_shape=[jax.ShapeDtypeStruct(*one) for one in (*results, (scratch, "float32"))],
        interpret=tiling.interpret,
        # One stage: with three an H200 gave wrong gradients. A scratch is written and read again within a tile, and
        # loads that are moved to an earlier tile miss what was written.
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        name=name,
    )(*arrays)
    return found


def _forward(tiling, arrays, results, scratch):
    a, here = pl.program_id(1), tiling.at(pl.program_id(1))
    width, dtype = arrays["keys"].shape[1], arrays["values"].dtype

    def step(c, carry):
        highest, sum_, mixed = carry
        logits = tiling.logits(arrays, a, c, scratch)
        now = jnp.maximum(highest, jnp.max(logits, 1))
        rounded = weights(logits, now).astype(dtype)  # summed after rounding: the weights of the values sum to 1
        shrink = jnp.exp(highest - now)
        sum_ = sum_ * shrink + jnp.sum(rounded.astype(jnp.float32), 1)
        return now, sum_, mixed * shrink[:, None] + product(rounded, arrays["values"][tiling.at(c), :])

    start = (
        jnp.full(tiling.block, MASKED, jnp.float32),
        jnp.zeros(tiling.block, jnp.float32),
        jnp.zeros((tiling.block, width), jnp.float32),
    )
    highest, sum_, mixed = jax.lax.fori_loop(0, a + 1, step, start)
    sum_ = jnp.maximum(sum_, 1e-30)
    results[0][here, :] = mixed / sum_[:, None]
    results[1][here] = highest + jnp.log(sum_)


def _backward(tiling, arrays, results, scratch):
    """Gradients of a block of keys and its values, and the gradients of its logits, for the products that `backward` makes."""
    c, (length, width), dtype = pl.program_id(1), arrays["keys"].shape, arrays["keys"].dtype
    here = tiling.at(c)

    def before(a, _):
        results[2][tiling.at(a), here] = jnp.zeros((tiling.block, tiling.block), dtype)

    def step(a, totals):
        queries = tiling.at(a)
        content, given = arrays["content"][queries, :], arrays["gradient"][queries, :]
        probabilities = weights(tiling.logits(arrays, a, c, scratch), arrays["sums"][queries])
        mean = jnp.sum(given.astype(jnp.float32) * arrays["outputs"][queries, :], 1)
        to_weights = product(given, arrays["values"][here, :].T)
        to_logits = (width**-0.5 * probabilities * (to_weights - mean[:, None])).astype(dtype)
        results[2][queries, here] = to_logits
        return totals[0] + product(to_logits.T, content), totals[1] + product(probabilities.astype(dtype).T, given)

    jax.lax.fori_loop(0, c, before, None)
    zeros = jnp.zeros((tiling.block, width), jnp.float32)
    totals = jax.lax.fori_loop(c, length // tiling.block, step, (zeros, zeros))
    for result, total in zip(results, totals, strict=False):
        result[here, :] = total
