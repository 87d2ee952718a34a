"""Mistakes in the config's inputs are reported before the first stage, whichever stage reads them."""

import importlib.util
import json
from pathlib import Path

import made_up_encoder
import made_up_text
import pytest
from test_build import arguments

import data_pipeline.documents.stage as documents
from launch import build


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Text, an encoder and a finished build."""
    root = tmp_path_factory.mktemp("inputs")
    made_up_encoder.write(root / "encoder")
    made_up_text.write_folder(root / "text", documents=6)
    (root / "other.jsonl").write_text(json.dumps({"body": "text"}) + "\n")
    assert build.main(arguments(root, root / "whole")) == 0
    return root


@pytest.fixture
def no_stage(monkeypatch):
    """Fails when the first stage is reached."""
    monkeypatch.setattr(documents, "build_documents", lambda *_, **__: pytest.fail("a stage was begun"))


def damaged_encoder(root) -> Path:
    if not (root / "damaged").exists():
        made_up_encoder.write(root / "damaged")
        (root / "damaged/model.safetensors").write_bytes((root / "encoder/model.safetensors").read_bytes()[:-9])
    return root / "damaged"


def tokenizer(root) -> Path:
    return root / "whole/data/tokenizer/tokenizer.model"


MISTAKES = {
    "encoder": (
        lambda root: [f"--config.data.encoder={root}/none"],
        "none is not an encoder: this directory does not exist",
    ),
    "encoder of a hub": (
        lambda root: ["--config.data.encoder=BAAI/bge-small-en"],
        "are not downloaded; do so yourself",
    ),
    "weights": (lambda root: [f"--config.data.encoder={damaged_encoder(root)}"], "truncated or no safetensors file"),
    "tokenizer": (lambda root: [f"--config.data.tokenizer={root}/none.model"], "none.model' does not exist"),
    "no tokenizer": (lambda root: [f"--config.data.tokenizer={root}/other.jsonl"], "is no SentencePiece model"),
    "vocabulary": (
        lambda root: [f"--config.data.tokenizer={tokenizer(root)}", "--config.model.vocabulary=300"],
        "pieces, but config.model.vocabulary=300",
    ),
    "titles": (
        lambda root: [f"--config.data.sources.own.evaluation_titles={root}/titles.txt"],
        "config.data.sources.own.evaluation_titles",
    ),
    "source": (lambda root: [f"--config.data.sources.more.path={root}/nothing"], "config.data.sources.more.path="),
    "key": (lambda root: [f"--config.data.sources.more.path={root}/other.jsonl"], "has no key 'text'; it has: body"),
    "package": (lambda root: ["--config.data.sources.more.package=wikis"], "'wikis' is not a package of the catalogue"),
    "dtype": (lambda root: ["--config.data.embedding_dtype=int8"], "embedding_dtype"),
    "lengths": (lambda root: ["--config.model.chunk_length=1"], "at least 2 tokens"),
}


@pytest.mark.parametrize("plan", [False, True])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_the_config_names_is_opened_first(root, tmp_path, mistake, plan, no_stage, capsys):
    changes, message = MISTAKES[mistake]
    assert build.main(arguments(root, tmp_path / "run", *changes(root), *["--plan"] * plan)) == 2
    said = capsys.readouterr().err
    assert message in said and "[1/7]" not in said
    assert not (tmp_path / "run" / "data").exists()


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ("data.neighbors_stored=3", "config.recall_k (there 10, now 3)"),
        ("data.rerank=bm25", "config.rerank (there 'none', now 'bm25')"),
        ("data.shard_sequences=7", "config.shard_sequences (there 100, now 7)"),
        ("data.encoder_batch=4", "config.encoder_batch (there 16, now 4)"),
        ("data.recall_target=0.5", "config.recall_target"),
        ("model.sequence_length=64", "config.sequence_length (there 32, now 64)"),
        ("data.minimum_characters=9", "config.minimum_characters"),
        ("data.encoder={root}/changed", "config.encoder"),
        ("data.tokenizer={root}/whole/data/tokenizer/tokenizer.model", "inputs.given tokenizer"),
    ],
)
def test_a_build_with_another_config_is_told_at_once(root, change, differs, no_stage, capsys):
    """Before any stage runs, even if only the last one differs."""
    if not (root / "changed").exists():
        made_up_encoder.write(root / "changed", seed=1)
    assert build.main(arguments(root, root / "whole", f"--config.{change.format(root=root)}")) == 2
    said = capsys.readouterr().err
    assert differs in said and "Nothing was changed" in said and "[1/7]" not in said


def test_a_stage_of_which_nothing_was_made_claims_nothing(root, tmp_path, no_stage, capsys):
    plan = tmp_path / "run/data/joined/plan.json"
    plan.parent.mkdir(parents=True)
    plan.write_text(json.dumps({"stage": "joined", "config": {"sequence_length": 1}, "inputs": {}, "shards": []}))
    build.main(arguments(root, tmp_path / "run"))
    assert "a stage was begun" in capsys.readouterr().err


def test_a_missing_extra_is_named(root, tmp_path, no_stage, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert build.main(arguments(root, tmp_path / "run")) == 2
    assert "needs the package sentencepiece, of the [build] extra" in capsys.readouterr().err


def test_a_place_that_cannot_hold_the_build(root, tmp_path, no_stage, capsys):
    (tmp_path / "data").write_text("a file")
    assert build.main(arguments(root, tmp_path)) == 2
    assert f"{tmp_path}/data is not a directory. Give another --workdir" in capsys.readouterr().err
