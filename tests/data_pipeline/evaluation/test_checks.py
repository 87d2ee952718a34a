"""`retro database info` and `verify` include the evaluation sets; a repair makes the damaged parts again, and nothing else."""

import json
import re
import shutil

import joined_set
import numpy as np
import pytest
from file_contents import contents
from joined_set import pile, write_records

from data_pipeline.database import changes
from data_pipeline.evaluation.join import join, join_held_out, join_neighbors
from data_pipeline.evaluation.sets import open_set
from data_pipeline.stages.run import file_sha256
from launch.database import main


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("checks")
    run = joined_set.make_build(root)
    join(run, root / "data", "pile", pile(write_records(root / "val.jsonl")))
    join_neighbors(root / "data", "pile", k=6, share=0.5)
    join_neighbors(root / "data", "held_out", k=6)
    join_held_out(root / "data")
    return root


def test_info_lists_the_sets(root, capsys):
    assert main(["info", f"--workdir={root}"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"evaluation set pile: 6 documents, 0.00 MB, \d+ chunks, protocol documents; 0 contaminated, 0", out
    )
    assert "  neighbors: 4 from a share of 1 of this database" in out
    assert re.search(r"neighbors-k6-share0.5-of-\w{16}: 6 from a share of 0.5 of this database", out)
    assert re.search(r"evaluation set held_out: \d+ documents", out)


def test_a_whole_set_is_whole(root, capsys):
    before = contents(root / "data")
    assert main(["verify", f"--workdir={root}", "--all"]) == 0
    facts = json.loads(capsys.readouterr().out.partition("is intact: ")[2])
    assert facts["sets"] == 1 and facts["set_chunks"] == open_set(root / "data", "pile").edges[-1]
    assert contents(root / "data") == before


@pytest.mark.parametrize("stage", ["documents", "chunks", "embeddings", "neighbors", "contamination", "neighbors-k6"])
def test_a_damaged_file_is_named_and_made_again_alone(root, capsys, stage):
    before = contents(root / "data")
    folder = next((root / "data" / "evaluation" / "pile").glob(f"{stage}*" if "-" in stage else stage))
    victim = next(
        path for path in sorted(folder.iterdir()) if path.suffix in (".npy", ".jsonl") and path.stat().st_size
    )
    victim.write_bytes(victim.read_bytes()[:-3] + b"abc")
    assert main(["verify", f"--workdir={root}"]) == 2
    err = capsys.readouterr().err
    assert f"evaluation/pile/{folder.name}: {victim.name} was altered" in err
    assert main(["verify", "--repair", f"--workdir={root}"]) == 0, capsys.readouterr().err
    assert contents(root / "data") == before


def test_wrong_content_under_right_checksums_is_found_and_made_again(root, capsys):
    before = contents(root / "data")
    folder = root / "data" / "evaluation" / "pile" / "chunks"
    victim = next(folder.glob("*.tokens.npy"))
    tokens = np.load(victim)
    tokens[3, 2] += 1
    digest = file_sha256(victim)
    np.save(victim, tokens)
    for path in (folder / "manifest.json", *(folder / ".parts").glob("*.json")):
        facts = json.loads(path.read_text().replace(digest, file_sha256(victim)))
        facts.pop("sha256")
        joined_set.write_sealed(path, facts)
    assert main(["verify", f"--workdir={root}"]) == 2
    assert "evaluation/pile/" in capsys.readouterr().err
    assert main(["verify", "--repair", f"--workdir={root}"]) == 0, capsys.readouterr().err
    after = {name: content for name, content in contents(root / "data").items() if ".damaged-" not in name}
    assert {name: after.get(name) == content for name, content in before.items()} == dict.fromkeys(before, True)


def test_neighbors_of_an_earlier_version_are_said_to_be(root, capsys, tmp_path):
    shutil.copytree(root, tmp_path / "run")
    data = tmp_path / "run" / "data"
    changes.remove(data, [int(open_set(data, "pile").neighbors().table.document_ids[0])])
    assert main(["info", f"--workdir={tmp_path / 'run'}"]) == 0
    assert re.search(r"  neighbors: 4 from a share of 1 of database version \w{16}", capsys.readouterr().out)
    assert main(["verify", f"--workdir={tmp_path / 'run'}"]) == 0


def test_an_evaluation_set_is_not_added_to_the_database(root, capsys):
    """Guards against evaluation text in the database, where it would be retrieved while it is scored."""
    before = contents(root / "data")
    source = (f"path={root / 'val.jsonl'}", "role=evaluation")
    assert main(["add", f"--workdir={root}", *(f"--config.data.sources.news.{key}" for key in source)]) == 2
    assert "the source 'news' is an evaluation set and never enters the database" in capsys.readouterr().err
    assert contents(root / "data") == before
