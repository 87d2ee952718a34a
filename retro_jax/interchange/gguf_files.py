"""Reads GGUF files (llama.cpp). The only file that imports gguf, of the extra [gguf].

Quantized tensors are read as the numbers that they stand for, row by row. The rotary pairs of Llama files lie side by side;
here, as in Hugging Face's files, they are half a head apart, so the rows of queries and keys are put in that order.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from retro_jax.interchange.tensors import Tensor, refuse_pointer, shown

# general.architecture -> the architecture of Hugging Face with the same function
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
INTERLEAVED = ("llama",)
CONTROL = 3  # tokenizer.ggml.token_type of special tokens

_DIGITS = {"type": "Digits", "individual_digits": True}
_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_PLAIN = {**_LEVEL, "use_regex": False}
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA = _QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
# tokenizer.ggml.pre -> the pre-tokenizers that cut text in the same places.
CUTTERS = {
    "smollm": [_DIGITS, _LEVEL],
    "gpt-2": [_LEVEL],
    "qwen2": [{"type": "Split", "pattern": {"Regex": _QWEN}, "behavior": "Isolated", "invert": False}, _PLAIN],
    "llama-bpe": [{"type": "Split", "pattern": {"Regex": _LLAMA}, "behavior": "Isolated", "invert": False}, _PLAIN],
}


class GgufFile:
    """An opened file.

    Attributes:
      facts: the file's metadata.
      architecture: Hugging Face's name for it.
    """

    def __init__(self, path: Path):
        """Raises ValueError where gguf is missing, or the file is damaged, split or of another architecture."""
        refuse_pointer(path)
        try:
            import gguf
        except ModuleNotFoundError:
            raise ValueError(f"{path} needs the package gguf: pip install 'retro_jax[gguf]'.") from None
        self.path, self._gguf = Path(path), gguf
        try:
            self._reader = gguf.GGUFReader(str(path))
            self.facts = {name: field.contents() for name, field in self._reader.fields.items()}
        except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is truncated or no GGUF file ({error}). Fetch it again.") from None
        if self.facts.get("split.count", 1) > 1:
            raise ValueError(
                f"{path} is one of {self.facts['split.count']} parts; join them with llama-gguf-split --merge."
            )
        named = self.facts.get("general.architecture")
        if named not in ARCHITECTURES:
            raise ValueError(
                f"{path} is of the architecture {named}, which is not supported; supported are {', '.join(ARCHITECTURES)}."
            )
        self.architecture = ARCHITECTURES[named]

    def config(self) -> dict:
        """The file's metadata as a config.json of Hugging Face."""
        name, facts = self.facts["general.architecture"], self.facts
        of = {
            "hidden_size": "embedding_length",
            "intermediate_size": "feed_forward_length",
            "num_hidden_layers": "block_count",
            "num_attention_heads": "attention.head_count",
            "num_key_value_heads": "attention.head_count_kv",
            "head_dim": "attention.key_length",
            "max_position_embeddings": "context_length",
            "rms_norm_eps": "attention.layer_norm_rms_epsilon",
            "rope_theta": "rope.freq_base",
        }
        found = {theirs: _number(facts[f"{name}.{ours}"]) for theirs, ours in of.items() if f"{name}.{ours}" in facts}
        tensors = {tensor.name for tensor in self._reader.tensors}
        scaling, factor = facts.get(f"{name}.rope.scaling.type", "none"), facts.get(f"{name}.rope.scaling.factor")
        if "rope_freqs.weight" in tensors:
            scaling = "frequencies of its own (rope_freqs.weight)"
        return {
            **found,
            "architectures": [self.architecture],
            "vocab_size": len(facts.get("tokenizer.ggml.tokens", ())),
            "rope_scaling": None if scaling == "none" else {"rope_type": scaling, "factor": factor},
            "tie_word_embeddings": "output.weight" not in tensors,
            "bos_token_id": facts.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": facts.get("tokenizer.ggml.eos_token_id"),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name.

        Raises:
          ValueError: quantizations that the library cannot read.
        """
        found, unread = {}, {}
        for one in self._reader.tensors:
            try:
                self._gguf.quants.dequantize(one.data[:1], one.tensor_type)
            except NotImplementedError:
                unread[one.name] = one.tensor_type.name
                continue
            found[one.name] = self._tensor(one)
        if unread:
            kinds = ", ".join(sorted(set(unread.values())))
            raise ValueError(
                f"{self.path} has tensors in a quantization that is not read ({kinds}): {shown(unread)}. Take another file "
                f"of the model, such as Q8_0 or F16."
            )
        return found

    def _tensor(self, one) -> Tensor:
        shape, order = tuple(int(size) for size in reversed(one.shape)), None
        if self.facts["general.architecture"] in INTERLEAVED and one.name.endswith(("attn_q.weight", "attn_k.weight")):
            heads = self.facts[f"llama.attention.head_count{'_kv' * one.name.endswith('attn_k.weight')}"]
            order = np.arange(shape[0]).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
        dequantize = self._gguf.quants.dequantize

        def read(start: int, stop: int) -> np.ndarray:
            rows = one.data[start:stop] if order is None else one.data[order[start:stop]]
            return np.asarray(dequantize(rows, one.tensor_type), np.float32)

        return Tensor(self.path, one.name, one.tensor_type.name, shape, read)

    def tokenizer(self) -> tuple[bytes, Mapping[str, int]]:
        """The vocabulary as a tokenizer.json, and the ids of BOS and EOS.

        Raises:
          ValueError: a vocabulary that is not byte-level BPE, or cut by rules that are not known.
        """
        facts = self.facts
        kind, cut = facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre", "gpt-2")
        if kind != "gpt2" or cut not in CUTTERS:
            raise ValueError(
                f"{self.path} has a tokenizer of the kind {kind}, cut as {cut}; read is gpt2 cut as {', '.join(CUTTERS)}. "
                f"Import the model from its Hugging Face directory instead."
            )
        pieces, types = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        added = [
            {"id": id, "content": piece, **flags}
            for id, (piece, type) in enumerate(zip(pieces, types, strict=True))
            if type == CONTROL
        ]
        content = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": CUTTERS[cut]},
            "post_processor": None,
            "decoder": _LEVEL,
            "model": {
                "type": "BPE",
                "ignore_merges": cut == "llama-bpe",  # Llama 3 takes a word that is a token before any merge
                "vocab": {piece: id for id, piece in enumerate(pieces)},
                "merges": list(facts["tokenizer.ggml.merges"]),
            },
        }
        eos = facts.get("tokenizer.ggml.eos_token_id")
        return json.dumps(content).encode(), {"bos": facts.get("tokenizer.ggml.bos_token_id", eos), "eos": eos}


def _number(value):
    """A float32 of the file by its shortest decimal, 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else int(value)
