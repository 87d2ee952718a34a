"""A retrofit keeps its decoder bit for bit."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from training_fixture import BASELINE, MODEL, build_data, make_run

from retro_jax.config import MeshConfig
from retro_jax.data.batches import make_batch, validation_examples
from retro_jax.models.retro import merge
from retro_jax.parallel.sharding import make_mesh
from retro_jax.run_directory.checkpoints import load_model, load_params
from retro_jax.train.loop import train
from retro_jax.train.optimizer import group, make_optimizer
from retro_jax.train.retrofit import initial_state

MESH = MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A trained baseline with its data."""
    workdir = tmp_path_factory.mktemp("base")
    build_data(workdir / "data")
    train(make_run(BASELINE, steps=4, mesh=MESH), workdir)
    return workdir


def retrofit_run(base, **train):
    return make_run(
        MODEL, **{"trainable": "retrieval", "initialize_from": str(base), "mesh": MESH, "steps": 4, **train}
    )


def fingerprints(base):
    return json.loads((base / "versions.json").read_text())["fingerprints"]


def start(run, base):
    return initial_state(run, make_optimizer(run.train), make_mesh(MESH), fingerprints(base))


def logits(config, params, batch, neighbors):
    params = jax.tree.map(np.asarray, params)
    return jax.jit(lambda p: merge(config, p)(jnp.asarray(batch.tokens), jnp.asarray(batch.segments), neighbors))(
        params
    )


def test_it_starts_as_the_baseline_and_off_stays_so(base, tmp_path):
    """Guards against a retrofit that changes frozen weights or does not start at its baseline."""
    (tmp_path / "data").symlink_to(base / "data")
    run = retrofit_run(base)
    decoder, base_run, _ = load_params(base)
    examples = validation_examples(base / "data" / "joined", MODEL)
    batch = make_batch([examples[0], examples[1]], MODEL.neighbors)
    expected = logits(base_run.model, decoder, batch, None)

    first = start(run, base).params
    np.testing.assert_array_equal(logits(MODEL, first, batch, None), expected)
    np.testing.assert_array_equal(logits(MODEL, first, batch, batch.neighbor_tokens), expected)

    train(run, tmp_path)
    last, _, step = load_params(tmp_path)
    assert step == 4
    np.testing.assert_array_equal(logits(MODEL, last, batch, None), expected)
    assert np.abs(logits(MODEL, last, batch, batch.neighbor_tokens) - expected).max() > 1e-4
    before, after, base_leaves = flatten_dict(first), flatten_dict(last), flatten_dict(decoder)
    for path, leaf in after.items():
        if group(path) == "decoder":
            np.testing.assert_array_equal(leaf, base_leaves[path], err_msg=str(path))
        else:
            assert np.any(np.asarray(leaf) != np.asarray(before[path])), path


def test_a_loaded_model_is_the_trained_one(base):
    model, run, step = load_model(base)
    assert step == 4 and run.model == BASELINE
    np.testing.assert_array_equal(model.readout, load_params(base)[0]["embedding"])


def test_only_a_decoder_of_the_same_shape_fits(base):
    run = dataclasses.replace(retrofit_run(base), model=dataclasses.replace(MODEL, layers=4, feed_forward=48))
    with pytest.raises(ValueError, match=r"config.model.layers \(there 3, here 4\); config.model.feed_forward"):
        start(run, base)


def test_another_tokenizer_is_refused(base):
    run = retrofit_run(base)
    with pytest.raises(ValueError, match="trained with tokenizer .* but this data has other"):
        initial_state(run, make_optimizer(run.train), make_mesh(MESH), {"tokenizer": "other"})


@pytest.mark.parametrize("model, source", [(BASELINE, "somewhere"), (MODEL, "")])
def test_training_retrieval_alone_needs_a_decoder_and_retrieval_layers(base, model, source):
    run = make_run(model, trainable="retrieval", initialize_from=source)
    with pytest.raises(ValueError, match="needs config.train.initialize_from=RUN_DIRECTORY"):
        start(run, base)


def test_a_directory_without_a_run_is_named(base, tmp_path):
    with pytest.raises(ValueError, match="is not a run directory: it has no config.json"):
        start(retrofit_run(tmp_path), base)


@pytest.fixture(scope="module")
def retro(base, tmp_path_factory):
    """A trained RETRO model."""
    workdir = tmp_path_factory.mktemp("retro")
    (workdir / "data").symlink_to(base / "data")
    train(make_run(MODEL, steps=4, mesh=MESH), workdir)
    return workdir


def test_a_retro_model_starts_with_every_weight_of_another(base, retro):
    """Guards against a fine-tuning that keeps the decoder alone; of another sequence length and number of neighbors."""
    longer = dataclasses.replace(MODEL, sequence_length=2 * MODEL.sequence_length, neighbors=1)
    run = make_run(longer, initialize_from=str(retro), mesh=MESH)
    state = start(run, base)
    assert int(state.step) == 0
    wanted = flatten_dict(load_params(retro)[0])
    for path, leaf in flatten_dict(state.params).items():
        np.testing.assert_array_equal(leaf, wanted[path], err_msg=str(path))
        assert leaf.sharding.mesh.size == 8
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(state.opt_state))


def test_a_baseline_starts_with_the_decoder_of_a_retro_model(base, retro):
    params = start(make_run(BASELINE, initialize_from=str(retro), mesh=MESH), base).params
    np.testing.assert_array_equal(params["embedding"], load_params(retro)[0]["embedding"])


def test_only_a_retro_model_of_the_same_shape_fits(base, retro):
    encoder = dataclasses.replace(MODEL.encoder, feed_forward=48)
    other = dataclasses.replace(MODEL, retrieval_layers=(2,), encoder=encoder)
    with pytest.raises(
        ValueError, match=r"retrieval_layers \(there \(2, 3\), here \(2,\)\); config.model.encoder.feed_for"
    ):
        start(make_run(other, initialize_from=str(retro), mesh=MESH), base)
