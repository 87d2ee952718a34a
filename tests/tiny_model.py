"""Tiny models with every weight far from zero, and packed sequences to run them on."""

from dataclasses import dataclass, replace
from functools import lru_cache

import jax
import numpy as np

from retro_jax.config import EncoderConfig, ModelConfig, check_model
from retro_jax.core.dimensions import PADDING
from retro_jax.models.retro import abstract_model, merge

TINY = ModelConfig(
    vocabulary=37,
    sequence_length=24,
    chunk_length=4,
    layers=4,
    width=16,
    heads=2,
    head_dim=6,
    feed_forward=20,
    retrieval_layers=(2, 3),
    neighbors=2,
    encoder=EncoderConfig(layers=2, width=12, heads=3, head_dim=4, feed_forward=18),
    compute_dtype="float32",
    remat="none",
    loss_block=0,
)


@dataclass(frozen=True)
class Sequence:
    """One packed sequence: T tokens in C chunks, each with K retrieved neighbors."""

    tokens: np.ndarray
    segments: np.ndarray
    neighbor_tokens: np.ndarray

    def batch(self, size: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The model's arguments, this sequence `size` times over; every copy can be written to."""
        return tuple(np.stack([array] * size) for array in (self.tokens, self.segments, self.neighbor_tokens))


def tiny(encoder: dict | None = None, **changes) -> ModelConfig:
    """TINY with other sizes, checked as a user's config would be."""
    config = replace(TINY, encoder=replace(TINY.encoder, **(encoder or {})), **changes)
    check_model(config)
    return config


def random_parameters(config: ModelConfig, seed: int = 0) -> dict:
    """Parameters of which none is near zero or one by design: norm scales, u and v and output projections included.

    Products keep the size of what they multiply, so that a mistake anywhere shows in the logits; the initial weights
    of training would hide it under the residual stream.
    """
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        name, noise = path[-1].key, generator.standard_normal(leaf.shape)
        if name.endswith("norm"):
            values = 1 + 0.3 * noise
        elif name == "embedding":
            values = noise / leaf.shape[-1] ** 0.5
        elif name in ("content_bias", "position_bias"):
            values = noise
        else:
            values = noise / leaf.shape[-2] ** 0.5
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_model(config)[1])


def pack(config: ModelConfig, documents: list[int], neighbors: int, seed: int = 0) -> Sequence:
    """Documents of so many random tokens, each in chunks of its own, the rest of the sequence padding chunks.

    Neighbors are as a database gives them: some end early (no continuation), some are missing, but never all of a
    chunk's when it has more than one.
    """
    generator = np.random.default_rng(seed)
    m, chunks = config.chunk_length, config.chunks
    tokens, segments = np.full((chunks, m), PADDING, np.int32), np.full(chunks, PADDING, np.int32)
    start = 0
    for number, length in enumerate(documents):
        size = -(-length // m)
        tokens[start : start + size].reshape(-1)[:length] = generator.integers(0, config.vocabulary, length)
        segments[start : start + size] = number
        start += size
    retrieved = generator.integers(0, config.vocabulary, (chunks, neighbors, 2 * m)).astype(np.int32)
    for u in range(chunks):
        for j in range(neighbors):
            if (u + j) % 3 == 1:
                retrieved[u, j, m + (u + j) % m :] = PADDING  # the document ends inside F
            if j > 0 and (u + j) % 4 == 3:
                retrieved[u, j] = PADDING  # no such neighbor
        if segments[u] == PADDING:
            retrieved[u] = PADDING
    return Sequence(tokens.reshape(-1), segments, retrieved)


@lru_cache(maxsize=64)
def compiled(config: ModelConfig, on: bool = True):
    """logits(params, tokens, segments[, neighbor_tokens]), compiled once a config."""
    if on:
        return jax.jit(lambda params, *inputs: merge(config, params)(*inputs))
    return jax.jit(lambda params, tokens, segments, _=None: merge(config, params)(tokens, segments, None))
