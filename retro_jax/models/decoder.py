"""The decoder (paper Algorithm 1): causal layers, those in P reading the encoded neighbors."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from retro_jax.config import ModelConfig
from retro_jax.models.attention import Attention
from retro_jax.models.chunked_cross_attention import chunked_cross_attention, reading_mask
from retro_jax.models.layers import unpinned
from retro_jax.models.positions import causal_distances, cross_distances, position_table
from retro_jax.models.stack import Layer, apply_stack


def causal_mask(segments: Int[Array, "B C"], token_valid: Bool[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Who may read whom: tokens up to and including oneself, of the same document, no padding."""
    length = token_valid.shape[1]
    of_token = jnp.repeat(segments, length // segments.shape[1], axis=1)
    same = of_token[:, :, None] == of_token[:, None, :]
    causal = jnp.tril(jnp.ones((length, length), bool))
    return causal & same & token_valid[:, None, :]


def decode(
    config: ModelConfig,
    layers: Layer,
    cross_attention: Attention | None,
    x: Float[Array, "B T D"],
    segments: Int[Array, "B C"],
    token_valid: Bool[Array, "B T"],
    neighbor_valid: Bool[Array, "B C K R"] | None,
    encode: Callable[[Float[Array, "B T D"]], Float[Array, "B C K R E"]],
    pin: Callable = unpinned,
) -> Float[Array, "B T D"]:
    """All layers, without embedding and final norm.

    `encode` is called once, with the stream after the self-attention of layer min(P), before that layer's CCA and
    feed-forward; every CCA layer reads its result. Without `neighbor_valid` (retrieval Off, or a baseline) the
    CCA layers are plain ones and `encode` is not called.
    """
    mask = causal_mask(segments, token_valid)
    self_positions = position_table(causal_distances(x.shape[1]), config.width, x.dtype)
    options = {"scan": config.scan, "remat": config.remat, "pin": pin}

    def attend_self(attention, x):
        return attention.to_self(x, mask, self_positions)

    if neighbor_valid is None:
        return apply_stack(x, layers, None, (), attend_self, **options)

    read_mask = reading_mask(segments, neighbor_valid, config.chunk_length)
    positions = position_table(cross_distances(config.chunk_length, neighbor_valid.shape[-1]), config.width, x.dtype)

    def read(reader, x, encoded):
        return chunked_cross_attention(reader, x, encoded, read_mask, positions)

    return apply_stack(x, layers, cross_attention, config.retrieval_layers, attend_self, read, encode, **options)
