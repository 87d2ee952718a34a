"""Each architecture against transformers' own forward pass: imports, greedy tokens and exports (`make test-interchange`).

RETRO_GGUF=FILE also compares a real GGUF file with transformers' reading of it.
"""

import importlib
import os

import numpy as np
import pytest
from made_up_tokenizer import VOCABULARY, write_tokenizer
from places import ROOT

from launch import export
from retro_jax.config import SampleConfig
from retro_jax.generate.sampling import sample
from retro_jax.interchange.safetensors_files import read_tensors
from retro_jax.models.retro import merge
from retro_jax.run_directory.checkpoints import load_params

pytestmark = pytest.mark.interchange
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES = {
    "LlamaForCausalLM": {"tie_word_embeddings": False, "rope_theta": 500.0},
    "LlamaForCausalLM, tied": {"tie_word_embeddings": True},
    "LlamaForCausalLM, Llama 3": {
        "tie_word_embeddings": True,
        "rope_theta": 500.0,
        "rope": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "Qwen2ForCausalLM, linear": {
        "tie_word_embeddings": True,
        "head_dim": 8,
        "rope": {"rope_type": "linear", "factor": 4.0},
    },
    "MistralForCausalLM": {"tie_word_embeddings": False, "sliding_window": 128},
    "Qwen2ForCausalLM": {"tie_word_embeddings": True, "head_dim": 8},
    "Qwen3ForCausalLM": {"tie_word_embeddings": False, "rope_theta": 1e6},
}
import_verb = importlib.import_module("launch.import")


def made(name, directory):
    """A random model of an architecture, every weight far from zero, saved in several files."""
    import torch
    import transformers

    torch.manual_seed(0)
    kind = name.partition(",")[0]
    options = {**SIZES, **ARCHITECTURES[name]}
    theta, rope = options.pop("rope_theta", 10_000.0), options.pop("rope", {"rope_type": "default"})
    config = getattr(transformers, kind.replace("ForCausalLM", "Config"))(
        **options, rope_parameters={**rope, "rope_theta": theta}
    )
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else noise / parameter.shape[-1] ** 0.5)
    model.save_pretrained(directory, max_shard_size="20KB")
    write_tokenizer(directory)
    return model


def theirs(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def ours(run_directory, tokens):
    params, run, _ = load_params(run_directory)
    segments = np.zeros((len(tokens), tokens.shape[1] // run.model.chunk_length), np.int32)
    import dataclasses

    config = dataclasses.replace(run.model, compute_dtype="float32")
    return np.asarray(merge(config, params)(tokens, segments)), config, params


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def greedy_tokens(model, start, count):
    """The tokens of a text with `count` more, each the likeliest."""
    import torch

    options = {"do_sample": False, "min_new_tokens": count, "max_new_tokens": count}
    return model.generate(torch.tensor([start]), **options, eos_token_id=None, pad_token_id=0)[0].tolist()


class Ids:
    """A tokenizer for which a prompt is its ids."""

    bos, eos = 1, -5

    def encode(self, text):
        return [int(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(map(str, ids))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_greedy_tokens_and_files_are_those_of_transformers(name, tmp_path):
    import torch
    import transformers

    model = made(name, tmp_path / "hf")
    assert import_verb.main([f"--path={tmp_path / 'hf'}", f"--workdir={tmp_path / 'run'}"]) == 0
    tokens = np.random.default_rng(0).integers(3, VOCABULARY, (2, 128)).astype(np.int32)
    found, config, params = ours(tmp_path / "run", tokens)
    expected = theirs(model, tokens)
    print(f"{name}: relative error {relative(found, expected):.2g}")
    assert relative(found, expected) < 1e-5

    drawn = sample(config, params, Ids(), "7 8 9", SampleConfig(tokens=64, temperature=0.0), None)
    assert drawn.tokens == greedy_tokens(model, [1, 7, 8, 9], 64)

    assert export.main([f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"]) == 0
    before, after = read_tensors(tmp_path / "hf"), read_tensors(tmp_path / "out")
    assert set(before) == set(after)
    for tensor in before:
        np.testing.assert_array_equal(before[tensor].all(), after[tensor].all(), err_msg=tensor)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert type(again) is type(model)
    np.testing.assert_array_equal(theirs(again, tokens), expected)


def test_a_real_gguf_file_computes_what_transformers_computes_from_it(tmp_path):
    """On real text, from the file's numbers: theirs through our export, which the tests above compare without a GGUF file."""
    import torch
    import transformers

    if not (path := os.environ.get("RETRO_GGUF")):
        pytest.skip("RETRO_GGUF names no file")
    assert import_verb.main([f"--path={path}", f"--workdir={tmp_path / 'run'}"]) == 0
    assert export.main([f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"]) == 0
    folder, name = os.path.split(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    text = (tmp_path / "out" / "README.md").read_text() + (ROOT / "README.md").read_text()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    from data_pipeline.tokens import Tokenizer

    assert Tokenizer(tmp_path / "run/data/tokenizer").encode(text) == ids
    tokens = np.asarray(ids[:512], np.int32)[None]
    found, config, params = ours(tmp_path / "run", tokens)
    expected = theirs(model, tokens)
    print(f"{name}: relative error {relative(found, expected):.2g}")
    assert relative(found, expected) < 1e-5
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    np.testing.assert_array_equal(theirs(exported, tokens), expected)
    greedy = greedy_tokens(model, [1, *ids[:63]], 64)
    found, _, _ = ours(tmp_path / "run", np.asarray(greedy, np.int32)[None])
    # Each token is the likeliest after those before it, so sampling one by one would give the same.
    assert found[0].argmax(-1)[63:-1].tolist() == greedy[64:]
