"""RETRO and its baseline decoder (paper section 2), and their weights as a plain nested dict.

    config = ModelConfig(...)
    params = initialize(config, seed=0)                     # {"embedding": ..., "layers": {...}, ...}
    hidden = apply_hidden(config, params, tokens, segments, neighbor_tokens)
    logits = merge(config, params)(tokens, segments, neighbor_tokens)

The dict, not the NNX module, is what is trained, sharded and saved: its names are stable, the module's internals are
not. Weights of layers are stacked in layer order:

    embedding [V, D]                    layers.attention, layers.feed_forward     [L, ...]
    final_norm [D]                      cross_attention (CCA)                     [len(P), ...]
    encoder.embedding [V, D'] (*)       encoder.layers                            [L', ...]
    encoder.final_norm [D']             encoder.cross_attention                   [len(P_enc), ...]

(*) not with config.shared_embeddings. Without config.cross_attention_positions, no cross_attention has W_R and v.
Without config.tied_readout there is an unembedding [V, D].
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from retro_jax.config import ModelConfig
from retro_jax.models.attention import Attention
from retro_jax.models.decoder import decode
from retro_jax.models.encoder import Encoder
from retro_jax.models.layers import embed, last_scale, ones, rms_norm, table
from retro_jax.models.placement import ONE_DEVICE, Placement
from retro_jax.models.stack import DecoderLayer, stacked


class Retro(nnx.Module):
    """A decoder language model that reads retrieved neighbors; with an empty P, the plain decoder."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        gain = (2 * config.layers) ** -0.5
        self.embedding = table(rngs, config.vocabulary, config.width)
        self.layers = stacked(config.layers, lambda r: DecoderLayer(config, gain, r), rngs)
        if config.retrieves:
            self.cross_attention = stacked(
                len(config.retrieval_layers),
                lambda r: Attention(
                    config.width,
                    config.encoder.width,
                    config.heads,
                    config.head_dim,
                    gain,
                    r,
                    positions=config.cross_attention_positions,
                    gate=config.cross_attention_gate,
                    epsilon=config.norm_epsilon,
                ),
                rngs,
            )
            self.encoder = Encoder(config, rngs)
        if config.tied_readout:
            self.final_norm = last_scale(config.vocabulary, config.width)
        else:
            self.final_norm = ones(config.width)
            self.unembedding = table(rngs, config.vocabulary, config.width)

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        segments: Int[Array, "B C"],
        neighbor_tokens: Int[Array, "B C K R"] | None = None,
        placement: Placement = ONE_DEVICE,
    ) -> Float[Array, "B T D"]:
        """The normed stream that the readout multiplies, in the compute dtype.

        Args:
          tokens: -1 is padding. T is any whole number of chunks, up to and beyond the trained length.
          segments: which document of the sequence a chunk belongs to; documents do not attend to each other. -1 is padding.
          neighbor_tokens: the tokens that each chunk retrieved, nearest first, -1 where missing; any number K of
            neighbors. None is Retro[Off]: the encoder is not run and CCA is the identity.
          placement: the devices (`retro_jax.parallel.on_mesh.OnMesh`).

        Raises:
          ValueError: shapes that do not fit the config or each other, or an attention that this device or shape refuses.
        """
        config = self.config
        _check_shapes(config, tokens, segments, neighbor_tokens)
        if not config.retrieves or (neighbor_tokens is not None and neighbor_tokens.shape[2] == 0):
            neighbor_tokens = None
        if neighbor_tokens is not None:
            neighbor_tokens = neighbor_tokens[..., config.encoded_part]
        valid = tokens >= 0
        x = decode(
            config,
            self.layers,
            getattr(self, "cross_attention", None),
            embed(tokens, self.embedding[...], jnp.dtype(config.compute_dtype), placement.pin, config.scaled_embedding),
            segments,
            valid,
            None if neighbor_tokens is None else neighbor_tokens >= 0,
            lambda x: self._encode(neighbor_tokens, x, valid, placement),
            placement,
        )
        return rms_norm(x, self.final_norm[...], config.norm_epsilon)

    def _encode(self, neighbor_tokens, x, valid, placement):
        with jax.named_scope("encoder"):
            return self.encoder(self.config, neighbor_tokens, x, valid, self.embedding[...], placement)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segments: Int[Array, "B C"],
        neighbor_tokens: Int[Array, "B C K R"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Next-token logits, float32; arguments as for `hidden`."""
        hidden = self.hidden(tokens, segments, neighbor_tokens)
        return jnp.einsum("btd,vd->btv", hidden, self.readout.astype(hidden.dtype), preferred_element_type=jnp.float32)

    @property
    def readout(self) -> Float[Array, "V D"]:
        """The decoder's embedding, as the paper's totals imply (2.6), or a matrix of its own where they are not tied."""
        return self.embedding[...] if self.config.tied_readout else self.unembedding[...]


def abstract_model(config: ModelConfig) -> tuple[nnx.GraphDef, dict]:
    """The model's structure, and its parameters as nested dicts of shapes and dtypes; allocates nothing."""
    graph, state = _abstract(config)
    return graph, nnx.to_pure_dict(state)


def initialize(config: ModelConfig, seed: int | Int[Array, ""]) -> dict:
    """Initial parameters; a pure function of the seed, to be called inside `jax.jit` for sharded results."""
    return params_of(Retro(config, nnx.Rngs(params=jax.random.key(seed))))


def params_of(model: Retro) -> dict:
    """The model's parameters as plain nested dicts of arrays."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def merge(config: ModelConfig, params: dict) -> Retro:
    """The model with these parameters.

    Raises:
      ValueError: parameters of another structure than the config's.
    """
    graph, state = _abstract(config)
    structure, given = jax.tree.structure(nnx.to_pure_dict(state)), jax.tree.structure(params)
    if structure != given:
        names, has = (
            {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
            for tree in (nnx.to_pure_dict(state), params)
        )
        raise ValueError(
            f"The parameters are not those of this model config: missing {sorted(names - has)}, "
            f"not known {sorted(has - names)}; use the config that the parameters were trained with."
        )
    return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(params)))


def apply_hidden(
    config: ModelConfig,
    params: dict,
    tokens: Int[Array, "B T"],
    segments: Int[Array, "B C"],
    neighbor_tokens: Int[Array, "B C K R"] | None = None,
) -> Float[Array, "B T D"]:
    """`Retro.hidden` as a pure function of the parameters."""
    return merge(config, params).hidden(tokens, segments, neighbor_tokens)


def zero_cca_updates(params: dict) -> dict:
    """The same parameters with CCA updates of zero, so that On equals Off, as a retrofit starts.

    Zero are the output projections, or the gates where the model has them: with both at zero neither would have a gradient.
    """
    cross = params["cross_attention"]
    name = "update_gate" if "update_gate" in cross else "output"
    return {**params, "cross_attention": {**cross, name: jnp.zeros_like(cross[name])}}


def layer_parameters(config: ModelConfig, params: dict) -> dict:
    """The parameters without stacks: "layers" is a list of one dict a layer, with its cross-attention inside.

    For export and for the NumPy reference; `params` may hold JAX or NumPy arrays.
    """
    layered = _unstack(params, config.retrieval_layers)
    if "encoder" in params:
        layered["encoder"] = _unstack(params["encoder"], config.encoder.cross_attention_layers)
    return layered


def _unstack(params: dict, reading: tuple[int, ...]) -> dict:
    stack, cross_attention = params["layers"], params.get("cross_attention")
    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(stack["attention"]["query"].shape[0])]
    for index, number in enumerate(reading):
        layers[number - 1]["cross_attention"] = jax.tree.map(lambda leaf, i=index: leaf[i], cross_attention)
    rest = {name: value for name, value in params.items() if name not in ("layers", "cross_attention")}
    return {**rest, "layers": layers}


@lru_cache(maxsize=16)
def _abstract(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Retro(config, nnx.Rngs(params=jax.random.key(0)))))


def _check_shapes(config, tokens, segments, neighbor_tokens):
    batch, length = tokens.shape
    chunks, rest = divmod(length, config.chunk_length)
    if rest:
        raise ValueError(
            f"A sequence is a whole number of chunks, but tokens {tokens.shape} are not cut by "
            f"chunk_length={config.chunk_length}; pad them with -1."
        )
    if segments.shape != (batch, chunks):
        raise ValueError(f"segments must give each of {(batch, chunks)} chunks its document, but are {segments.shape}.")
    if neighbor_tokens is None:
        return
    shape = neighbor_tokens.shape
    if len(shape) != 4 or shape[:2] != (batch, chunks) or shape[3] != config.retrieved_length:
        raise ValueError(
            f"neighbor_tokens must be [batch, chunks, neighbors, retrieved] = ({batch}, {chunks}, any, "
            f"{config.retrieved_length}), but are {shape}."
        )
