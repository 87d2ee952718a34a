"""Chunked cross-attention (paper 2.4, eq 3 and 4, Listing 1): how a decoder layer reads the encoded neighbors.

Chunk u's neighbors are read by the last token of chunk u and the first m - 1 tokens of chunk u + 1. So the stream is
moved m - 1 places to the left and cut into chunks, row u of which reads E_u. Chunks of m = 4, l = 3:

    position        0 1 2 3 | 4 5 6 7 | 8 9 10 11
    reads           - - - 0   0 0 0 1   1 1 1  2       (the E_u it reads; - is none)
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from retro_jax.core.dimensions import PADDING
from retro_jax.models.attention import Attention
from retro_jax.models.kernels.known import Mask
from retro_jax.models.layers import rms_norm
from retro_jax.models.positions import PositionTable


def to_attending_chunks(x: Float[Array, "B T *D"], chunk_length: int) -> Float[Array, "B C M *D"]:
    """Row u holds positions um + m - 1 .. um + 2m - 2; the last row one real position, then zeros."""
    batch, length, *rest = x.shape
    moved = jnp.pad(x[:, chunk_length - 1 :], [(0, 0), (0, chunk_length - 1)] + [(0, 0)] * len(rest))
    return moved.reshape(batch, length // chunk_length, chunk_length, *rest)


def from_attending_chunks(rows: Float[Array, "B C M D"]) -> Float[Array, "B T D"]:
    """The inverse of the shift; the first m - 1 positions, which read nothing, get exact zeros."""
    batch, chunks, chunk_length, width = rows.shape
    flat = rows.reshape(batch, chunks * chunk_length, width)
    return jnp.pad(flat, [(0, 0), (chunk_length - 1, 0), (0, 0)])[:, : chunks * chunk_length]


def reading_mask(
    segments: Int[Array, "B C"], neighbor_valid: Bool[Array, "B C K R"], chunk_length: int
) -> Bool[Array, "B C M KR"]:
    """The mask of retrieved tokens: no padding, and no neighbors of another document's chunk.

    The document of a query is that of the chunk it *stands* in, so it moves by m - 1 with the queries.
    """
    of_query = to_attending_chunks(jnp.repeat(segments, chunk_length, axis=1), chunk_length)
    allowed = (of_query == segments[..., None]) & (segments != PADDING)[..., None]
    valid = neighbor_valid.reshape(*segments.shape, 1, -1)
    return allowed[..., None] & valid


def chunked_cross_attention(
    attention: Attention,
    x: Float[Array, "B T D"],
    encoded: Float[Array, "B C K R E"],
    mask: Bool[Array, "B C M KR"],
    positions: PositionTable,
    attend: Callable,
) -> Float[Array, "B T D"]:
    """The update of the stream x from encoded neighbors, without the residual; one softmax over all K*R keys.

    `mask` is `reading_mask`'s, `positions` the table of `cross_distances(M, R)`, `attend` a
    `known.Attend`.
    """
    batch, chunks, neighbors, retrieved, width = encoded.shape
    chunk_length = mask.shape[2]
    asking = to_attending_chunks(rms_norm(x, attention.norm[...], attention.epsilon), chunk_length)
    update = attention(
        asking.reshape(batch * chunks, chunk_length, -1),
        encoded.reshape(batch * chunks, neighbors * retrieved, width),
        Mask(mask.reshape(batch * chunks, chunk_length, -1)),
        positions,
        attend,
    )
    return from_attending_chunks(update.reshape(batch, chunks, chunk_length, -1))
