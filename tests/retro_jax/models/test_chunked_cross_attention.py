"""Chunked cross-attention: the tokens of each attending row, the mask, and exact zeros elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from retro_jax.models.attention import Attention
from retro_jax.models.chunked_cross_attention import (
    chunked_cross_attention,
    from_attending_chunks,
    reading_mask,
    to_attending_chunks,
)
from retro_jax.models.kernels.known import Attend
from retro_jax.models.positions import cross_distances, position_table

M, C, K, WIDTH, ENCODED = 4, 3, 2, 10, 6
R = 2 * M


def test_attending_chunks_of_twelve_positions():
    """Guards against queries off by one.

    The last token of a chunk opens its row; the last row has one real position.
    """
    positions = jnp.arange(1, 13)[None, :, None]  # counted from 1: a 0 is padding
    rows = to_attending_chunks(positions, M)
    assert rows[0, :, :, 0].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11], [12, 0, 0, 0]]
    assert from_attending_chunks(rows)[0, :, 0].tolist() == [0, 0, 0, 4, 5, 6, 7, 8, 9, 10, 11, 12]


def test_one_chunk_is_read_by_its_last_token_alone():
    assert to_attending_chunks(jnp.arange(1, 5)[None, :, None], M)[0, :, :, 0].tolist() == [[4, 0, 0, 0]]


def test_who_may_read():
    """Guards against a mask that does not move with the queries.

    A query's document is its chunk's; nothing reads missing tokens.
    """
    segments = jnp.asarray([[0, 0, 1]])
    valid = np.ones((1, C, K, R), bool)
    valid[0, 0, 1] = False  # a missing neighbor
    valid[0, 1, 0, M:] = False  # a missing continuation
    mask = np.asarray(reading_mask(segments, jnp.asarray(valid), M))
    assert mask.shape == (1, C, M, K * R)
    readers = mask.any(axis=-1)[0].astype(int).tolist()
    assert readers == [
        [1, 1, 1, 1],  # positions 3 .. 6 read chunk 0's neighbors
        [1, 0, 0, 0],  # position 7 reads chunk 1's; 8 .. 10 stand in another document
        [1, 0, 0, 0],  # position 11 reads chunk 2's; behind it is nothing
    ]
    np.testing.assert_array_equal(mask[0, 0, 0], valid[0, 0].reshape(-1))
    np.testing.assert_array_equal(mask[0, 1, 0], valid[0, 1].reshape(-1))


def test_padding_chunks_read_nothing():
    """Guards against padding taken for a document, because two padding chunks have the same segment, -1."""
    mask = reading_mask(jnp.asarray([[0, -1, -1]]), jnp.ones((1, C, K, R), bool), M)
    assert np.asarray(mask).any(axis=-1)[0].astype(int).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def _update(x, encoded, segments, valid, seed=0, sharpness=1.0):
    attention = Attention(WIDTH, ENCODED, 2, 4, 0.5, nnx.Rngs(seed))
    attention = jax.tree.map(lambda leaf: leaf + 0.3, attention)  # nothing small enough to hide a mistake
    if sharpness != 1.0:
        attention.value[...] = _in_sixteenths(attention.value[...])
        for queries in (attention.query, attention.content_bias, attention.position_bias):
            queries[...] = sharpness * queries[...]
    table = position_table(cross_distances(M, encoded.shape[-2]), WIDTH, x.dtype)
    return chunked_cross_attention(
        attention, x, encoded, reading_mask(segments, valid, M), table, Attend("xla", "read")
    )


def _in_sixteenths(array):
    """Numbers of few bits, whose products and sums are exact."""
    return jnp.round(16 * array) / 16


def _inputs(dtype=jnp.float32, neighbors=K):
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal((2, C * M, WIDTH)), dtype)
    encoded = jnp.asarray(generator.standard_normal((2, C, neighbors, R, ENCODED)), dtype)
    return x, encoded, jnp.zeros((2, C), int), jnp.ones((2, C, neighbors, R), bool)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_first_rows_get_exact_zeros(dtype):
    """Guards against a bias on the first m - 1 positions. They get exact zeros; all others get something."""
    update = np.asarray(_update(*_inputs(dtype)), np.float32)
    written = np.abs(update).max(axis=-1) > 1e-3
    assert written.astype(int).tolist() == [[0] * (M - 1) + [1] * (C * M - M + 1)] * 2
    assert not update[:, : M - 1].any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_fully_padded_set_gives_exact_zeros_and_finite_gradients(dtype):
    """Guards against NaN without neighbors.

    Chunk 1 of the first sequence has none, so positions 7 .. 10 get exact zeros.
    """
    x, encoded, segments, valid = _inputs(dtype)
    valid = valid.at[0, 1].set(False)
    update = np.asarray(_update(x, encoded, segments, valid), np.float32)
    assert not update[0, 7:11].any()
    assert update[0, 3:7].any() and update[0, 11].any() and update[1, 7:11].any()
    to_x, to_encoded = jax.grad(
        lambda x, encoded: jnp.sum(_update(x, encoded, segments, valid).astype(jnp.float32) ** 2), (0, 1)
    )(x, encoded)
    assert np.isfinite(np.asarray(to_x, np.float32)).all() and np.isfinite(np.asarray(to_encoded, np.float32)).all()
    assert not np.asarray(to_encoded, np.float32)[0, 1].any()
    assert np.asarray(to_encoded, np.float32)[1, 1].any()


def test_a_missing_neighbor_equals_one_neighbor_less():
    """Guards against attention to a missing neighbor. One real neighbor of two reads as one, whatever the other holds."""
    x, encoded, segments, valid = _inputs()
    missing = valid.at[:, :, 1].set(False)
    with_missing = _update(x, encoded, segments, missing)
    np.testing.assert_array_equal(_update(x, encoded.at[:, :, 1].add(1.0), segments, missing), with_missing)
    alone = _update(x, encoded[:, :, :1], segments, valid[:, :, :1])
    # Sums over twice as many keys are rounded in another order: to the largest value, not to each.
    np.testing.assert_allclose(with_missing, alone, rtol=0, atol=1e-6 * np.abs(alone).max())


@pytest.mark.parametrize("sharpness", [0.0, 2.0**14])
def test_a_missing_neighbor_equals_one_neighbor_less_to_the_bit_where_sums_are_exact(sharpness):
    """As above without any tolerance: every key weighs the same, or the nearest alone does, and values have few bits."""
    x, encoded, segments, valid = _inputs()
    encoded = _in_sixteenths(encoded)
    with_missing = _update(x, encoded, segments, valid.at[:, :, 1].set(False), sharpness=sharpness)
    alone = _update(x, encoded[:, :, :1], segments, valid[:, :, :1], sharpness=sharpness)
    np.testing.assert_array_equal(with_missing, alone)
    assert np.abs(alone).max() > 0.1


def test_neighbors_have_no_order_and_copies_change_nothing():
    """Guards against an order among neighbors, tested with position weights that are not zero."""
    x, encoded, segments, valid = _inputs(neighbors=3)
    valid = valid.at[0, 0, 1, 5:].set(False)
    expected = _update(x, encoded, segments, valid)
    order = jnp.asarray([2, 0, 1])
    np.testing.assert_allclose(_update(x, encoded[:, :, order], segments, valid[:, :, order]), expected, atol=1e-5)
    twice, valid_twice = (jnp.concatenate([array, array], axis=2) for array in (encoded, valid))
    np.testing.assert_allclose(_update(x, twice, segments, valid_twice), expected, atol=1e-5)
    assert np.abs(_update(x, encoded[..., ::-1, :], segments, valid) - expected).max() > 1e-2  # positions do count
