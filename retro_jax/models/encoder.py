"""The neighbor encoder (paper Algorithm 1): a small bidirectional transformer conditioned on the retrieving chunk."""

from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from retro_jax.config import ModelConfig
from retro_jax.models.attention import Attention
from retro_jax.models.kernels.known import Attend, Mask
from retro_jax.models.layers import embed, ones, rms_norm, table
from retro_jax.models.placement import ONE_DEVICE, Placement
from retro_jax.models.positions import conditioning_distances, position_table, signed_distances
from retro_jax.models.stack import Layer, apply_stack, is_scanned, stacked


class Encoder(nnx.Module):
    """E = ENCODER(RET(C_u), H_u) for all chunks and neighbors at once, with shared weights.

    In the layers of P_enc the retrieved tokens attend to the decoder's activations of the retrieving chunk, *before*
    the shift: the same chunk, positions um .. um + m - 1. Keys and values read RMSNorm(H) with a norm of their own,
    and the encoder's output passes a final RMSNorm, like every other stream that attention reads.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        sizes = config.encoder
        gain = (2 * sizes.layers) ** -0.5
        if not config.shared_embeddings:
            self.embedding = table(rngs, config.vocabulary, sizes.width)
        self.layers = stacked(
            sizes.layers,
            lambda r: Layer(sizes.width, sizes.heads, sizes.head_dim, sizes.feed_forward, gain, r),
            rngs,
        )
        if sizes.cross_attention_layers:
            options = {"memory_norm": True, "positions": config.cross_attention_positions}
            self.cross_attention = stacked(
                len(sizes.cross_attention_layers),
                lambda r: Attention(sizes.width, config.width, sizes.heads, sizes.head_dim, gain, r, **options),
                rngs,
            )
        self.final_norm = ones(sizes.width)

    def __call__(
        self,
        config: ModelConfig,
        neighbor_tokens: Int[Array, "B C K R"],
        hidden: Float[Array, "B T D"],
        token_valid: Bool[Array, "B T"],
        shared: Float[Array, "V E"] | None = None,
        placement: Placement = ONE_DEVICE,
    ) -> Float[Array, "B C K R E"]:
        """`hidden` is the decoder's stream after the self-attention of layer min(P); `shared` the decoder's embedding.

        R counts the tokens that are read: config.encoded_part of what was retrieved.
        """
        batch, chunks, neighbors, retrieved = neighbor_tokens.shape
        length, width, dtype = config.chunk_length, config.encoder.width, hidden.dtype
        rows = neighbor_tokens.reshape(-1, retrieved)  # each neighbor of each chunk attends to itself only
        row_mask = (rows >= 0)[:, None, :]
        row_positions = position_table(signed_distances(retrieved), width, dtype)
        chunk_rows = hidden.reshape(batch * chunks, length, -1)
        chunk_mask = token_valid.reshape(batch * chunks, 1, length)
        distances = conditioning_distances(retrieved, length, config.encoded_part.start)
        chunk_positions = position_table(distances, width, dtype)
        attend = Attend(config.attention, "encoder", placement)
        attend_chunk = Attend(config.attention, "conditioning", placement)
        embedding = shared if config.shared_embeddings else self.embedding[...]

        def ask_chunk(attention, x, chunk_rows):
            asking = rms_norm(x, attention.norm[...]).reshape(batch * chunks, neighbors * retrieved, width)
            memory = rms_norm(chunk_rows, attention.memory_norm[...])
            return attention(asking, memory, Mask(chunk_mask), chunk_positions, attend_chunk).reshape(x.shape)

        x = apply_stack(
            embed(rows, embedding, dtype, placement.pin),
            self.layers,
            getattr(self, "cross_attention", None),
            config.encoder.cross_attention_layers,
            lambda attention, x: attention.to_self(x, Mask(row_mask), row_positions, attend),
            ask_chunk,
            lambda x: chunk_rows,
            scan=is_scanned(config, config.encoder.layers, placement.platform),
            remat=config.remat,
            pin=placement.pin,
        )
        return placement.pin(rms_norm(x, self.final_norm[...]).reshape(*neighbor_tokens.shape, -1))
