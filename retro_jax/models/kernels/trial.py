"""A kernel's first run on a device: its values and gradients against XLA's, before training relies on them.

A kernel may compile for a chip and compute something else there. The comparison takes seconds, once a start.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.config import ModelConfig
from retro_jax.models.kernels.known import FALLBACK, Attend, Mask, self_attention
from retro_jax.models.placement import ONE_DEVICE, Placement
from retro_jax.models.positions import causal_distances

TOKENS = 1_024  # at most: several tiles
LARGEST_ERROR = 0.05  # |x - y| / |y|: several times the rounding of bfloat16, far below a mistake
LEAVES = ("outputs", "gradients of content queries", "of position queries", "of keys", "of values", "of positions")


def try_self_attention(model: ModelConfig, placement: Placement = ONE_DEVICE) -> None:
    """Compares what computes the decoder's self-attention with FALLBACK on this process's first device.

    Raises:
      ValueError: the kernel does not compile or run there, and why; or they differ by more than rounding: which leaf,
        by how much; and the remedy.
    """
    name = self_attention(model, placement.platform, placement.chip)
    if name == FALLBACK:
        return
    length, dtype = min(model.sequence_length, TOKENS), model.compute_dtype
    generator, shape = np.random.default_rng(0), (model.heads, 1, length, model.head_dim)
    shapes = [shape] * 4 + [(model.heads, length + 1, model.head_dim), shape]
    arrays = [jnp.asarray(generator.standard_normal(one), dtype) for one in shapes]
    ids = jnp.asarray(np.arange(length)[None] * 3 // length)  # three documents
    causal = jnp.tril(jnp.ones((length, length), bool))
    mask = Mask((ids[:, :, None] == ids[:, None, :]) & causal, ids, ids)

    if model.positions != "relative":
        arrays[1] = arrays[4] = None  # others give no position queries and no table
    # Arrays are arguments: of constants the compiler works out the whole attention itself, 22 to 40 s before an H200 runs.
    kernel, fallback = (jax.jit(partial(_outputs_and_gradients, one)) for one in (name, FALLBACK))
    try:
        found = jax.block_until_ready(kernel(arrays[:5], mask, arrays[5]))
    except (RuntimeError, NotImplementedError) as error:  # both from JAX and from the compiler
        reason, *_ = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"config.model.attention={name} cannot run on this device ({placement.chip or placement.platform}): "
            f"{reason.rstrip('.')}. Take config.model.attention={FALLBACK}."
        ) from error
    expected = fallback(arrays[:5], mask, arrays[5])
    for leaf, one, other in zip(LEAVES, found, expected, strict=True):
        if other is None:
            continue
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        size = float(np.linalg.norm(other))
        error = float(np.linalg.norm(one - other)) / size if size else 0.0  # of what is not used
        if not error <= LARGEST_ERROR:
            raise ValueError(
                f"config.model.attention={name} computes other values than {FALLBACK} on this device ({placement.chip}): its "
                f"{leaf} differ by {error:.2g} of their size, and rounding allows {LARGEST_ERROR}. Take "
                f"config.model.attention={FALLBACK}, and report the chip."
            )


def _outputs_and_gradients(name, arrays, mask, cotangent):
    attend = Attend(name, "self")
    distances = causal_distances(cotangent.shape[2])
    outputs, pull = jax.vjp(lambda *arrays: attend(*arrays, mask, distances), *arrays)
    return outputs, *pull(cotangent)
