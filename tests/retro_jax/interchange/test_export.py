"""`retro export`: what comes back from an export is what went in, for models of ours and of others."""

import dataclasses
import importlib
import json

import jax
import numpy as np
import pytest
from decoder_kinds import KINDS
from flax.traverse_util import flatten_dict
from made_up_models import write_model
from made_up_tokenizer import VOCABULARY, write_tokenizer
from tiny_model import random_parameters, tiny

from data_pipeline.tokens import build_tokenizer
from launch import export
from retro_jax.config import DataConfig, RunConfig, TrainConfig
from retro_jax.core.files import write_json
from retro_jax.interchange.architectures import OWN, architecture_of
from retro_jax.interchange.safetensors_files import Written, read_tensors, write_tensors
from retro_jax.run_directory.checkpoints import Checkpoints, load_params
from retro_jax.run_directory.directory import claim, identity
from retro_jax.train.state import TrainState

import_verb = importlib.import_module("launch.import")


def files(directory):
    """Every file of an export but the card, which names versions and the time."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "README.md"}


def make_run(workdir, model, step=3, **train):
    """A run with one checkpoint of random weights and a byte-level tokenizer."""
    path = write_tokenizer(workdir / "given")
    prints = {
        "tokenizer": build_tokenizer(
            workdir / "data/tokenizer", DataConfig(tokenizer=str(path)), VOCABULARY, workdir
        ).fingerprint
    }
    run = RunConfig(model=model, train=dataclasses.replace(TrainConfig(), **train))
    params = jax.tree.map(jax.numpy.asarray, random_parameters(model))
    checkpoints = Checkpoints(workdir / "checkpoints", identity(run, prints))
    checkpoints.save(step, TrainState(jax.numpy.int32(step), params, ()), {})
    checkpoints.require_saved()
    checkpoints.close()
    claim(workdir, run, prints, step)
    return params


MODELS = {
    "the paper's, with retrieval": {"cross_attention_gate": True},
    "a llama with retrieval": {**KINDS["llama"]},
    "a qwen2": {**KINDS["qwen2"], "retrieval_layers": ()},
    "a qwen3": {**KINDS["qwen3"], "retrieval_layers": ()},
    "of no other project": {**KINDS["qwen3"], "retrieval_layers": (), "attention_biases": True},
}


@pytest.mark.parametrize("name", MODELS)
def test_an_export_comes_back_with_the_same_bytes(name, tmp_path):
    """Parameters, config and, exported again, every file."""
    model = tiny(vocabulary=VOCABULARY, chunk_length=4, **MODELS[name])
    params = make_run(tmp_path / "run", model)
    assert export.main([f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"]) == 0
    chosen = json.loads((tmp_path / "out/config.json").read_text())["architectures"][0]
    assert chosen == {"a qwen2": "Qwen2ForCausalLM", "a qwen3": "Qwen3ForCausalLM"}.get(name, OWN)
    if chosen == OWN:
        assert import_verb.main([f"--path={tmp_path / 'out'}", f"--workdir={tmp_path / 'back'}"]) == 0
        found, run, step = load_params(tmp_path / "back")
        assert step == 0 and run.model == model
        for path, leaf in flatten_dict(params).items():
            np.testing.assert_array_equal(flatten_dict(found)[path], leaf, err_msg=str(path))
        assert export.main([f"--workdir={tmp_path / 'back'}", f"--to={tmp_path / 'again'}"]) == 0
        first, second = files(tmp_path / "out"), files(tmp_path / "again")
        del second["imported.json"]
        assert first == second


def test_an_imported_model_is_exported_as_what_it_was(tmp_path):
    weights = write_model(tmp_path / "hf", architectures=["MistralForCausalLM"])
    assert import_verb.main([f"--path={tmp_path / 'hf'}", f"--workdir={tmp_path / 'run'}"]) == 0
    for number, (place, workdir) in enumerate((("out", "run"), ("again", "back"))):
        assert export.main([f"--workdir={tmp_path / workdir}", f"--to={tmp_path / place}"]) == 0
        if not number:
            assert import_verb.main([f"--path={tmp_path / 'out'}", f"--workdir={tmp_path / 'back'}"]) == 0
    found = read_tensors(tmp_path / "out")
    assert set(found) == set(weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(found[name].all(), array)
    first, second = files(tmp_path / "out"), files(tmp_path / "again")
    assert {name: first[name] for name in first if name != "imported.json"} == {
        name: second[name] for name in second if name != "imported.json"
    }
    config = json.loads(first["config.json"])
    assert config["architectures"] == ["MistralForCausalLM"]
    assert config["sliding_window"] is None  # where the key is missing, transformers takes 4,096
    card = (tmp_path / "out/README.md").read_text()
    assert "MistralForCausalLM" in card and "model.safetensors (sha256 " in card and "positions=rotary" in card


def test_a_card_says_what_the_run_says(tmp_path):
    make_run(tmp_path / "run", tiny(vocabulary=VOCABULARY))
    (tmp_path / "run/seconds.json").write_text('{"seconds": 7200.0}')
    assert export.main([f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'out'}", "--dtype=bfloat16"]) == 0
    card = (tmp_path / "out/README.md").read_text()
    for words in (
        "step 3",
        "as bfloat16",
        "2.00 hours",
        "layers 2, 3",
        "Not evaluated in this work directory",
        "| jax |",
    ):
        assert words in card
    assert {tensor.dtype for tensor in read_tensors(tmp_path / "out").values()} == {"BF16"}


def test_the_card_of_a_retrofit_says_where_its_decoder_comes_from(tmp_path):
    """Guards against a license that is lost on the way from an import over a retrofit and its export to another import."""
    origin = {"architecture": "LlamaForCausalLM", "dtypes": ["Q4_1"], "files": {"small.gguf": "0" * 64}}
    source = tmp_path / "moved later"
    write_json(
        source / "imported.json", {**origin, "license": "apache-2.0", "name": "Small", "max_position_embeddings": 8}
    )
    make_run(tmp_path / "run", tiny(vocabulary=VOCABULARY), initialize_from=str(source))
    (source / "imported.json").unlink()
    assert export.main([f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"]) == 0
    assert import_verb.main([f"--path={tmp_path / 'out'}", f"--workdir={tmp_path / 'back'}"]) == 0
    assert export.main([f"--workdir={tmp_path / 'back'}", f"--to={tmp_path / 'again'}"]) == 0
    for place in ("out", "again"):
        card = (tmp_path / place / "README.md").read_text()
        assert "license: apache-2.0" in card and "What the imported model was trained on is not known here." in card
    assert (
        "| decoder imported from | Small: LlamaForCausalLM, Q4_1, license apache-2.0 |"
        in (tmp_path / "out/README.md").read_text()
    )


def test_float16_that_cannot_hold_a_number_is_refused(tmp_path, capsys):
    write_model(tmp_path / "hf", {**{name: 1e5 * array for name, array in _weights().items()}})
    assert import_verb.main([f"--path={tmp_path / 'hf'}", f"--workdir={tmp_path / 'run'}"]) == 0
    assert export.main([f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'out'}", "--dtype=float16"]) == 2
    assert "but float16 ends at 65504; take --dtype=bfloat16" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/model*"))


def _weights():
    from made_up_models import CONFIG, weights_of

    return weights_of(CONFIG)


def test_a_directory_with_files_is_refused(tmp_path, capsys):
    make_run(tmp_path / "run", tiny(vocabulary=VOCABULARY, retrieval_layers=()))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes").write_text("mine")
    for arguments, message in (
        ([f"--to={tmp_path / 'out'}"], "is not empty"),
        ([], "--to is missing"),
        ([f"--to={tmp_path / 'o'}", "--step=9"], "no whole checkpoint at step 9"),
    ):
        assert export.main([f"--workdir={tmp_path / 'run'}", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_files_of_a_limited_size(tmp_path):
    """An index names every tensor's file, and tensors come back from several files."""
    arrays = {f"t{number}": np.full((3, 5), number, np.float32) for number in range(7)}
    written = [Written(name, array.shape, lambda array=array: array) for name, array in arrays.items()]
    names = write_tensors(tmp_path, written, "F32", 130)
    assert len(names) == 5 and names[0] == "model-00001-of-00004.safetensors"
    found = read_tensors(tmp_path)
    assert {name: tensor.all().tolist() for name, tensor in found.items()} == {
        name: array.tolist() for name, array in arrays.items()
    }


def test_the_architecture_follows_from_the_options():
    assert {kind: architecture_of(tiny(retrieval_layers=(), **options)) for kind, options in KINDS.items()} == {
        "llama": "LlamaForCausalLM", "smollm": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    }  # fmt: skip
    llama = tiny(retrieval_layers=(), **KINDS["llama"])
    assert architecture_of(llama, "MistralForCausalLM") == "MistralForCausalLM"
    assert architecture_of(llama, "Qwen2ForCausalLM") == "LlamaForCausalLM"
    for changes in ({"scaled_embedding": True}, {"gated_feed_forward": False}):
        assert architecture_of(dataclasses.replace(llama, **changes)) == OWN


@pytest.mark.parametrize(
    ("changes", "positions"),
    [({}, 128), ({"architectures": ["MistralForCausalLM"], "sliding_window": 96}, 96)],
    ids=["max_position_embeddings", "a sliding window"],
)
def test_an_export_is_as_long_as_the_model_was_made_for(changes, positions, tmp_path):
    """Guards against an import of short sequences whose export refuses long ones; a window is not exported, so it is the length."""
    write_model(tmp_path / "hf", **changes)
    assert import_verb.main([f"--path={tmp_path / 'hf'}", f"--workdir={tmp_path / 'run'}", "--length=64"]) == 0
    assert export.main([f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"]) == 0
    facts = json.loads((tmp_path / "out/config.json").read_text())
    assert facts["max_position_embeddings"] == positions and facts["architectures"] == changes.get(
        "architectures", ["LlamaForCausalLM"]
    )


def test_an_export_of_our_own_training_is_as_long_as_its_sequences(tmp_path):
    model = tiny(vocabulary=VOCABULARY, chunk_length=4, **MODELS["a qwen2"])
    make_run(tmp_path / "run", model)
    assert export.main([f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"]) == 0
    assert json.loads((tmp_path / "out/config.json").read_text())["max_position_embeddings"] == model.sequence_length
