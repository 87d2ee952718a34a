"""The kernels: forward, and gradients of queries, of keys and values, and of positions.

The grid goes over pairs of a head and a sequence (number h N + n) and over blocks of queries, of keys, or of distances, each of
which one program adds up alone. So every gradient computes the logits of its tiles again.
"""

import jax
import jax.numpy as jnp

from retro_jax.models.kernels.flash_gpu.tiles import MASKED, Tiling, pl, product, triton, weights

ARRAYS = ("content", "position", "keys", "values", "table", "query_ids", "key_ids", "outputs", "sums", "gradient")


def forward(tiling: Tiling, *arrays):
    """(outputs [P, T, S], log-sum-exp [P, T]), both float32, of content and position queries, keys and values [P, T, S],
    the table [H, T + b, S] and the ids of queries and keys [N, T]; P = H N."""
    content = arrays[0]
    results = (content.shape, content.shape[:2])
    return _run(tiling, _forward, "flash_gpu_forward", arrays, results, 1)


def backward(tiling: Tiling, *arrays):
    """Float32 gradients of `forward`'s first five arrays; `arrays` has outputs, log-sum-exp and the cotangent behind them."""
    shape, blocks = arrays[0].shape, arrays[0].shape[1] // tiling.block
    windows = (shape[0], blocks, 2 * tiling.block, shape[2])
    to_content, to_position = _run(tiling, _to_queries, "flash_gpu_queries", arrays, (shape, shape), 2)
    to_keys, to_values = _run(tiling, _to_memory, "flash_gpu_memory", arrays, (shape, shape), 1)
    (to_windows,) = _run(tiling, _to_distances, "flash_gpu_distances", arrays, (windows,), 2)
    # Block d of the windows has the distances from (d + 1) b - 1 down to (d - 1) b: two blocks of the table, which is reversed.
    per_head = to_windows.reshape(arrays[4].shape[0], -1, *windows[1:]).sum(1)[:, ::-1]
    halves = per_head.reshape(*per_head.shape[:2], 2, tiling.block, shape[2])
    to_table = jnp.pad(halves[:, :, 0], [(0, 0), (0, 1), (0, 0), (0, 0)])
    to_table += jnp.pad(halves[:, :, 1], [(0, 0), (1, 0), (0, 0), (0, 0)])
    return to_content, to_position, to_keys, to_values, to_table.reshape(arrays[4].shape)


def _run(tiling, kernel, name, arrays, shapes, scratches):
    """Runs `kernel(tiling, arrays by name, results, scratches)`; every reference is that of the program's pair."""
    pairs, length, _ = arrays[0].shape
    sequences = arrays[5].shape[0]
    of = {"table": lambda p: p // sequences, "query_ids": lambda p: p % sequences, "key_ids": lambda p: p % sequences}
    blocks = length // tiling.block

    def spec(shape, pair=lambda p: p):
        return pl.BlockSpec((None, *shape[1:]), lambda p, i: (pair(p), *(0,) * (len(shape) - 1)))

    def body(*references):
        given = dict(zip(ARRAYS, references[: len(arrays)], strict=False))
        rest = references[len(arrays) :]
        kernel(tiling, given, rest[: len(shapes)], rest[len(shapes) :])

    own = (pairs, blocks, tiling.block, 2 * tiling.block)
    found = pl.pallas_call(
        body,
        grid=(pairs, blocks),
        in_specs=[spec(array.shape, of.get(name, lambda p: p)) for name, array in zip(ARRAYS, arrays, strict=False)],
        out_specs=[spec(shape) for shape in shapes]
        + [pl.BlockSpec((None, None, *own[2:]), lambda p, i: (p, i, 0, 0))] * scratches,
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (*shapes, *[own] * scratches)],
        interpret=tiling.interpret,
        # One stage: with three an H200 gave wrong gradients. A scratch is written and read again within a tile, and
        # loads that are moved to an earlier tile miss what was written.
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        name=name,
    )(*arrays)
    return found[: len(shapes)]


def _forward(tiling, arrays, results, scratches):
    a, here = pl.program_id(1), tiling.at(pl.program_id(1))
    width, dtype = arrays["keys"].shape[1], arrays["values"].dtype

    def step(c, carry):
        highest, sum_, mixed = carry
        logits = tiling.logits(arrays, a, c, scratches[0])
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


def _tile(tiling, arrays, a, c, scratch):
    """(probabilities, gradient of the logits), float32, of a tile."""
    here = tiling.at(a)
    given = arrays["gradient"][here, :]
    probabilities = weights(tiling.logits(arrays, a, c, scratch), arrays["sums"][here])
    mean = jnp.sum(given.astype(jnp.float32) * arrays["outputs"][here, :], 1)
    to_weights = product(given, arrays["values"][tiling.at(c), :].T)
    return probabilities, given.shape[1] ** -0.5 * probabilities * (to_weights - mean[:, None])


def _to_queries(tiling, arrays, results, scratches):
    a, dtype = pl.program_id(1), arrays["keys"].dtype
    scratches[1][...] = jnp.zeros((tiling.block, 2 * tiling.block), jnp.float32)
    tiling.wait()

    def step(c, totals):
        _, to_logits = _tile(tiling, arrays, a, c, scratches[0])
        to_distances = tiling.unshift(scratches[1], to_logits).astype(dtype)
        window = arrays["table"][tiling.window(arrays["keys"].shape[0], a - c), :]
        keys = arrays["keys"][tiling.at(c), :]
        return totals[0] + product(to_logits.astype(dtype), keys), totals[1] + product(to_distances, window)

    zeros = jnp.zeros((tiling.block, arrays["keys"].shape[1]), jnp.float32)
    for result, total in zip(results, jax.lax.fori_loop(0, a + 1, step, (zeros, zeros)), strict=True):
        result[tiling.at(a), :] = total


def _to_memory(tiling, arrays, results, scratches):
    c, (length, width), dtype = pl.program_id(1), arrays["keys"].shape, arrays["keys"].dtype

    def step(a, totals):
        probabilities, to_logits = _tile(tiling, arrays, a, c, scratches[0])
        content, given = arrays["content"][tiling.at(a), :], arrays["gradient"][tiling.at(a), :]
        return (
            totals[0] + product(to_logits.astype(dtype).T, content),
            totals[1] + product(probabilities.astype(dtype).T, given),
        )

    zeros = jnp.zeros((tiling.block, width), jnp.float32)
    totals = jax.lax.fori_loop(c, length // tiling.block, step, (zeros, zeros))
    for result, total in zip(results, totals, strict=True):
        result[tiling.at(c), :] = total


def _to_distances(tiling, arrays, results, scratches):
    apart, (length, width), dtype = pl.program_id(1), arrays["keys"].shape, arrays["keys"].dtype
    scratches[1][...] = jnp.zeros((tiling.block, 2 * tiling.block), jnp.float32)
    tiling.wait()

    def step(a, total):
        _, to_logits = _tile(tiling, arrays, a, a - apart, scratches[0])
        to_distances = tiling.unshift(scratches[1], to_logits).astype(dtype)
        return total + product(to_distances.T, arrays["position"][tiling.at(a), :])

    zeros = jnp.zeros((2 * tiling.block, width), jnp.float32)
    results[0][apart, :, :] = jax.lax.fori_loop(apart, length // tiling.block, step, zeros)
