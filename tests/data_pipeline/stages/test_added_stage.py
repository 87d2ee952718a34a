"""A stage that is registered from outside: built, summed up, listed, verified and repaired like ours."""

import json
from collections import Counter
from dataclasses import dataclass
from functools import partial

import made_up_encoder
import made_up_text
import pytest

from data_pipeline.chunks import ChunkTable
from data_pipeline.pipeline import stages
from data_pipeline.stages import known
from data_pipeline.stages.engine import Shard
from data_pipeline.stages.known import STAGES, Stage, register
from data_pipeline.stages.run import read_manifest, run_stage
from launch.build import main as build
from launch.database import main as database
from retro_jax.evaluate.results import stage_seconds

LEAST = 2  # times that a token comes, to be counted


def count(chunks, least, temporary):
    tokens = Counter(ChunkTable(chunks).tokens[:].ravel().tolist())
    found = {str(token): times for token, times in sorted(tokens.items()) if times >= least}
    (temporary / "counts.json").write_text(json.dumps(found))
    return {"kinds": len(found)}


@dataclass
class Counts:
    least: int = LEAST

    def make(self, directory, run, at):
        inputs = {"chunks": read_manifest(at["chunks"], "chunks").fingerprint}
        shard = Shard("counts", ["counts.json"], partial(count, at["chunks"], self.least))
        return run_stage(directory, "counts", {"least": self.least}, inputs, [shard])


@pytest.fixture
def counts():
    """The stage, registered while a test runs; its `least` may change."""
    made_up = Counts()
    register(
        Stage(
            "counts",
            made_up.make,
            lambda counts, config: f"{counts['kinds']} kinds of tokens, each {config['least']} times or more",
            known=lambda run, directory: ({"least": made_up.least}, {}),
        )
    )
    yield made_up
    del STAGES["counts"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("added")
    made_up_encoder.write(root / "encoder")
    made_up_text.write_folder(root / "text", documents=24)
    return root


def arguments(root):
    return [
        f"--config=configs/own_text.py:{root / 'text'}",
        f"--workdir={root / 'work'}",
        f"--config.data.encoder={root / 'encoder'}",
        f"--config.model.vocabulary={made_up_text.VOCABULARY}",
        "--config.model.sequence_length=32",
        "--config.model.chunk_length=8",
        "--config.data.validation_fraction=0.2",
        "--config.data.recall_sample=20",
    ]


def test_a_stage_from_outside_is_built_listed_verified_and_repaired(root, counts, capsys):
    assert build(arguments(root)) == 0
    out, err = capsys.readouterr()
    made = root / "work" / "data" / "counts"
    kinds = len(json.loads((made / "counts.json").read_text()))
    holds = f"{kinds} kinds of tokens, each 2 times or more"
    assert "[8/8] counts" in err and holds in out
    manifest = read_manifest(made, "counts")
    assert manifest.counts == {"kinds": kinds} and set(manifest.inputs) == {"chunks"}
    assert list(stage_seconds(root / "work" / "data", {})) == [
        *("documents", "tokenizer", "chunks", "counts", "embeddings", "index", "neighbors", "joined")
    ]

    assert database(["info", arguments(root)[1]]) == 0
    assert holds in capsys.readouterr().out
    assert database(["verify", *arguments(root)[1:3]]) == 0

    content = (made / "counts.json").read_bytes()
    (made / "counts.json").write_bytes(content[:-1])
    capsys.readouterr()
    assert database(["verify", *arguments(root)[1:3]]) == 2
    assert "counts: counts.json has" in capsys.readouterr().err
    assert database(["verify", "--repair", *arguments(root)[1:3]]) == 0
    assert (made / "counts.json").read_bytes() == content

    counts.least = 3
    capsys.readouterr()
    assert build(arguments(root)) == 2
    said = capsys.readouterr().err
    assert "holds the stage 'counts' made from another config" in said and "least (there 2, now 3)" in said
    assert "[1/8]" not in said, "a plan that does not fit is refused before the first stage"


def test_a_name_is_registered_once(counts):
    with pytest.raises(ValueError, match="There is a stage named 'counts' already"):
        register(Stage("counts", counts.make, lambda counts, config: ""))


def test_a_stage_may_be_one_for_each_share_of_the_database(tmp_path, root):
    from launch.build import VERB
    from launch.command.arguments import parse

    run = parse(VERB, [*arguments(root), "--config.data.database_fraction=0.5"]).run
    places = {name: directory for name, (directory, _) in stages(run, tmp_path).items()}
    shared = {name for name, directory in places.items() if directory.parent == tmp_path}
    assert shared == {"documents", "tokenizer", "chunks", "embeddings"}
    assert {directory.parent.name for name, directory in places.items() if name not in shared} == {"subset-0.5"}


def test_the_list_is_the_only_one(root):
    assert [*STAGES] == [
        *("documents", "tokenizer", "chunks", "embeddings", "lexical", "index", "copies", "neighbors", "joined"),
    ]
    assert known.made_with_additions() == ["documents", "chunks", "embeddings", "index"]
