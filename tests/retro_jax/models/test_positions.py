"""Relative positions: the distances of the four attentions, sinusoids, and the shift against plain indexing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.models.positions import (
    Distances,
    causal_distances,
    conditioning_distances,
    cross_distances,
    relative_shift,
    relative_unshift,
    signed_distances,
    sinusoids,
)

KINDS = {
    "causal": causal_distances(5),
    "signed": signed_distances(6),
    "cross": cross_distances(4, 8),
    "conditioning": conditioning_distances(8, 4),
    "one query": Distances(1, 3),
    "one key": Distances(3, 1, offset=2),
}


def test_cross_distances_of_chunks_of_four():
    """Guards against query positions off.

    Row i of C_u^+ is at m - 1 + i of the retrieving chunk, a neighbor's token i' at i'.
    """
    expected = [
        [3, 2, 1, 0, -1, -2, -3, -4],
        [4, 3, 2, 1, 0, -1, -2, -3],
        [5, 4, 3, 2, 1, 0, -1, -2],
        [6, 5, 4, 3, 2, 1, 0, -1],
    ]
    assert cross_distances(4, 8).matrix().tolist() == expected
    paper = cross_distances(64, 128).matrix()
    assert (paper.min(), paper.max(), len(np.unique(paper))) == (-64, 126, 191)


def test_conditioning_distances_are_retrieved_minus_chunk_position():
    """Guards against encoder distances with the wrong sign. d = i' - i, from -63 to 127 at the paper's size."""
    assert conditioning_distances(4, 2).matrix().tolist() == [[0, -1], [1, 0], [2, 1], [3, 2]]
    paper = conditioning_distances(128, 64).matrix()
    assert (paper.min(), paper.max()) == (-63, 127)


def test_self_distances_are_query_minus_key():
    assert causal_distances(3).matrix().tolist() == signed_distances(3).matrix().tolist()
    assert signed_distances(3).matrix().tolist() == [[0, -1, -2], [1, 0, -1], [2, 1, 0]]
    assert causal_distances(3).rows().tolist() == [2, 1, 0, -1]  # nothing above the diagonal has a row but the spare
    assert signed_distances(3).rows().tolist() == [2, 1, 0, -1, -2, -3]


@pytest.mark.parametrize("kind", KINDS)
def test_shift_puts_each_distance_where_the_matrix_says(kind):
    """A table that holds the distances themselves becomes the distance matrix, wherever it may be read."""
    distances = KINDS[kind]
    table = np.broadcast_to(distances.rows(), (2, 3, distances.queries, len(distances.rows())))
    shifted = np.asarray(relative_shift(jnp.asarray(table), distances.keys))
    readable = distances.matrix() >= 0 if distances.causal else np.ones_like(distances.matrix(), bool)
    assert shifted.shape == (2, 3, *distances.matrix().shape)
    for matrix in shifted.reshape(-1, *readable.shape):
        np.testing.assert_array_equal(matrix[readable], distances.matrix()[readable])


@pytest.mark.parametrize("kind", KINDS)
def test_unshift_is_the_transpose_of_shift(kind):
    distances = KINDS[kind]
    width = len(distances.rows())
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((2, distances.queries, width)).astype(np.float32)
    gradient = generator.standard_normal((2, distances.queries, distances.keys)).astype(np.float32)
    _, transpose = jax.vjp(lambda logits: relative_shift(logits, distances.keys), logits)
    np.testing.assert_array_equal(relative_unshift(jnp.asarray(gradient), width), transpose(gradient)[0])


def test_sinusoids_are_sines_then_cosines():
    for distance in (-3, 0, 1, 126):
        angles = [distance * 10000 ** (-2 * t / 6) for t in range(3)]
        expected = [np.sin(angle) for angle in angles] + [np.cos(angle) for angle in angles]
        np.testing.assert_allclose(sinusoids(np.array([distance]), 6)[0], expected, atol=1e-5)
