"""The blockwise loss against full logits: values, gradients leaf by leaf, and no array of the logits' size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TINY, pack, random_parameters

from retro_jax.config import MeshConfig
from retro_jax.data.batches import Batch
from retro_jax.models.loss import first_choice, token_nll
from retro_jax.parallel.sharding import make_mesh
from retro_jax.train.step import batch_nll


def example(dtype, vocabulary=37, width=16):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 5, width)), dtype)
    embedding = jnp.asarray(rng.normal(size=(vocabulary, width)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, vocabulary, size=(2, 5)), jnp.int32).at[1, 3:].set(-1)
    weights = jnp.asarray(rng.uniform(0.1, 2.0, size=(2, 5)), jnp.float32)
    return hidden, embedding, targets, weights


def plain_nll(hidden, embedding, targets):
    """The definition, in float64 NumPy."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(embedding, np.float64).T
    log_total = np.log(np.exp(logits).sum(-1))
    chosen = np.take_along_axis(logits, np.maximum(np.asarray(targets), 0)[..., None], -1)[..., 0]
    return np.where(np.asarray(targets) >= 0, log_total - chosen, 0.0)


def test_three_tokens_by_hand():
    hidden = jnp.array([[[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]])
    embedding = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    nll = token_nll(hidden, embedding, jnp.array([[2, 0, -1]]), block=2)
    expected = [[np.log(4), np.log(np.e + 3) - 1, 0.0]]
    np.testing.assert_allclose(nll, expected, rtol=1e-6)


@pytest.mark.parametrize("block", [0, 1, 5, 8, 36, 37, 100])
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_values_and_gradients_equal_whole_logits(block, dtype, tolerance):
    hidden, embedding, targets, weights = example(dtype)
    rounded = embedding.astype(dtype).astype(jnp.float32)
    np.testing.assert_allclose(
        token_nll(hidden, embedding, targets, block), plain_nll(hidden, rounded, targets), atol=1e-5, rtol=1e-5
    )

    def plain_loss(hidden, embedding):
        logits = hidden @ embedding.T
        chosen = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], -1)[..., 0]
        return (jnp.where(targets >= 0, jax.nn.logsumexp(logits, -1) - chosen, 0.0) * weights).sum()

    def loss(hidden, embedding):
        return (token_nll(hidden, embedding, targets, block) * weights).sum()

    expected = jax.grad(plain_loss, (0, 1))(hidden.astype(jnp.float32), rounded)
    found = jax.grad(loss, (0, 1))(hidden, embedding)
    assert [leaf.dtype for leaf in found] == [dtype, jnp.float32]
    for name, one, other in zip(("hidden", "embedding"), found, expected, strict=True):
        error = np.linalg.norm(one.astype(jnp.float32) - other) / np.linalg.norm(other)
        assert error < tolerance, (name, error)


@pytest.mark.parametrize("block", [0, 5])
def test_padding_targets_have_no_loss_and_no_gradient(block):
    hidden, embedding, targets, _ = example(jnp.float32)
    gradient = jax.grad(lambda h: token_nll(h, embedding, targets, block).sum())(hidden)
    np.testing.assert_array_equal(gradient[1, 3:], 0)
    assert np.all(np.abs(np.asarray(gradient[1, :3])).sum(-1) > 0)


@pytest.mark.parametrize("block", [0, 5])
def test_large_logits_do_not_overflow(block):
    hidden, embedding, targets, _ = example(jnp.float32)
    value, gradient = jax.value_and_grad(lambda h: token_nll(h * 1e3, embedding, targets, block).sum())(hidden)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_no_array_of_the_logits_size_exists():
    hidden, embedding, targets, weights = example(jnp.bfloat16, vocabulary=4096)

    def largest(block):
        text = jax.jit(
            jax.value_and_grad(lambda h, e: (token_nll(h, e, targets, block) * weights).sum(), (0, 1))
        ).lower(hidden, embedding)
        return "10x4096xf32" in text.as_text(), "10x512xf32" in text.as_text()

    assert largest(0) == (True, False)
    assert largest(512) == (False, True)


def test_targets_outside_the_mask_do_not_count():
    """Validation windows overlap: a token that another window scores has a target here and mask 0."""
    sequence = pack(TINY, [24], 2)
    tokens, segments, neighbors = sequence.batch()
    mask = np.zeros(tokens.shape, np.float32)
    mask[:, 5:9] = 1
    batch = Batch(tokens, np.roll(tokens, -1, axis=1), mask, segments, neighbors)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    nll = jax.jit(lambda params: batch_nll(TINY, params, batch, batch.neighbor_tokens, mesh))(random_parameters(TINY))
    assert (np.asarray(nll) > 0).astype(int).tolist() == mask.astype(int).tolist()


@pytest.mark.parametrize("block", [0, 5, 8, 36, 100])
def test_the_first_choice_is_that_of_whole_logits(block):
    """Ties go to the lowest entry, as with argmax, whichever block holds it."""
    hidden, embedding, _, _ = example(jnp.float32)
    embedding = embedding.at[jnp.array([3, 17, 30])].set(embedding[jnp.array([20, 20, 20])])
    expected = np.argmax(np.asarray(hidden) @ np.asarray(embedding).T, -1)
    tied = jnp.zeros_like(hidden)
    assert np.array_equal(first_choice(hidden, embedding, block), expected)
    assert not np.asarray(first_choice(tied, embedding, block)).any()
