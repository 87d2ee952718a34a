"""Relative positions (paper B.1.2, eq 6 and 7): the distance of each query and key, and a cheap way to compute their logits.

Every attention adds to its content logits a term that depends on the distance of query i and key j alone. All four
kinds have distances of the form `offset + i - j` (i, j from 0), so a logit matrix [queries, keys] holds only
queries + keys - 1 different ones. The fast form multiplies the queries with one row per *distinct* distance and then
moves row i by i places (`relative_shift`, a slice and two reshapes); the slow twin gathers by the distance
matrix, and tests compare the two.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class Distances:
    """The distances offset + i - j of queries i and keys j, both counted from 0.

    With `causal` only those with j <= i are ever used (as many queries as keys, offset 0), which halves the rows.
    """

    queries: int
    keys: int
    offset: int = 0
    causal: bool = False

    def matrix(self) -> Int[np.ndarray, "I J"]:
        """The distance matrix of queries and keys, for the slow twin and for tests."""
        return self.offset + np.arange(self.queries)[:, None] - np.arange(self.keys)[None, :]

    def rows(self) -> Int[np.ndarray, " W"]:
        """The distance of each row of a position table, in the order that `relative_shift` expects.

        The last row is never read: it makes a row of logits one longer than the shift, so that shifting is a slice.
        """
        width = self.queries + (1 if self.causal else self.keys)
        return self.offset + self.queries - 1 - np.arange(width)


@dataclass(frozen=True)
class PositionTable:
    """Distances with the sinusoids of their rows, computed once and shared by layers."""

    distances: Distances
    sinusoids: Float[Array, "W D"]


@dataclass(frozen=True)
class Rotary:
    """The turn of every position of a sequence: one angle a pair of numbers of a head, computed once and shared by layers.

    `distances` gives an attention without position logits its lengths.
    """

    distances: Distances
    cosines: Float[Array, "T S"]  # S / 2 angles, twice
    sines: Float[Array, "T S"]


def rotary(length: int, head_dim: int, theta: float, scaling: tuple[float, ...] = ()) -> Rotary:
    """Angles p * theta^(-2t/S) of positions p and pairs t = 0..S/2-1, counted from the start of the sequence.

    `scaling` is config.model.rotary_scaling. Logits depend on differences of positions alone, so documents that begin later in a sequence need no angles of their own.
    """
    # In float32, as the family's models are trained: a float64 product would be another number far into a sequence.
    frequencies = np.float32(1) / np.float32(theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    angles = np.arange(length, dtype=np.float32)[:, None] * _scaled(frequencies.astype(np.float32), scaling)
    angles = np.concatenate([angles, angles], axis=1)
    return Rotary(causal_distances(length), jnp.cos(angles), jnp.sin(angles))


def _scaled(frequencies: Float[np.ndarray, " P"], scaling: tuple[float, ...]) -> Float[np.ndarray, " P"]:
    """Slower angles: all of them by a factor, or Llama 3's way, which leaves those of short waves as they are.

    A pair that turns less than LOW times in LENGTH positions is slowed by FACTOR, one that turns more than HIGH times is
    not, and those between are mixed in proportion.
    """
    if not scaling:
        return frequencies
    slowed = frequencies / np.float32(scaling[0])
    if len(scaling) == 1:
        return slowed
    _, low, high, length = scaling
    turns = length * frequencies / np.float32(2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0).astype(np.float32)
    return (1 - kept) * slowed + kept * frequencies


def rotate(x: Float[Array, "*B T S"], turn: Rotary) -> Float[Array, "*B T S"]:
    """Turns the pairs (t, t + S/2) of each position's vector, in float32; the dtype of x stays."""
    wide, half = x.astype(jnp.float32), x.shape[-1] // 2
    across = jnp.concatenate([-wide[..., half:], wide[..., :half]], axis=-1)
    return (wide * turn.cosines + across * turn.sines).astype(x.dtype)


def position_table(distances: Distances, width: int, dtype) -> PositionTable:
    return PositionTable(distances, sinusoids(distances.rows(), width).astype(dtype))


def causal_distances(length: int) -> Distances:
    """Decoder self-attention: d = i - j >= 0."""
    return Distances(length, length, causal=True)


def signed_distances(length: int) -> Distances:
    """Encoder self-attention, bidirectional: d = i - j of either sign."""
    return Distances(length, length)


def cross_distances(chunk_length: int, retrieved_length: int, start: int = 0) -> Distances:
    """Chunked cross-attention (eq 6): d(i, i') = i - i' + m - 1, the first retrieved token being number `start`.

    Query i of an attending chunk is token m + i - 1 counted from the start of the chunk that retrieved, and a
    neighbor is taken to start where that chunk starts. The same for every chunk and every neighbor.
    """
    return Distances(chunk_length, retrieved_length, offset=chunk_length - 1 - start)


def conditioning_distances(retrieved_length: int, chunk_length: int, start: int = 0) -> Distances:
    """Encoder cross-attention (eq 7): retrieved tokens i' ask the chunk's tokens i, d = i' - i, the first being `start`."""
    return Distances(retrieved_length, chunk_length, offset=start)


def sinusoids(distances: Int[Array, "*W"], width: int) -> Float[Array, "*W D"]:
    """[sin, cos](d * 10000^(-2t/D)) for t = 0..D/2-1, float32 (Transformer-XL)."""
    frequencies = 10000.0 ** (-np.arange(0, width, 2) / width)
    angles = jnp.asarray(distances, jnp.float32)[..., None] * jnp.asarray(frequencies, jnp.float32)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def relative_shift(logits: Float[Array, "*B I W"], keys: int) -> Float[Array, "*B I J"]:
    """Turns logits per query and table row into logits per query and key: out[i, j] = logits[i, j - i + I - 1].

    In the flat array that entry is at (I - 1) + i (W - 1) + j, so cutting I - 1 entries off the front and reading the
    rest in rows of W - 1 lines all rows up. In a causal table, entries with j > i hold a neighboring row's values and
    must be masked.
    """
    *batch, queries, width = logits.shape
    flat = logits.reshape(*batch, queries * width)
    flat = flat[..., queries - 1 : queries - 1 + queries * (width - 1)]
    return flat.reshape(*batch, queries, width - 1)[..., :keys]


def relative_unshift(gradient: Float[Array, "*B I J"], width: int) -> Float[Array, "*B I W"]:
    """The transpose of `relative_shift`, for gradients."""
    *batch, queries, keys = gradient.shape
    # One row of padding before and after, and then a slice: cheaper than padding the flat array a second time.
    rows = jnp.pad(gradient, [(0, 0)] * len(batch) + [(1, 1), (0, width - 1 - keys)])
    flat = rows.reshape(*batch, (queries + 2) * (width - 1))[..., width - queries : width - queries + queries * width]
    return flat.reshape(*batch, queries, width)
