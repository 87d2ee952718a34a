"""Which tensor of a file is which parameter: one table a format.

Our kernels are [inputs, outputs], those of other projects [outputs, inputs]; ours are stacked over layers, theirs are not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flax.traverse_util import flatten_dict

from retro_jax.config import ModelConfig
from retro_jax.models.retro import abstract_model

Path = tuple[str, ...]

HUGGING_FACE = {
    ("embedding",): "model.embed_tokens.weight",
    ("unembedding",): "lm_head.weight",
    ("final_norm",): "model.norm.weight",
    ("layers", "attention", "norm"): "model.layers.{}.input_layernorm.weight",
    ("layers", "attention", "query"): "model.layers.{}.self_attn.q_proj.weight",
    ("layers", "attention", "key"): "model.layers.{}.self_attn.k_proj.weight",
    ("layers", "attention", "value"): "model.layers.{}.self_attn.v_proj.weight",
    ("layers", "attention", "output"): "model.layers.{}.self_attn.o_proj.weight",
    ("layers", "attention", "query_bias"): "model.layers.{}.self_attn.q_proj.bias",
    ("layers", "attention", "key_bias"): "model.layers.{}.self_attn.k_proj.bias",
    ("layers", "attention", "value_bias"): "model.layers.{}.self_attn.v_proj.bias",
    ("layers", "attention", "query_norm"): "model.layers.{}.self_attn.q_norm.weight",
    ("layers", "attention", "key_norm"): "model.layers.{}.self_attn.k_norm.weight",
    ("layers", "feed_forward", "norm"): "model.layers.{}.post_attention_layernorm.weight",
    ("layers", "feed_forward", "gate"): "model.layers.{}.mlp.gate_proj.weight",
    ("layers", "feed_forward", "up"): "model.layers.{}.mlp.up_proj.weight",
    ("layers", "feed_forward", "down"): "model.layers.{}.mlp.down_proj.weight",
}

GGUF = {
    ("embedding",): "token_embd.weight",
    ("unembedding",): "output.weight",
    ("final_norm",): "output_norm.weight",
    ("layers", "attention", "norm"): "blk.{}.attn_norm.weight",
    ("layers", "attention", "query"): "blk.{}.attn_q.weight",
    ("layers", "attention", "key"): "blk.{}.attn_k.weight",
    ("layers", "attention", "value"): "blk.{}.attn_v.weight",
    ("layers", "attention", "output"): "blk.{}.attn_output.weight",
    ("layers", "attention", "query_bias"): "blk.{}.attn_q.bias",
    ("layers", "attention", "key_bias"): "blk.{}.attn_k.bias",
    ("layers", "attention", "value_bias"): "blk.{}.attn_v.bias",
    ("layers", "attention", "query_norm"): "blk.{}.attn_q_norm.weight",
    ("layers", "attention", "key_norm"): "blk.{}.attn_k_norm.weight",
    ("layers", "feed_forward", "norm"): "blk.{}.ffn_norm.weight",
    ("layers", "feed_forward", "gate"): "blk.{}.ffn_gate.weight",
    ("layers", "feed_forward", "up"): "blk.{}.ffn_up.weight",
    ("layers", "feed_forward", "down"): "blk.{}.ffn_down.weight",
}

KERNELS = ("query", "key", "value", "output", "gate", "up", "down")
# Tensors that hold no weight: angles that can be computed.
IGNORED = ("rotary_emb.inv_freq",)


@dataclass(frozen=True)
class Stored:
    """Where a parameter, or one layer of it, is in the files.

    Attributes:
      layer: its place in the stack; None where there is no stack.
      shape: in the file; a single number is (1,).
      transposed: the file holds [outputs, inputs].
    """

    name: str
    parameter: Path
    layer: int | None
    shape: tuple[int, ...]
    transposed: bool


def stored_tensors(model: ModelConfig, names: Mapping[Path, str] | None) -> list[Stored]:
    """Every tensor of a model's files, in the order of its layers.

    Args:
      names: HUGGING_FACE, GGUF, or None for our own: the parameter's path, with the layer's number after "layers".
    """
    found = []
    for path, leaf in flatten_dict(abstract_model(model)[1]).items():
        count = leaf.shape[0] if _stacked(path) else None
        for number in range(count or 1):
            shape = tuple(leaf.shape[1:] if count is not None else leaf.shape)
            if names is None:
                name, turned = _own_name(model, path, number), False
            else:
                name, turned = names[path].format(number), path[-1] in KERNELS
                shape = shape[::-1] if turned else (math.prod(shape),) if path[-1].endswith("bias") else shape
            found.append(Stored(name, path, number if count is not None else None, shape or (1,), turned))
    return sorted(found, key=lambda one: (one.layer is None, one.layer or 0))


def _stacked(path: Path) -> bool:
    return path[0] in ("layers", "cross_attention") or path[:2] in (
        ("encoder", "layers"),
        ("encoder", "cross_attention"),
    )


def _own_name(model: ModelConfig, path: Path, number: int) -> str:
    """The path with the layer's number, cross-attention inside its layer, as in `layer_parameters`."""
    if not _stacked(path):
        return ".".join(path)
    front, rest = (("encoder",), path[1:]) if path[0] == "encoder" else ((), path)
    reading = model.encoder.cross_attention_layers if front else model.retrieval_layers
    if rest[0] == "cross_attention":
        return ".".join((*front, "layers", str(reading[number] - 1), *rest))
    return ".".join((*front, "layers", str(number), *rest[1:]))
