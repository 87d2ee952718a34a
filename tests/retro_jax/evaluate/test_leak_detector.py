"""Retrieval that hands the model its own continuation must show, and random retrieval must not help.

The text is uniformly random, so nothing but a leak can lower the loss below log(vocabulary). This is the negative
control: if the same-document filter let a chunk's continuation through, training would look like this.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tiny_model import random_parameters, tiny

from retro_jax.models.loss import token_nll
from retro_jax.models.retro import apply_hidden

CONFIG = tiny(vocabulary=8, sequence_length=16, layers=2, retrieval_layers=(1, 2), encoder={"layers": 1})
BATCH, STEPS = 16, 100


def test_own_continuation_is_used_and_random_neighbors_are_not():
    """Oracle < random and Off, which stay at log(vocabulary) or above."""
    draw = np.random.default_rng(0)
    optimizer = optax.adam(1e-2)

    def loss(params, tokens, neighbors):
        segments = np.zeros((BATCH, CONFIG.chunks), np.int32)
        targets = jnp.roll(tokens, -1, axis=1)
        nll = token_nll(
            apply_hidden(CONFIG, params, tokens, segments, neighbors), params["embedding"], targets, CONFIG.loss_block
        )
        return nll[:, CONFIG.chunk_length - 1 : -1].mean()  # what retrieval may reach

    @jax.jit
    def step(params, state, tokens, neighbors):
        gradient = jax.grad(loss)(params, tokens, neighbors)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(lambda leaf: 0.3 * leaf, random_parameters(CONFIG))
    state = optimizer.init(params)
    for _ in range(STEPS):
        params, state = step(params, state, *_oracle(draw))
    tokens, oracle = _oracle(draw)
    value = jax.jit(loss)
    chance = math.log(CONFIG.vocabulary)
    assert value(params, tokens, oracle) < 0.1 * chance
    assert value(params, tokens, np.roll(oracle, 1, axis=0)) > 0.95 * chance
    assert value(params, tokens, None) > 0.95 * chance


def _oracle(draw):
    """Random tokens, and for every chunk one neighbor [the chunk, its own continuation]."""
    tokens = draw.integers(0, CONFIG.vocabulary, (BATCH, CONFIG.sequence_length)).astype(np.int32)
    chunks = tokens.reshape(BATCH, CONFIG.chunks, CONFIG.chunk_length)
    following = np.concatenate([chunks[:, 1:], np.full_like(chunks[:, :1], -1)], axis=1)
    return tokens, np.concatenate([chunks, following], axis=2)[:, :, None]
