"""The decoder (paper Algorithm 1): causal layers, those in P reading the encoded neighbors."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from retro_jax.config import ModelConfig
from retro_jax.models.attention import Attention
from retro_jax.models.chunked_cross_attention import chunked_cross_attention, reading_mask
from retro_jax.models.kernels.known import Attend, Mask
from retro_jax.models.placement import ONE_DEVICE, Placement
from retro_jax.models.positions import causal_distances, cross_distances, position_table, rotary
from retro_jax.models.stack import Layer, apply_stack, is_scanned

NOBODYS = -2  # the id of a padded key: no query has it


def causal_mask(segments: Int[Array, "B C"], token_valid: Bool[Array, "B T"]) -> Mask:
    """The causal mask: each token reads itself and earlier tokens of its document, and no padding."""
    length = token_valid.shape[1]
    of_token = jnp.repeat(segments, length // segments.shape[1], axis=1)
    same = of_token[:, :, None] == of_token[:, None, :]
    causal = jnp.tril(jnp.ones((length, length), bool))
    return Mask(causal & same & token_valid[:, None, :], of_token, jnp.where(token_valid, of_token, NOBODYS))


def decode(
    config: ModelConfig,
    layers: Layer,
    cross_attention: Attention | None,
    x: Float[Array, "B T D"],
    segments: Int[Array, "B C"],
    token_valid: Bool[Array, "B T"],
    neighbor_valid: Bool[Array, "B C K R"] | None,
    encode: Callable[[Float[Array, "B T D"]], Float[Array, "B C K R E"]],
    placement: Placement = ONE_DEVICE,
) -> Float[Array, "B T D"]:
    """Runs all decoder layers, without embedding and final norm.

    `encode` is called once, with the stream after the self-attention of layer min(P), before that layer's CCA and
    feed-forward; every CCA layer reads its result. Without `neighbor_valid` (retrieval Off, or a baseline) the
    CCA layers are plain ones and `encode` is not called.
    """
    mask = causal_mask(segments, token_valid)
    if config.positions == "rotary":
        self_positions = rotary(x.shape[1], config.head_dim, config.rotary_theta, config.rotary_scaling)
    else:
        self_positions = position_table(causal_distances(x.shape[1]), config.width, x.dtype)
    options = {
        "scan": is_scanned(config, config.layers, placement.platform),
        "remat": config.remat,
        "pin": placement.pin,
    }
    attend = Attend(config.attention, "self", placement)

    def attend_self(attention, x):
        return attention.to_self(x, mask, self_positions, attend)

    if neighbor_valid is None:
        return apply_stack(x, layers, None, (), attend_self, **options)

    read_mask = reading_mask(segments, neighbor_valid, config.chunk_length)
    distances = cross_distances(config.chunk_length, neighbor_valid.shape[-1], config.encoded_part.start)
    positions = position_table(distances, config.width, x.dtype)
    attend_neighbors = Attend(config.attention, "read", placement)

    def read(reader, x, encoded):
        return chunked_cross_attention(reader, x, encoded, read_mask, positions, attend_neighbors)

    return apply_stack(x, layers, cross_attention, config.retrieval_layers, attend_self, read, encode, **options)
