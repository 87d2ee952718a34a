"""`retro import`: tiny models written here, their logits by a NumPy forward pass, and every input that is refused."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from made_up_models import CONFIG, logits, weights_of, write_model
from made_up_tokenizer import SPECIAL, VOCABULARY, write_tokenizer
from places import ROOT
from processes import free_port

from data_pipeline.tokens import Tokenizer
from retro_jax.config import MeshConfig
from retro_jax.interchange import importing
from retro_jax.interchange.importing import open_model, place
from retro_jax.interchange.safetensors_files import INDEX
from retro_jax.models.retro import merge
from retro_jax.parallel.sharding import make_mesh
from retro_jax.run_directory.checkpoints import load_fingerprints, load_params

import_verb = importlib.import_module("launch.import")
KINDS = {
    "LlamaForCausalLM": {"head_dim": 6},
    "MistralForCausalLM": {"tie_word_embeddings": True, "sliding_window": 64},
    "Qwen2ForCausalLM": {"tie_word_embeddings": True, "num_key_value_heads": 4},
    "Qwen3ForCausalLM": {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}, "rope_theta": None},
}


def run_import(path, workdir, *more):
    return import_verb.main([f"--path={path}", f"--workdir={workdir}", *more])


def model_logits(run_directory, tokens):
    params, run, _ = load_params(run_directory)
    config = dataclasses.replace(run.model, compute_dtype="float32")
    segments = np.zeros((1, tokens.shape[1] // config.chunk_length), np.int32)
    function = jax.jit(
        lambda params: merge(config, params)(tokens, segments), compiler_options={"xla_backend_optimization_level": 0}
    )
    return np.asarray(function(params))[0]


@pytest.mark.parametrize("architecture", KINDS)
def test_an_imported_model_computes_what_its_files_say(architecture, tmp_path):
    """Guards against tensors under each other's names, kernels not transposed, and options of another architecture."""
    changes = {"architectures": [architecture], **KINDS[architecture]}
    weights = write_model(tmp_path / "hf", weights_of({**CONFIG, **changes}), **changes)
    assert run_import(tmp_path / "hf", tmp_path / "run") == 0
    tokens = np.random.default_rng(0).integers(3, VOCABULARY, (1, 64)).astype(np.int32)
    expected = logits(weights, {**CONFIG, **changes, "rope_theta": 300.0}, tokens[0].tolist())
    found = model_logits(tmp_path / "run", tokens)
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
    _, run, step = load_params(tmp_path / "run")
    assert step == 0 and run.model.sequence_length == (64 if "sliding_window" in changes else 128)
    fingerprint = Tokenizer(tmp_path / "run/data/tokenizer").fingerprint
    assert load_fingerprints(tmp_path / "run", 0) == {"tokenizer": fingerprint}


def test_each_device_reads_its_part_alone(tmp_path, monkeypatch):
    """Guards against a host that holds the whole model: on eight devices no read brings more than its rows."""
    weights = write_model(tmp_path, most=2_000)
    assert (tmp_path / INDEX).exists()
    source = open_model(tmp_path)
    most = max(array.nbytes for array in weights.values())
    seen, cut = [], importing._part

    def observed(*arguments):
        found = cut(*arguments)
        seen.append(found.nbytes)
        return found

    monkeypatch.setattr(importing, "_part", observed)
    placed = place(source, make_mesh(MeshConfig(data=1, fsdp=8)))
    stacked = CONFIG["num_hidden_layers"]
    assert max(seen) <= most * stacked / 8
    assert placed["layers"]["attention"]["query"].addressable_shards[0].data.shape == (2, 2, 24)
    for number in range(stacked):
        expected = weights[f"model.layers.{number}.self_attn.q_proj.weight"].T
        np.testing.assert_array_equal(placed["layers"]["attention"]["query"][number], expected)
    np.testing.assert_array_equal(placed["embedding"], weights["model.embed_tokens.weight"])


def test_two_processes_write_what_one_writes(tmp_path):
    """Guards against files of both, parts of one alone, and a process that waits for ever where the other ended early."""
    write_model(tmp_path / "hf", most=2_000)
    assert run_import(tmp_path / "hf", tmp_path / "one") == 0
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}

    def two(workdir):
        port, running = free_port(), []
        for process in range(2):
            command = [sys.executable, "-m", "launch.import", f"--path={tmp_path / 'hf'}", f"--workdir={workdir}"]
            command += f"--hosts=flags --coordinator=localhost:{port} --processes=2 --process={process}".split()
            running.append(subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True))
        messages = [process.communicate(timeout=240)[1] for process in running]
        return [process.returncode for process in running], messages

    codes, messages = two(tmp_path / "two")
    assert codes == [0, 0], messages
    one, other = (load_params(tmp_path / name)[0] for name in ("one", "two"))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    for name in ("config.json", "imported.json", "data/tokenizer/manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert not list((tmp_path / "two").glob("*.lock"))
    codes, messages = two(tmp_path / "two")
    assert codes == [2, 2] and all("holds a run already; import into another --workdir" in text for text in messages)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_smaller_types_are_read_exactly(dtype, tmp_path):
    weights = write_model(tmp_path, dtype=dtype)
    stored = open_model(tmp_path).tensors["model.norm.weight"].all().astype(np.float32)
    np.testing.assert_allclose(stored, weights["model.norm.weight"], rtol=5e-3)
    placed = place(open_model(tmp_path), make_mesh(MeshConfig()))
    np.testing.assert_array_equal(placed["final_norm"], stored)


def write_index(directory, **changes):
    facts = json.loads((directory / INDEX).read_text())
    (directory / INDEX).write_text(json.dumps({**facts, **changes}))


def pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def without(*names):
    return {name: array for name, array in weights_of(CONFIG).items() if name not in names}


def with_infinity():
    weights = weights_of(CONFIG)
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = 1e30
    return weights


QUERY = "model.layers.1.self_attn.q_proj.weight"
BAD = {
    "another architecture": (
        {"architectures": ["GPT2LMHeadModel"]},
        r"the architecture GPT2LMHeadModel, which is not supported; supported are LlamaForCausalLM, MistralForCausalLM, Qwen2",
    ),
    "a missing tensor": ({"weights": without(QUERY)}, rf"1 missing: {QUERY}\. Fetch config and files of one model"),
    "all kinds of tensors": (
        {
            "weights": {
                **without("model.norm.weight"),
                QUERY: np.ones((24, 15), np.float32),
                "extra": np.ones(2, np.float32),
            }
        },
        r"1 missing: model.norm.weight; 1 not known: extra; 1 of another shape: .* is \(24, 15\) and must be \(24, 16\)",
    ),
    "a readout that is not the embedding": (
        {"tie_word_embeddings": True, "weights": weights_of(CONFIG)},
        "1 not known: lm_head.weight",
    ),
    "a missing size": ({"hidden_size": None, "weights": weights_of(CONFIG)}, r"has no size hidden_size \(None\)"),
    "a scaling without its numbers": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        r"scales its rotary positions by 'llama3', but has no low_freq_factor in rope_scaling",
    ),
    "an older scaling": (
        {"rope_scaling": {"type": "dynamic", "factor": 8.0}},
        r"scales its rotary positions by 'dynamic' \(rope_scaling\), which is not implemented; implemented are default, lin",
    ),
    "a scaling in the newer section": (
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
        r"scales its rotary positions by 'yarn' \(rope_parameters\)",
    ),
    "a quantization": (
        {"quantization_config": {"bits": 4}},
        "quantization_config=.*which is a quantization that is not read",
    ),
    "biases everywhere": ({"attention_bias": True}, "attention_bias=True, which is not computed here"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    "infinities in float16": (
        {"weights": with_infinity(), "dtype": "F16"},
        r"1 numbers in model.layers.1.mlp.up_proj.weight \(F16\) that are infinite .* Float16 ends at 65,504",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_model_that_is_not_read_is_refused_before_anything_is_written(name, tmp_path, capsys):
    changes, message = BAD[name]
    write_model(tmp_path / "hf", **changes)
    assert run_import(tmp_path / "hf", tmp_path / "run") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def damaged(name, directory):
    """Damages a directory of a model in several files."""
    files = sorted(directory.glob("model-*.safetensors"))
    actions = {
        "a missing file": files[1].unlink,
        "a Git LFS pointer": lambda: pointer(files[0]),
        "a truncated file": lambda: files[0].write_bytes(files[0].read_bytes()[:-10]),
        "an index with paths": lambda: write_index(directory, weight_map={"a": "../b"}),
        "a pickle alone": lambda: (
            [file.unlink() for file in files],
            (directory / INDEX).rename(directory / "pytorch_model.bin"),
        ),
        "no config": (directory / "config.json").unlink,
        "no tokenizer": (directory / "tokenizer.json").unlink,
        "another vocabulary": lambda: write_tokenizer(
            directory, added_tokens=[{"id": 999, "content": "x", "special": True}]
        ),
        "other special tokens": lambda: write_tokenizer(directory, {"bos_token": SPECIAL[1], "eos_token": SPECIAL[0]}),
        "a cut config": lambda: (directory / "config.json").write_text('{"architectures": ["Llama'),
    }
    actions[name]()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a missing file", "names .* files, but model-00002-of-.*safetensors is missing"),
        ("a Git LFS pointer", "model-00001-of-.* is a Git LFS pointer, not the file: fetch it with `git lfs pull`"),
        ("a truncated file", "is truncated or no safetensors file"),
        ("an index with paths", "has no weight_map of tensors to files beside it"),
        ("a pickle alone", r"has neither model.safetensors nor .*pickle can run code"),
        ("no config", "has no config.json"),
        ("no tokenizer", "has no tokenizer"),
        ("another vocabulary", "the tokenizer does not belong to that model"),
        (
            "other special tokens",
            "has EOS 0, but the model's config says 2: the tokenizer does not belong to this model",
        ),
        ("a cut config", "config.json is cut off"),
    ],
)
def test_damaged_files_are_refused_before_anything_is_written(name, message, tmp_path, capsys):
    write_model(tmp_path / "hf", most=4_000)
    damaged(name, tmp_path / "hf")
    assert run_import(tmp_path / "hf", tmp_path / "run") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_flags_and_directories_that_do_not_fit_are_refused(tmp_path, capsys):
    write_model(tmp_path / "hf")
    for arguments, message in (
        ([f"--workdir={tmp_path / 'run'}"], "--path is missing"),
        ([f"--path={tmp_path / 'none'}", f"--workdir={tmp_path / 'run'}"], "does not exist"),
        (
            [f"--path={tmp_path / 'hf'}", f"--workdir={tmp_path / 'run'}", "--length=4096"],
            "max_position_embeddings=128, but",
        ),
    ):
        assert import_verb.main(arguments) == 2
        assert message in capsys.readouterr().err
    assert run_import(tmp_path / "hf", tmp_path / "run", "--length=64") == 0
    assert load_params(tmp_path / "run")[1].model.sequence_length == 64
    before = (tmp_path / "run/config.json").read_bytes()
    assert run_import(tmp_path / "hf", tmp_path / "run") == 2
    assert "holds a run already" in capsys.readouterr().err and (tmp_path / "run/config.json").read_bytes() == before


def test_an_import_that_was_interrupted_is_done_again(tmp_path, monkeypatch):
    """Without config.json the directory is no run, whatever else is there."""
    write_model(tmp_path / "hf")
    assert run_import(tmp_path / "hf", tmp_path / "run") == 0
    (tmp_path / "run/config.json").unlink()
    shutil.rmtree(tmp_path / "run/checkpoints/0/params")
    assert run_import(tmp_path / "hf", tmp_path / "run") == 0
    assert load_params(tmp_path / "run")[2] == 0


def test_a_gguf_file_without_its_package_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert run_import(tmp_path / "model.gguf", tmp_path / "run") == 2
    assert "needs the package gguf: pip install 'retro_jax[gguf]'" in capsys.readouterr().err
