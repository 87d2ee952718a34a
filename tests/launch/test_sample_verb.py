"""`retro sample` on a real small build: the build's own search, its sources, and what it refuses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import made_up_encoder
import made_up_text
import numpy as np
import pytest
from recording import assert_reads, recorded
from tiny_model import random_parameters

from data_pipeline.chunks import ChunkTable
from data_pipeline.database.retriever import Retriever
from data_pipeline.pipeline import build
from data_pipeline.search.neighbors import NeighborTable
from data_pipeline.tokens import Tokenizer
from launch.command.arguments import Verb, parse
from launch.sample import VERB, main
from retro_jax.run_directory import directory as run_directory
from retro_jax.run_directory.checkpoints import Checkpoints
from retro_jax.train.state import TrainState

ALL = Verb("every verb", "", "")  # reads every key


def make_run(root, *names):
    """A build, and WORKDIR/NAME for "retro" or "baseline" with weights that were drawn."""
    made_up_encoder.write(root / "encoder")
    made_up_text.write_folder(root / "text", documents=24)
    changes = [f"--config.data.encoder={root / 'encoder'}", f"--config.model.vocabulary={made_up_text.VOCABULARY}"]
    changes += ["--config.model.sequence_length=32", "--config.model.chunk_length=8", "--config.model.width=16"]
    changes += ["--config.model.heads=2", "--config.model.head_dim=8", "--config.model.feed_forward=16"]
    changes += ["--config.model.encoder.width=16", "--config.model.encoder.heads=2", "--config.sample.tokens=12"]
    changes += ["--config.data.validation_fraction=0.2", "--config.data.recall_sample=10"]
    run = parse(ALL, [f"--config=configs/own_text.py:{root / 'text'}", f"--workdir={root}", *changes]).run
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, steps=4, warmup_steps=1))
    build(run, root)
    fingerprints = run_directory.fingerprints(root / "data")
    for name in names:
        model = run.model if name == "retro" else dataclasses.replace(run.model, retrieval_layers=())
        own = dataclasses.replace(run, model=model)
        run_directory.claim(root / name, own, fingerprints)
        checkpoints = Checkpoints(root / name / "checkpoints", run_directory.identity(own, fingerprints))
        params = jax.tree.map(jnp.asarray, random_parameters(model))
        checkpoints.save(4, TrainState(jnp.int32(4), params, {"count": jnp.int32(0)}), {})
        checkpoints.close()
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("sample"), "retro")


def test_retrieval_is_that_of_the_build(root):
    """Guards against sampling that embeds another way.

    A held-out chunk's text finds the neighbors that the build stored for it.
    """
    data = root / "data"
    run = parse(VERB, [f"--workdir={root}", "--prompt="]).run
    retriever, tokenizer = Retriever(data, run.data), Tokenizer(data / "tokenizer")
    table, stored = ChunkTable(data / "chunks"), NeighborTable(data / "neighbors")
    for chunk in np.array([[table.database_chunks], [table.database_chunks + 3], [len(table) - 1]]):
        tokens = table.tokens[chunk][0]
        ids, distances = retriever.search(tokenizer.decode(tokens[tokens >= 0]), 4)
        assert np.array_equal(ids, stored.ids[chunk][0, :4])
        assert np.allclose(distances, stored.distances[chunk][0, :4], atol=1e-3)
        assert np.array_equal(retriever.values(ids), table.value(ids))
        assert all(subset == "own" and name.endswith(".txt") for subset, name in retriever.sources(ids))


def test_it_prints_the_text_and_the_sources_of_each_chunk(root, capsys):
    prompt = made_up_text.text(5, 20)
    with recorded() as recorder:
        assert main([f"--workdir={root}", f"--prompt={prompt}", "--config.sample.temperature=0"]) == 0
    assert_reads("sample", recorder.keys - {"model.loss_block"})  # taken over from the config, not used
    out = capsys.readouterr().out
    assert out.startswith(prompt) and "  chunk 1: " in out and "  chunk 2: " in out
    assert "  own: " in out and ".txt" in out


def test_off_and_an_empty_prompt(root, capsys):
    assert main([f"--workdir={root}", "--prompt=", "--retrieval=off", "--config.sample.tokens=3"]) == 0
    assert "retrieval off: no document was used" in capsys.readouterr().out


def test_the_number_of_neighbors_is_that_of_the_command_line(root, capsys):
    """Guards against ignoring config.model.neighbors: sampling read as many as in training."""
    asked = [f"--workdir={root}", f"--prompt={made_up_text.text(5, 12)}", "--config.sample.tokens=2"]

    def drawn(*more):
        assert main([*asked, *more]) == 0
        return capsys.readouterr().out

    off = drawn("--retrieval=off")
    assert drawn("--config.model.neighbors=0") == off and "retrieval off" in off
    one = drawn("--config.model.neighbors=1")
    chunks, sources = one.count("  chunk "), one.count("  own: ")
    assert chunks >= 2 and sources == chunks
    assert main([*asked, "--config.model.neighbors=11"]) == 2
    assert "config.model.neighbors=11, but the database" in (err := capsys.readouterr().err) and "finds 10" in err


def test_a_config_of_another_model_is_refused(root, capsys):
    asked = [f"--workdir={root}", "--prompt=a"]
    assert main([*asked, "--config=configs/quickstart.py:smoke"]) == 2
    err = capsys.readouterr().err
    assert "holds a model that differs from the config" in err and "config.model.width (there 16, here 64)" in err
    assert main([*asked, "--config.model.feed_forward=32"]) == 2
    assert "config.model.feed_forward (there 16, here 32)" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["tokenizer", "database"])
def test_another_tokenizer_or_database_is_refused(root, what, monkeypatch, capsys):
    found = run_directory.fingerprints(root / "data")
    monkeypatch.setattr(
        "retro_jax.run_directory.checkpoints.load_fingerprints", lambda *arguments: {**found, what: "f" * 64}
    )
    assert main([f"--workdir={root}", "--prompt=a"]) == 2
    message = capsys.readouterr().err
    assert f"{what} in {root / 'data'}" in message and found[what][:16] in message and "ffffffffffffffff…" in message
    assert str(root / "retro") in message


def test_mistakes_are_explained(root, tmp_path, capsys):
    assert main([f"--workdir={root}"]) == 2
    assert "--prompt is missing" in capsys.readouterr().err
    assert main([f"--workdir={tmp_path}", "--prompt=a"]) == 2
    assert "holds no trained model" in capsys.readouterr().err
    assert main([f"--workdir={root}", "--prompt=a", "--config.sample.top_p=0"]) == 2
    assert "config.sample.top_p must be above 0 and at most 1, but is 0.0" in capsys.readouterr().err


def test_a_run_that_was_moved_finds_its_own_data(root, tmp_path):
    """WORKDIR/data comes before the training directory in the run's config."""
    path = tmp_path / "retro" / "config.json"
    path.parent.mkdir()
    config = json.loads((root / "retro" / "config.json").read_text())
    config["data"]["directory"] = "somewhere/else"
    path.write_text(json.dumps(config))
    assert parse(VERB, [f"--workdir={tmp_path}", "--prompt="]).run.data.directory == "somewhere/else"
    (tmp_path / "data").mkdir()
    assert parse(VERB, [f"--workdir={tmp_path}", "--prompt="]).run.data.directory == ""
