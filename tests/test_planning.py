"""`retro build --plan`: laws of growth on figures to look at, and a plan from a sample that is really built."""

import json

import made_up_encoder
import made_up_text
import pytest
from test_build import arguments

from data_pipeline.planning import Rates, chip_hours, plan
from launch.build import main

STAGES = ("documents", "tokenizer", "chunks", "embeddings", "index", "neighbors", "joined")
RATES = Rates(1000, 250, 5, 4, 384, "scann", dict.fromkeys(STAGES, 3600.0), dict.fromkeys(STAGES, 10))


def test_stages_grow_by_their_laws():
    """A sample of 4 keys; 2^20 times the text is two index shards of 2^21 keys, each 2^19 times the sample's."""
    small, large = plan(RATES, 250, 1), plan(RATES, 250 * 2**20, 2)
    assert [small["stages"][stage]["node_hours"] for stage in STAGES] == [1.0] * 7 and small["wall_hours"] == 7
    hours = {stage: large["stages"][stage]["node_hours"] for stage in STAGES}
    assert large["chunks"] == 5 * 2**20 and large["index_shards"] == 2
    assert hours["tokenizer"] == 1 and hours["chunks"] == hours["embeddings"] == hours["joined"] == 2**20
    assert hours["index"] == pytest.approx(2**20 * 2**9.5)
    assert hours["neighbors"] == pytest.approx(2**20 * 2 * 2 ** (19 * 0.875))
    assert large["stages"]["embeddings"]["wall_hours"] == 2**19 and large["stages"]["documents"]["wall_hours"] == 2**20
    assert large["memory_a_node"] == 2**21 * 384 * 9.5 and large["stages"]["chunks"]["bytes"] == 10 * 2**20


def test_no_plan_for_nothing():
    for tokens, nodes in ((0, 1), (5, 0)):
        with pytest.raises(ValueError, match="A plan needs nodes and tokens"):
            plan(RATES, tokens, nodes)


def test_a_plan_is_made_from_a_sample(tmp_path, capsys):
    made_up_encoder.write(tmp_path / "encoder")
    made_up_text.write_folder(tmp_path / "text", documents=24)
    flags = arguments(tmp_path, tmp_path / "run", "--plan", "--json")
    assert main([*flags, "--plan_accelerator=h100"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found["stages"]) == set(STAGES) and 900 < found["chunks"] < 1000 and found["index_shards"] == 1
    assert found["chip_hours"] == chip_hours(found["tokens"], tmp_path / "encoder", 989e12)
    assert chip_hours(3600, tmp_path / "encoder", 2.0) == 2 * 16 * (4 * 16 + 2 * 24)
    assert not (tmp_path / "run").exists()
    assert main([*flags, "--plan_accelerator=abacus"]) == 2
    assert "abacus is not known; take one of" in capsys.readouterr().err
    assert main([*flags, "--plan_nodes=0"]) == 2
