"""Padding and missing neighbors get no attention, and an empty retrieval equals Retro[Off]."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TINY, compiled, pack, random_parameters

from retro_jax.core.dimensions import PADDING
from retro_jax.models.chunked_cross_attention import chunked_cross_attention, reading_mask
from retro_jax.models.kernels.known import Attend
from retro_jax.models.loss import token_nll
from retro_jax.models.positions import cross_distances, position_table
from retro_jax.models.retro import apply_hidden, merge

M, R, T = TINY.chunk_length, TINY.retrieved_length, TINY.sequence_length
PARAMETERS = random_parameters(TINY)
PACKED = pack(TINY, [7, 4, 10], neighbors=2)


def test_fully_padded_sets_are_off():
    """As without retrieval, to the rounding of another program; with k = 0 it is the same program, and the same bits."""
    tokens, segments, neighbors = PACKED.batch()
    off = np.asarray(compiled(TINY, on=False)(PARAMETERS, tokens, segments))
    empty = np.asarray(compiled(TINY)(PARAMETERS, tokens, segments, np.full_like(neighbors, PADDING)))
    assert np.abs(empty - off).max() < 1e-6 * np.abs(off).max()
    np.testing.assert_array_equal(compiled(TINY)(PARAMETERS, tokens, segments, neighbors[:, :, :0]), off)


def test_missing_neighbors_do_not_count():
    """One real neighbor among two equals that neighbor alone, in either place."""
    tokens, segments, neighbors = PACKED.batch()
    real, missing = neighbors[:, :, :1], np.full_like(neighbors[:, :, :1], PADDING)
    alone = np.asarray(compiled(TINY)(PARAMETERS, tokens, segments, real))
    for pair in ((real, missing), (missing, real)):
        got = compiled(TINY)(PARAMETERS, tokens, segments, np.concatenate(pair, axis=2))
        assert np.abs(got - alone).max() < 1e-5 * np.abs(alone).max()
    off = compiled(TINY, on=False)(PARAMETERS, tokens, segments)
    assert np.abs(off - alone).max() > 0.1


def test_padded_retrieved_tokens_get_no_attention():
    """The encoder's output at padded places changes no bit of CCA and gets no gradient."""
    reader = jax.tree.map(lambda leaf: leaf[0], merge(TINY, PARAMETERS).cross_attention)
    valid = PACKED.neighbor_tokens[None] >= 0
    positions = position_table(cross_distances(M, R), TINY.width, jnp.float32)
    generator = np.random.default_rng(1)
    x = generator.standard_normal((1, T, TINY.width)).astype(np.float32)
    encoded = generator.standard_normal((*valid.shape, TINY.encoder.width)).astype(np.float32)

    @jax.jit
    def update(encoded):
        mask = reading_mask(PACKED.segments[None], valid, M)
        return chunked_cross_attention(reader, x, encoded, mask, positions, Attend("xla", "read"))

    other = np.where(valid[..., None], encoded, 1e3).astype(np.float32)
    np.testing.assert_array_equal(update(other), update(encoded))
    gradient = np.asarray(jax.jit(jax.grad(lambda encoded: (update(encoded) ** 2).sum()))(encoded))
    assert not gradient[~valid].any()
    chunks_read = np.broadcast_to((np.arange(TINY.chunks) != 2)[:, None, None], valid.shape[1:])  # 2 is read by 1 row
    assert (np.abs(gradient[0])[valid[0] & chunks_read].max(axis=-1) > 0).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_nan_in_loss_or_gradients(dtype):
    """Sequences that retrieved everything, something and nothing, and one of padding."""
    config = dataclasses.replace(TINY, compute_dtype=dtype, layers=3)
    params = random_parameters(config)
    tokens, segments, neighbors = PACKED.batch(4)
    neighbors[1, 2:], neighbors[2:] = PADDING, PADDING
    tokens[3], segments[3] = PADDING, PADDING
    targets = np.where(np.arange(T) % M == M - 1, PADDING, np.roll(tokens, -1, axis=1))

    @jax.jit
    def loss_and_gradient(params, tokens, segments, neighbors):
        def loss(params):
            hidden = apply_hidden(config, params, tokens, segments, neighbors)
            return token_nll(hidden, params["embedding"], targets, config.loss_block).sum()

        return jax.value_and_grad(loss)(params)

    loss, gradient = loss_and_gradient(params, tokens, segments, neighbors)
    assert np.isfinite(loss)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.any(leaf != 0), jax.tree_util.keystr(path)

    empty_loss, gradient = loss_and_gradient(params, tokens, segments, np.full_like(neighbors, PADDING))
    assert np.isfinite(empty_loss) and empty_loss != loss
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        retrieval = path[0].key in ("encoder", "cross_attention")
        assert np.isfinite(leaf).all() and np.any(leaf != 0) != retrieval, jax.tree_util.keystr(path)
