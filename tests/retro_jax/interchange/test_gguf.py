"""GGUF files, written here with the package gguf (`make test-interchange`): names, rotary order, tokenizer, refusals."""

import importlib
import json
import re

import numpy as np
import pytest
from made_up_models import CONFIG, weights_of, write_model
from made_up_tokenizer import MERGES, SPECIAL, facts

from retro_jax.config import MeshConfig
from retro_jax.interchange.importing import open_model, place
from retro_jax.interchange.names import GGUF, HUGGING_FACE
from retro_jax.parallel.sharding import make_mesh

pytestmark = pytest.mark.interchange
import_verb = importlib.import_module("launch.import")
CONFIG_32 = {**CONFIG, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8}  # a block of Q8_0 is 32 numbers


def interleaved(array, heads):
    """The order of llama.cpp's converter: the two numbers of a rotary pair side by side."""
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def write_gguf(path, weights, config=CONFIG_32, architecture="llama", kind=None, **changes):
    import gguf

    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_tokenizer_model(changes.get("model", "gpt2"))
    writer.add_tokenizer_pre(changes.get("pre", "gpt-2"))
    pieces = list(facts()["model"]["vocab"])
    writer.add_token_list(pieces)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(pieces) - len(SPECIAL)))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if scaling := changes.get("scaling"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling))
    theirs = {name: GGUF[parameter] for parameter, name in HUGGING_FACE.items()}
    for name, array in weights.items():
        number = next((part for part in name.split(".") if part.isdigit()), "")
        plain = name.replace(f".{number}.", ".{}.") if number else name
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            array = interleaved(array, heads)
        if kind and array.ndim == 2:
            writer.add_tensor(theirs[plain].format(number), gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(theirs[plain].format(number), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_file_holds_the_model_of_the_safetensors(tmp_path):
    """Guards against queries and keys in the other order of rotary pairs, which no shape shows."""
    weights = write_model(tmp_path / "hf", weights_of(CONFIG_32), **CONFIG_32)
    write_gguf(tmp_path / "model.gguf", weights)
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    one, other = open_model(tmp_path / "hf"), open_model(tmp_path / "model.gguf")
    assert one.model == other.model
    import jax

    jax.tree.map(np.testing.assert_array_equal, place(one, mesh), place(other, mesh))


def test_quantized_rows_are_the_numbers_that_they_stand_for(tmp_path):
    import gguf

    weights = weights_of(CONFIG_32)
    write_gguf(tmp_path / "model.gguf", weights, kind=gguf.GGMLQuantizationType.Q8_0)
    placed = place(open_model(tmp_path / "model.gguf"), make_mesh(MeshConfig(data=1, fsdp=8)))
    for name, leaf in (("q_proj", "query"), ("v_proj", "value")):
        stored = weights[f"model.layers.1.self_attn.{name}.weight"]
        found = np.asarray(placed["layers"]["attention"][leaf][1]).T
        assert 0 < np.abs(found - stored).max() < 0.01 * np.abs(stored).max()
    rounded = gguf.quants.dequantize(
        gguf.quants.quantize(weights["model.embed_tokens.weight"], gguf.GGMLQuantizationType.Q8_0),
        gguf.GGMLQuantizationType.Q8_0,
    )
    np.testing.assert_array_equal(placed["embedding"], rounded)


def test_an_import_has_the_tokenizer_of_the_file(tmp_path):
    from data_pipeline.tokens import Tokenizer

    write_gguf(tmp_path / "model.gguf", weights_of(CONFIG_32))
    assert import_verb.main([f"--path={tmp_path / 'model.gguf'}", f"--workdir={tmp_path / 'run'}"]) == 0
    tokenizer = Tokenizer(tmp_path / "run/data/tokenizer")
    assert (tokenizer.bos, tokenizer.eos) == (1, 2)
    assert tokenizer.decode(tokenizer.encode(" the \u00e9nd")) == " the \u00e9nd"
    assert len(tokenizer.encode(" the")) == 1


def test_llama_3_takes_a_word_that_is_a_token_before_any_merge(tmp_path):
    """Guards against words of Llama 3 in several tokens: some of its tokens are reached by no merge."""
    for cut in ("llama-bpe", "gpt-2"):
        write_gguf(tmp_path / f"{cut}.gguf", weights_of(CONFIG_32), pre=cut)
        content, _ = open_model(tmp_path / f"{cut}.gguf").tokenizer
        assert json.loads(content)["model"]["ignore_merges"] == (cut == "llama-bpe")


def unread_type(monkeypatch):
    """A quantization that the library knows by name and cannot turn into numbers."""
    import gguf

    def refuse(data, kind):
        raise NotImplementedError(kind)

    monkeypatch.setattr(gguf.quants, "dequantize", refuse)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "phi3"}, "the architecture phi3, which is not supported; supported are llama, qwen2, qwen3"),
        ({"scaling": "yarn"}, "scales its rotary positions by 'yarn'"),
        ({"pre": "deepseek-llm"}, "a tokenizer of the kind gpt2, cut as deepseek-llm; read is gpt2 cut as smollm"),
        ({"model": "llama"}, "a tokenizer of the kind llama"),
        ({"unread": True}, r"in a quantization that is not read \(F32\): .* and .* more. Take another file"),
        ({"missing": True}, "1 missing: output_norm.weight"),
        ({"cut": True}, "is truncated or no GGUF file"),
    ],
    ids=str,
)
def test_a_file_that_is_not_read_is_refused_before_anything_is_written(changes, message, tmp_path, capsys, monkeypatch):
    weights, path = weights_of(CONFIG_32), tmp_path / "model.gguf"
    if changes.pop("missing", False):
        del weights["model.norm.weight"]
    cut, unread = changes.pop("cut", False), changes.pop("unread", False)
    write_gguf(path, weights, **changes)
    if cut:
        path.write_bytes(path.read_bytes()[:20_000])
    if unread:
        unread_type(monkeypatch)
    assert import_verb.main([f"--path={path}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
