"""Retrieval is added to an imported model: Off is the source at every step, with each option."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from made_up_models import write_model
from training_fixture import ENCODER, VOCABULARY, T, build_data, make_run

from retro_jax.config import MeshConfig, check_model
from retro_jax.data.batches import make_batch, validation_examples
from retro_jax.data.manifests import read_manifest
from retro_jax.interchange.importing import open_model
from retro_jax.interchange.saving import save
from retro_jax.models.retro import merge
from retro_jax.run_directory.checkpoints import load_params
from retro_jax.train.loop import train
from retro_jax.train.optimizer import group

MESH = MeshConfig(data=2, fsdp=2, tensor=2)
SHARED = {"shared_embeddings": True}  # ENCODER is as wide as the decoder
OPTIONS = {"plain": {}, "gate": {"cross_attention_gate": True}, "shared embeddings": SHARED}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An imported Llama of two layers, with data cut by its tokenizer."""
    root = tmp_path_factory.mktemp("source")
    build_data(root / "data")
    write_model(root / "hf", vocab_size=VOCABULARY)
    save(open_model(root / "hf"), root / "run", read_manifest(root / "data/tokenizer", "tokenizer").fingerprint)
    return root


def retrofit(source, workdir, trainable="retrieval", **options):
    base = load_params(source / "run")[1].model
    model = dataclasses.replace(
        base, sequence_length=T, chunk_length=4, retrieval_layers=(2,), encoder=ENCODER, compute_dtype="float32",
        remat="none", loss_block=0, **options,
    )  # fmt: skip
    check_model(model)
    run = make_run(
        model, trainable=trainable, initialize_from=str(source / "run"), steps=4, checkpoint_every=1, mesh=MESH
    )
    workdir.mkdir()
    (workdir / "data").symlink_to(source / "data")
    train(run, workdir)
    return model


def logits(model, params, batch, on=False):
    neighbors = batch.neighbor_tokens if on else None
    function = jax.jit(lambda p: merge(model, p)(batch.tokens, batch.segments, neighbors))
    return np.asarray(function(jax.tree.map(np.asarray, params)))


def make_source_batch(source, model):
    examples = validation_examples(source / "data/joined", model)
    return make_batch([examples[0], examples[1]], model.neighbors)


@pytest.mark.parametrize("name", OPTIONS)
def test_off_is_the_source_at_every_step(name, source, tmp_path):
    """Guards against a decoder that moves, and against an option whose retrieval never starts to learn."""
    model = retrofit(source, tmp_path / "run", **OPTIONS[name])
    batch = make_source_batch(source, model)
    params, run, _ = load_params(source / "run")
    expected = logits(dataclasses.replace(run.model, chunk_length=4, compute_dtype="float32"), params, batch)
    for step in (1, 2, 3, 4):
        trained = load_params(tmp_path / "run", step)[0]
        np.testing.assert_array_equal(logits(model, trained, batch), expected)
        for path, leaf in flatten_dict(params).items():
            np.testing.assert_array_equal(flatten_dict(trained)[path], leaf, err_msg=str(path))
    assert np.abs(logits(model, trained, batch, on=True) - expected).max() > 1e-5
    if name == "gate":
        assert np.all(np.asarray(trained["cross_attention"]["update_gate"]) != 0)
    assert ("embedding" in trained["encoder"]) == (name != "shared embeddings")


def test_everything_trains_from_the_source_if_asked(source, tmp_path):
    retrofit(source, tmp_path / "run", trainable="all")
    before, after = (flatten_dict(load_params(place)[0]) for place in (source / "run", tmp_path / "run"))
    for path, leaf in before.items():
        assert group(path) == "decoder" and np.any(np.asarray(after[path]) != np.asarray(leaf)), path


def test_another_kind_of_decoder_is_refused(source, tmp_path):
    """Guards against a retrofit that computes something else than its source: no shape shows the angles."""
    with pytest.raises(ValueError, match=r"config.model.rotary_theta \(there 300.0, here 10000.0\)"):
        retrofit(source, tmp_path / "run", rotary_theta=10_000.0)
