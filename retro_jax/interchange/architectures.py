"""Architectures of other projects: their config.json as a ModelConfig, and the way back.

An architecture is a row of ARCHITECTURES. Keys of config.json that would change the function and are not read are an error
(`_refuse`); those that have no part in it are ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from retro_jax.config import DECODER_KIND, ModelConfig, RunConfig, completed, resolve, to_dict

OWN = "RetroJaxForCausalLM"  # every model of ours, with all fields of config.model under "retro_jax"
CHUNK = 64
LONGEST = 2048  # tokens of a sequence, if no other length is asked for
USUAL_WINDOW = 4096  # of transformers' MistralConfig, where config.json has no sliding_window
FAMILY = {"positions": "rotary", "gated_feed_forward": True, "scaled_embedding": False}


@dataclass(frozen=True)
class Architecture:
    """A decoder of the Llama family.

    Attributes:
      options: fields of the model config that it sets.
      head_dim: of a config.json without one; None: hidden_size / num_attention_heads.
      windowed: whether a sliding_window in config.json is in use, for layers that do not say it themselves.
    """

    model_type: str
    options: Mapping
    head_dim: int | None = None
    windowed: bool = False


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama", {}),  # SmolLM too
    "MistralForCausalLM": Architecture("mistral", {}, windowed=True),
    "Qwen2ForCausalLM": Architecture("qwen2", {"attention_biases": True}),
    "Qwen3ForCausalLM": Architecture("qwen3", {"query_key_norm": True}, head_dim=128),
}
# rope_type -> the keys that config.model.rotary_scaling holds, in its order
SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
# config.json key -> what it may be: with another value the model computes something that is not read here.
NEUTRAL = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0,),
    "quantization_config": (None,),
    "final_logit_softcapping": (None,),
}


def model_of(facts: Mapping, where: Path | str, length: int = 0) -> tuple[str, ModelConfig]:
    """(architecture, model config) of a config.json.

    Args:
      length: tokens of a sequence; 0: as many as the model takes, up to LONGEST.

    Raises:
      ValueError: an architecture that is not supported, a missing size, or something in it that is not computed here.
    """
    named = facts.get("architectures") or ["none"]
    name = str(named[0]) if isinstance(named, list) and named else str(named)
    if name == OWN:
        return name, own_model(facts, where)
    if name not in ARCHITECTURES:
        raise ValueError(
            f"{where} is of the architecture {name}, which is not supported; supported are {', '.join(ARCHITECTURES)} "
            f"(SmolLM is a LlamaForCausalLM) and {OWN}."
        )
    kind = ARCHITECTURES[name]
    _refuse(facts, where)

    def size(key: str, default=None) -> int:
        found = facts.get(key)
        found = default if found is None else found
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise ValueError(f"{where} has no size {key} ({found!r}), so it is no config of a {name}. Fetch it again.")
        return found

    width, heads = size("hidden_size"), size("num_attention_heads")
    keys = size("num_key_value_heads", heads)
    options = {
        **FAMILY,
        **kind.options,
        **_rope(facts, where),
        "key_heads": 0 if keys == heads else keys,
        "norm_epsilon": float(facts.get("rms_norm_eps", 1e-6)),
        "tied_readout": bool(facts.get("tie_word_embeddings", False)),
    }
    return name, ModelConfig(
        vocabulary=size("vocab_size"),
        sequence_length=_length(facts, where, kind, length),
        chunk_length=CHUNK,
        layers=size("num_hidden_layers"),
        width=width,
        heads=heads,
        head_dim=size("head_dim", kind.head_dim or width // heads),
        feed_forward=size("intermediate_size"),
        retrieval_layers=(),
        **options,
    )


def _refuse(facts: Mapping, where) -> None:
    for key, allowed in NEUTRAL.items():
        if key in facts and facts[key] not in allowed:
            what = "a quantization that is not read" if key == "quantization_config" else "not computed here"
            raise ValueError(f"{where} has {key}={facts[key]!r:.80}, which is {what}; it may be {allowed[0]!r}.")


def _rope(facts: Mapping, where) -> dict:
    """The fields of the rotary positions, which newer files keep in a section.

    Raises:
      ValueError: a scaling of them that is not implemented, or one without its numbers.
    """
    section, name = facts.get("rope_parameters") or {}, "rope_parameters"
    if "rope_theta" not in section and facts.get("rope_theta") is not None:
        section = {**section, "rope_theta": facts["rope_theta"]}
    if facts.get("rope_scaling"):
        section, name = {**section, **facts["rope_scaling"]}, "rope_scaling"
    kind = section.get("rope_type", section.get("type", "default"))
    if kind not in SCALINGS:
        raise ValueError(
            f"{where} scales its rotary positions by {kind!r} ({name}), which is not implemented; implemented are "
            f"{', '.join(SCALINGS)}."
        )
    if missing := [key for key in SCALINGS[kind] if not isinstance(section.get(key), int | float)]:
        raise ValueError(
            f"{where} scales its rotary positions by {kind!r}, but has no {missing[0]} in {name}. Fetch it again."
        )
    scaling = tuple(float(section[key]) for key in SCALINGS[kind])
    return {"rotary_theta": float(section.get("rope_theta", 10_000.0)), "rotary_scaling": scaling}


def _length(facts: Mapping, where, kind: Architecture, length: int) -> int:
    """Tokens of a sequence, a multiple of CHUNK: as asked, else as many as the model takes, up to LONGEST."""
    limit, rule = _limit(facts, kind)
    if length > limit:
        raise ValueError(f"{where} has {rule}={limit}, but --length={length} is longer; take at most that.")
    return (length or min(limit, LONGEST)) // CHUNK * CHUNK or CHUNK


def _limit(facts: Mapping, kind: Architecture) -> tuple[int, str]:
    """(the longest text that the model computes as it was trained, the key of config.json that says so)."""
    most = facts.get("max_position_embeddings", LONGEST)
    window = facts.get("sliding_window", USUAL_WINDOW if kind.windowed else None)
    sliding = facts.get("use_sliding_window", kind.windowed) or "sliding_attention" in (facts.get("layer_types") or [])
    if sliding and window and window < most:
        return window, "sliding_window"  # up to the window, attention is what it would be without one
    return most, "max_position_embeddings"


def longest(facts: Mapping, architecture: str) -> int | None:
    """max_position_embeddings of an export of this model; None where its config.json says nothing of it.

    A sliding window is not exported, so it takes its place.
    """
    known = architecture in ARCHITECTURES and facts.get("max_position_embeddings") is not None
    return _limit(facts, ARCHITECTURES[architecture])[0] if known else None


def own_model(facts: Mapping, where) -> ModelConfig:
    """The model config in a config.json that `config_json` wrote."""
    if not isinstance(facts.get("retro_jax"), Mapping):
        raise ValueError(f"{where} has no section retro_jax, the config of the model. Export it again.")
    try:
        return resolve(completed({**to_dict(RunConfig()), "model": dict(facts["retro_jax"])})).model
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None


def architecture_of(model: ModelConfig, wanted: str = "") -> str:
    """The architecture that computes this model; OWN where no other does.

    Args:
      wanted: of several that do, the one that the model came from.
    """
    if model.retrieves or any(getattr(model, name) != value for name, value in FAMILY.items()):
        return OWN
    set_by = {name for kind in ARCHITECTURES.values() for name in kind.options}
    options = {name: getattr(model, name) for name in set_by if getattr(model, name) != getattr(ModelConfig, name)}
    found = [name for name, kind in ARCHITECTURES.items() if dict(kind.options) == options]
    return (wanted if wanted in found else found[0]) if found else OWN


def config_json(
    model: ModelConfig, architecture: str, dtype: str, special: Mapping[str, int], positions: int | None = None
) -> dict:
    """The config.json of a model.

    Args:
      special: bos_token_id and eos_token_id.
      positions: the longest text that the model was made for; None: as long as it was trained here.
    """
    common = {"architectures": [architecture], "dtype": dtype, "vocab_size": model.vocabulary, **special}
    if architecture == OWN:
        return {**common, "model_type": "retro_jax", "retro_jax": to_dict(model)}
    return {
        **common,
        "model_type": ARCHITECTURES[architecture].model_type,
        "hidden_size": model.width,
        "intermediate_size": model.feed_forward,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.decoder_key_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": positions or model.sequence_length,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": model.rotary_theta,
        "rope_scaling": _rope_scaling(model),
        "tie_word_embeddings": model.tied_readout,
        # A missing key would be a window of transformers' own.
        **({"sliding_window": None} if ARCHITECTURES[architecture].windowed else {}),
    }


def _rope_scaling(model: ModelConfig) -> dict | None:
    """The way back from `_rope`."""
    kind = next(kind for kind, keys in SCALINGS.items() if len(keys) == len(model.rotary_scaling))
    return (
        {"rope_type": kind, **dict(zip(SCALINGS[kind], model.rotary_scaling, strict=True))}
        if model.rotary_scaling
        else None
    )


def describe(model: ModelConfig) -> str:
    """The options that make it another decoder than the paper's."""
    return ", ".join(
        f"{name}={getattr(model, name)}" for name in DECODER_KIND if getattr(model, name) != getattr(ModelConfig, name)
    )
