"""`config.model`: the decoder, the neighbor encoder and chunked cross-attention."""

import dataclasses
from dataclasses import dataclass

from retro_jax.config.settings import (
    INT32,
    NAME,
    SWITCH,
    Number,
    Numbers,
    Rising,
    above,
    between,
    one_of,
    section,
    setting,
)

SIZE = between(1, INT32)
# What may differ from the run that trained a model: no parameter depends on it.
RUNTIME = ("neighbors", "compute_dtype", "attention", "remat", "scan", "loss_block")

# Ablations of the paper's Table 13 that a baseline cannot have. The table's other rows: retrieval_layers, neighbors,
# encoder.layers, encoder.cross_attention_layers.
ABLATIONS = ("neighbor_parts", "cross_attention_positions", "shared_embeddings", "cross_attention_gate")

# How the decoder is built. The defaults are the paper's; a decoder of the Llama family sets the others.
OF_ROTARY = ("rotary_theta", "rotary_scaling", "key_heads", "query_key_norm", "attention_biases")
DECODER_KIND = ("positions", *OF_ROTARY, "gated_feed_forward", "norm_epsilon", "scaled_embedding", "tied_readout")


@dataclass(frozen=True)
class EncoderConfig:
    """The neighbor encoder (paper 2.5, Table 10; heads and feed-forward follow from the parameter counts)."""

    layers: int = setting(2, SIZE, "Layers of the neighbor encoder.")
    width: int = setting(896, SIZE, "Width d' of the neighbor encoder; an even number.")
    heads: int = setting(16, SIZE, "Attention heads of the neighbor encoder.")
    head_dim: int = setting(64, SIZE, "Width of one attention head of the neighbor encoder.")
    feed_forward: int = setting(3584, SIZE, "Hidden width of the encoder's feed-forward layers.")
    cross_attention_layers: tuple[int, ...] = setting(
        (1,), Rising(), "P_enc, encoder layers that read the decoder; () removes query conditioning."
    )


@dataclass(frozen=True)
class ModelConfig:
    """The decoder's sizes and, with a non-empty P, those of RETRO's encoder and chunked cross-attention."""

    vocabulary: int = setting(128_000, SIZE, "Pieces of the tokenizer, and rows of the embedding.")
    sequence_length: int = setting(2048, SIZE, "T, tokens of a sequence; a multiple of chunk_length.")
    chunk_length: int = setting(64, SIZE, "M, tokens of a chunk.")
    layers: int = setting(12, SIZE, "Layers of the decoder.")
    width: int = setting(896, SIZE, "D, width of the decoder; an even number.")
    heads: int = setting(16, SIZE, "Attention heads of the decoder.")
    head_dim: int = setting(64, SIZE, "Width of one attention head of the decoder.")
    feed_forward: int = setting(3584, SIZE, "Hidden width of the decoder's feed-forward layers.")
    positions: str = setting(
        "relative",
        one_of("relative", "rotary"),
        "Positions of the decoder's self-attention: relative (the paper) or rotary (the Llama family).",
    )
    rotary_theta: float = setting(10_000.0, above(0), "Base of the rotary angles.")
    rotary_scaling: tuple[float, ...] = setting(
        (),
        Numbers(0, INT32, open=True),
        "Scaling of the rotary angles for longer texts: () none, (FACTOR,) linear, (FACTOR, LOW, HIGH, LENGTH) Llama 3's.",
    )
    key_heads: int = setting(
        0,
        between(0, INT32),
        "Heads of keys and values in the decoder's self-attention, a divisor of heads; 0: as many as heads.",
    )
    query_key_norm: bool = setting(
        False, SWITCH, "RMSNorm of each head's queries and keys in the decoder's self-attention (Qwen3)."
    )
    attention_biases: bool = setting(
        False, SWITCH, "Biases of queries, keys and values in the decoder's self-attention (Qwen2)."
    )
    gated_feed_forward: bool = setting(
        False,
        SWITCH,
        "The decoder's feed-forward: true has a gate with SiLU (the Llama family), false one GELU (the paper).",
    )
    norm_epsilon: float = setting(1e-6, Number(0, 1, above=True), "Epsilon of the decoder's norms.")
    scaled_embedding: bool = setting(
        True,
        SWITCH,
        "The decoder multiplies its embedding by sqrt(width), as Transformer-XL does; false takes it as it is.",
    )
    tied_readout: bool = setting(
        True, SWITCH, "The readout is the embedding (the paper); false gives it a matrix of its own."
    )
    retrieval_layers: tuple[int, ...] = setting(
        (6, 9, 12), Rising(), "P, decoder layers with chunked cross-attention; () is the baseline decoder."
    )
    neighbors: int = setting(
        2, between(0, INT32), "K, how many of the stored neighbors the model reads; 0 skips retrieval."
    )
    neighbor_parts: str = setting(
        "both",
        one_of("both", "neighbor", "continuation"),
        "Of each retrieved pair, what the encoder reads: neighbor N and continuation F, N alone, or F alone.",
    )
    cross_attention_positions: bool = setting(
        True,
        SWITCH,
        "Relative positions in the cross-attention of decoder and encoder; false removes them and their weights.",
    )
    shared_embeddings: bool = setting(
        False, SWITCH, "The encoder reads the decoder's embedding and has none of its own; both widths must be equal."
    )
    cross_attention_gate: bool = setting(
        False,
        SWITCH,
        "Multiplies each layer's cross-attention in the decoder by tanh of a number that is learned, from 0 on.",
    )
    encoder: EncoderConfig = section(EncoderConfig, "The neighbor encoder.")
    compute_dtype: str = setting(
        "bfloat16", one_of("bfloat16", "float32"), "Type of activations; parameters are always float32."
    )
    attention: str = setting(
        "auto",
        NAME,
        "Implementation of attention: auto (by device: flash on TPUs, flash_gpu on H100s and H200s, else xla), xla, flash, flash_gpu, or one that was added "
        "(retro_jax/models/kernels).",
    )
    remat: str = setting(
        "full",
        one_of("none", "full", "dots"),
        "What the backward pass recomputes: nothing, layers, or all but matmuls.",
    )
    scan: bool | str = setting(
        "auto",
        one_of("auto", True, False),
        "Scans over stacked layers or, if false, unrolls them, with the same results. auto unrolls up to 24 layers on a CPU "
        "with remat=none, which is faster there, and scans elsewhere.",
    )
    loss_block: int = setting(
        8192, between(0, INT32), "Vocabulary entries whose logits exist at once; 0 takes all at once."
    )

    @property
    def decoder_key_heads(self) -> int:
        return self.key_heads or self.heads

    @property
    def chunks(self) -> int:
        return self.sequence_length // self.chunk_length

    @property
    def retrieved_length(self) -> int:
        return 2 * self.chunk_length

    @property
    def encoded_part(self) -> slice:
        """Which of the `retrieved_length` tokens [N, F] of a neighbor the encoder reads."""
        chunk, whole = self.chunk_length, self.retrieved_length
        return {"both": slice(0, whole), "neighbor": slice(0, chunk), "continuation": slice(chunk, whole)}[
            self.neighbor_parts
        ]

    @property
    def encoded_length(self) -> int:
        return self.encoded_part.stop - self.encoded_part.start

    @property
    def retrieves(self) -> bool:
        return bool(self.retrieval_layers)


def check_model(model: ModelConfig) -> None:
    """Raises ValueError where the model's sizes, each in its range, do not fit together."""
    if model.sequence_length % model.chunk_length:
        raise ValueError(
            f"A sequence is a whole number of chunks, but config.model.sequence_length={model.sequence_length} is not a "
            f"multiple of config.model.chunk_length={model.chunk_length}; "
            f"take {model.sequence_length // model.chunk_length * model.chunk_length or model.chunk_length}."
        )
    encoder = model.encoder
    _layer_set(model.retrieval_layers, model.layers, "config.model.retrieval_layers", "config.model.layers")
    _layer_set(
        encoder.cross_attention_layers,
        encoder.layers,
        "config.model.encoder.cross_attention_layers",
        "config.model.encoder.layers",
    )
    _check_ablations(model)
    _check_kind(model)
    for width, where in ((model.width, "config.model.width"), (encoder.width, "config.model.encoder.width")):
        if width % 2:
            raise ValueError(
                f"Position vectors are pairs of sine and cosine, but {where}={width} is odd; take {width + 1}."
            )


def _check_ablations(model: ModelConfig):
    if not model.retrieves:
        for name in ABLATIONS:
            value, usual = getattr(model, name), getattr(ModelConfig, name)
            if value != usual:
                raise ValueError(
                    f"A baseline has no encoder and no cross-attention, so config.model.{name}={value} would change "
                    f"nothing with config.model.retrieval_layers=(); remove it (the default is {usual}), or name the "
                    f"layers that read neighbors."
                )
    if model.shared_embeddings and model.encoder.width != model.width:
        raise ValueError(
            f"Shared embeddings have one width, but config.model.width={model.width} and "
            f"config.model.encoder.width={model.encoder.width} with config.model.shared_embeddings=True; "
            f"take config.model.encoder.width={model.width}, or config.model.shared_embeddings=False."
        )


def _check_kind(model: ModelConfig):
    """The options of the decoder's self-attention, against each other and its sizes."""
    if model.positions == "relative":
        for name in OF_ROTARY:
            value, usual = getattr(model, name), getattr(ModelConfig, name)
            if value != usual:
                raise ValueError(
                    f"Self-attention with relative positions is the paper's, so config.model.{name}={value} needs "
                    f"config.model.positions=rotary; take that, or remove it (the default is {usual})."
                )
        return
    scaling = model.rotary_scaling
    if len(scaling) not in (0, 1, 4) or (len(scaling) == 4 and scaling[1] >= scaling[2]):
        raise ValueError(
            f"config.model.rotary_scaling is (), (FACTOR,) or (FACTOR, LOW, HIGH, LENGTH) with LOW below HIGH, but is "
            f"{scaling}; take one of these."
        )
    if model.heads % model.decoder_key_heads:
        raise ValueError(
            f"Each head of keys serves as many heads of queries, but config.model.heads={model.heads} is not a multiple of "
            f"config.model.key_heads={model.key_heads}; take a divisor of {model.heads}, or 0 for as many as heads."
        )
    if model.head_dim % 2:
        raise ValueError(
            f"Rotary positions turn pairs of numbers, but config.model.head_dim={model.head_dim} is odd; take "
            f"{model.head_dim + 1}, or config.model.positions=relative."
        )


def at_run_time(trained: ModelConfig, wanted: ModelConfig, directory) -> ModelConfig:
    """The config of a trained model with those settings of `wanted` that change no parameter (RUNTIME).

    Args:
      directory: of the run, for the message.

    Raises:
      ValueError: `wanted` is another model; every differing field is named.
    """
    fields = [
        f"config.model.{name} (there {there}, here {here})"
        for name, there, here in _pairs(trained, wanted)
        if name not in RUNTIME and there != here
    ]
    if fields:
        raise ValueError(
            f"{directory} holds a model that differs from the config: {'; '.join(fields)}. Leave --config out to take the "
            f"run's own, or give the config and the values that it was trained with."
        )
    return dataclasses.replace(trained, **{name: getattr(wanted, name) for name in RUNTIME})


def _pairs(one, other, prefix: str = ""):
    """(name, value, other value) of every field, of the encoder's too."""
    for field in dataclasses.fields(one):
        values = getattr(one, field.name), getattr(other, field.name)
        if dataclasses.is_dataclass(values[0]):
            yield from _pairs(*values, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", *values


def _layer_set(layers: tuple[int, ...], last: int, where: str, last_where: str):
    outside = [layer for layer in layers if not 1 <= layer <= last]
    if outside:
        raise ValueError(
            f"{where} holds layer {outside[0]}, but layers are numbered from 1 to {last_where}={last}; "
            f"remove it or raise {last_where}."
        )
