"""Batches of joined sequences. The only file that imports grain."""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """What one training step reads; NumPy arrays from the iterator, global JAX arrays after placement.

    Every padding is -1 (`retro_jax.dimensions.PADDING`). `segments` numbers the documents of a sequence from 0 in
    order of appearance, so that two chunks belong together iff their numbers are equal and not -1.
    """

    tokens: Int[Array, "B T"]
    targets: Int[Array, "B T"]  # the next token of the same document, else -1
    loss_mask: Float[Array, "B T"]  # 1 where the target counts
    segments: Int[Array, "B C"]
    neighbor_tokens: Int[Array, "B C K R"]  # the first K stored neighbors; a missing neighbor is all -1
