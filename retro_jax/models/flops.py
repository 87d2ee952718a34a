"""Multiply-adds of the model, counted from its shapes, and the rate a device reaches: the two sides of utilization."""

import time

import jax
import jax.numpy as jnp

from retro_jax.config import ModelConfig


def flops_per_token(config: ModelConfig) -> float:
    """Floating-point operations of one training step per decoder token: forward, and twice that backward.

    Counted are the products of the model as published: kernels, scores and weighted sums over whole rows (causal or
    not), one product more per score for its relative position. Not counted: what remat or the blockwise loss compute
    twice, softmax, norms, lookups, and the position kernels, which act on distances and not on tokens.
    """
    inner, width, tokens = config.heads * config.head_dim, config.width, config.sequence_length
    layer = 4 * width * inner + 2 * width * config.feed_forward + 3 * tokens * inner
    total = config.layers * layer + width * config.vocabulary
    if config.retrieves and config.neighbors:
        encoder, retrieved = config.encoder, config.retrieved_length
        encoder_inner, per_token = encoder.heads * encoder.head_dim, config.neighbors * retrieved / config.chunk_length
        encoder_layer = (
            4 * encoder.width * encoder_inner + 2 * encoder.width * encoder.feed_forward + 3 * retrieved * encoder_inner
        )
        conditioning = (
            per_token * (2 * encoder.width + 3 * config.chunk_length) * encoder_inner + 2 * width * encoder_inner
        )
        reading = 2 * width * inner + per_token * 2 * encoder.width * inner + 3 * config.neighbors * retrieved * inner
        total += encoder.layers * per_token * encoder_layer
        total += len(encoder.cross_attention_layers) * conditioning + len(config.retrieval_layers) * reading
    return 3 * 2 * total


def measured_peak(dtype: str, size: int = 1024) -> float:
    """FLOP/s of a device on a square matrix product in `dtype`, summed up in float32: the best of five."""
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    product(matrix, matrix).block_until_ready()
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
