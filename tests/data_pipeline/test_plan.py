"""`retro build --plan`: its laws of growth on given figures, and a plan against the real build."""

import json
from dataclasses import replace

import made_up_encoder
import made_up_text
import pytest
from made_up_vectors import clustered, write_embeddings
from test_build import arguments

from data_pipeline import plan as planning
from data_pipeline.plan import BuiltSample, Rates, chip_hours, plan
from data_pipeline.search.stage import build_index
from data_pipeline.stages import known
from launch.build import main
from launch.plan import make_plan
from retro_jax.config import DataConfig, RunConfig, SourceConfig

STAGES = tuple(name for name, stage in known.STAGES.items() if stage.wanted(RunConfig()))
LATE = STAGES[STAGES.index("embeddings") :]
ONE_HOUR = dict.fromkeys(STAGES, 3600.0)
TEXT = BuiltSample(1000, 250, 20, 16, dict.fromkeys(STAGES[:3], 3600.0), dict.fromkeys(STAGES[:3], 10))
SIZES = dict.fromkeys(STAGES, 30)
SMALL = BuiltSample(0, 0, 20, 16, {**ONE_HOUR, **dict.fromkeys(LATE, 22.0)}, {})  # 2 s once and 1 s for each chunk
LARGE = BuiltSample(0, 0, 80, 64, {**ONE_HOUR, **dict.fromkeys(LATE, 82.0)}, SIZES)
RATES = Rates(TEXT, SMALL, LARGE, 384, 2, 0.25)


def test_stages_grow_by_their_laws():
    """A text sample of 16 keys; 2^18 times as much is 2^22 keys, each in two of four index shards."""
    once, large = plan(RATES, 250, 1), plan(RATES, 250 * 2**18, 2)
    seconds = {stage: once["stages"][stage]["node_hours"] * 3600 for stage in STAGES}
    assert seconds == pytest.approx(SMALL.seconds | {"neighbors": 2 + 20 * (1 + 0.25 * 2 * (16 / 64) ** 0.2 * 4)})
    assert once["wall_hours"] * 3600 == pytest.approx(sum(seconds.values()))
    chunks, growth = 20 * 2**18, 2**18
    seconds = {stage: large["stages"][stage]["node_hours"] * 3600 for stage in STAGES}
    assert large["chunks"] == chunks and large["index_shards"] == 4
    looked_at = 2 * (2**21 / 64) ** 0.2 * 2**10.5
    looked_at *= planning.LEAVES_BESIDE_VISITS
    route, each = 4 * planning.CENTER_SECONDS, large["visits"] * (1 + 0.25 * looked_at)
    assert large["visits"] == 1  # the least, of so few
    assert plan(RATES, 250 * 2**23, 1)["visits"] == pytest.approx(planning.VISITS * 128**planning.VISITS_GROW)
    assert seconds["tokenizer"] == 3600 and seconds["chunks"] == seconds["documents"] == 3600 * growth
    assert seconds["embeddings"] == seconds["joined"] == pytest.approx(2 + chunks)
    assert seconds["index"] == pytest.approx(2 + chunks * (2 + route))
    assert seconds["neighbors"] == pytest.approx(2 + chunks * (each + route))
    assert large["stages"]["embeddings"]["wall_hours"] * 7200 == pytest.approx(2 + chunks)
    assert large["stages"]["documents"]["wall_hours"] == pytest.approx(growth * (0.1 + 0.9 / 2))  # one process chooses
    assert large["stages"]["tokenizer"]["wall_hours"] == 1
    assert large["memory_a_node"] == 2 * 2**21 * 384 * 9.5
    assert large["stages"]["chunks"]["bytes"] == 10 * growth and large["stages"]["joined"]["bytes"] == 30 * chunks / 80


def test_a_time_that_does_not_grow_counts_as_work():
    rates = Rates(TEXT, LARGE, BuiltSample(0, 0, 160, 128, LARGE.seconds, SIZES), 384, 0, 0.5)
    assert plan(rates, 2500, 1)["stages"]["embeddings"]["node_hours"] * 3600 == pytest.approx(82.0 * 200 / 160)
    searched = plan(rates, 2500, 1)["stages"]["neighbors"]["node_hours"] * 3600
    assert searched == pytest.approx(200 * (82.0 / 160 + 0.5 * 160))  # exact: all 160 keys for each of 200 chunks


def test_a_share_in_given_shards():
    """A quarter of 2^16 times the keys, each in two of four index shards of 2^17 keys."""
    found = plan(replace(RATES, index_shards=4, fraction=0.25), 250 * 2**16, 1)
    assert found["index_shards"] == 4 and found["memory_a_node"] == 4 * 2**17 * 384 * 9.5
    chunks = 20 * 2**16
    seconds = {stage: found["stages"][stage]["node_hours"] * 3600 for stage in STAGES}
    route = 4 * planning.CENTER_SECONDS
    looked_at = planning.LEAVES_BESIDE_VISITS * 2 * (2**17 / 64) ** 0.2 * 2**8.5
    assert seconds["index"] == pytest.approx(2 + chunks / 4 * (2 + route))
    assert seconds["embeddings"] == pytest.approx(2 + chunks)
    assert seconds["neighbors"] == pytest.approx(2 + chunks * (found["visits"] * (1 + 0.25 * looked_at) + route))


def test_a_given_number_of_visits():
    assert plan(replace(RATES, visits=3), 250 * 2**18, 1)["visits"] == 3
    assert plan(replace(RATES, visits=3), 250, 1)["visits"] == 1


def test_no_plan_for_nothing():
    for tokens, nodes in ((0, 1), (5, 0)):
        with pytest.raises(ValueError, match="A plan needs nodes and tokens"):
            plan(RATES, tokens, nodes)


def test_a_plan_foresees_the_build(tmp_path, capsys):
    """Chunks and bytes within a tenth of what the build then has, though its budget takes half the text."""
    made_up_encoder.write(tmp_path / "encoder")
    (tmp_path / "text").mkdir()
    for number in range(400):
        (tmp_path / "text" / f"{number}.txt").write_text(made_up_text.text(number, 60), newline="")
    size = sum(file.stat().st_size for file in (tmp_path / "text").iterdir())
    flags = arguments(tmp_path, tmp_path / "run", f"--config.data.sources.own.max_train_bytes={size // 2}")
    assert main([*flags, "--plan", "--json", "--plan_accelerator=h100"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not (tmp_path / "run").exists()
    assert main(flags) == 0
    data = tmp_path / "run" / "data"
    manifests = {stage: json.loads((data / stage / "manifest.json").read_text()) for stage in STAGES}
    assert found["chunks"] == pytest.approx(manifests["chunks"]["counts"]["chunks"], rel=0.1)
    for stage in ("documents", "chunks", "embeddings"):
        real = sum(file["bytes"] for file in manifests[stage]["files"])
        assert found["stages"][stage]["bytes"] == pytest.approx(real, rel=0.1), stage
    assert found["chip_hours"] == chip_hours(found["tokens"], tmp_path / "encoder", 989e12)
    assert chip_hours(3600, tmp_path / "encoder", 2.0) == 2 * 16 * (4 * 16 + 2 * 24)


def test_a_plan_says_what_it_cannot_take(tmp_path, capsys):
    made_up_encoder.write(tmp_path / "encoder")
    made_up_text.write_folder(tmp_path / "text", documents=24)
    flags = arguments(tmp_path, tmp_path / "run", "--plan")
    assert main([*flags, "--plan_accelerator=abacus"]) == 2
    assert "abacus is not known; take one of" in capsys.readouterr().err
    assert main([*flags, "--plan_nodes=0"]) == 2
    assert "--plan_nodes=0" in capsys.readouterr().err
    other = replace(RunConfig(), data=replace(DataConfig(), database="elsewhere/data"))
    with pytest.raises(ValueError, match="database of their own, but config.data.database=elsewhere/data is set"):
        make_plan(other, 0.0, 1, "")


def test_a_sample_takes_no_setting_that_only_the_corpus_can_have(tmp_path):
    """Guards against the leaves of millions of keys over a sample of a thousand."""
    made_up_text.write_folder(tmp_path / "text", documents=4)
    data = DataConfig(sources={"own": SourceConfig(path=str(tmp_path / "text"))}, index_leaves=2_000, index_shards=9)
    data = replace(data, index_leaves_searched=100, database_fraction=0.5)
    sample = planning.sample_run(replace(RunConfig(), data=data), {"own": 1.0}, 1e3, tmp_path / "sample", "given").data
    assert (sample.index_leaves, sample.index_leaves_searched, sample.index_shards, sample.database_fraction) == (
        0,
        0,
        0,
        1,
    )


def test_what_a_key_takes_is_measured_in_scann(tmp_path, monkeypatch):
    """Guards against timing a search of all leaves, which is an exact search with another cost."""
    write_embeddings(tmp_path / "embeddings", clustered(1600), 1500)
    build_index(tmp_path / "index", DataConfig(exact_below=0, recall_sample=50), tmp_path / "embeddings")
    searched = []

    def seconds(searcher, queries):
        searched.append(searcher.settings.leaves_searched)
        return 1.0 + searched[-1]

    monkeypatch.setattr(planning, "_search_seconds", seconds)
    a_key = planning.scan_seconds(tmp_path)
    leaves = round(1500**0.5)
    assert searched == [1, leaves - 1]
    assert a_key == pytest.approx((leaves - 2) / 1000 / (1500 * (leaves - 2) / leaves))


def test_a_plan_in_index_shards_and_of_packed_files(tmp_path, capsys):
    made_up_encoder.write(tmp_path / "encoder")
    made_up_text.write_folder(tmp_path / "text", documents=24)
    flags = arguments(tmp_path, tmp_path / "run", "--plan", "--json", "--config.data.index_shards=3")
    assert main(flags) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["index_shards"] == 3
    (tmp_path / "text" / "z.jsonl.gz").write_bytes(b"packed")
    assert main(flags) == 2
    assert "is not measured by its files; give --plan_tokens" in capsys.readouterr().err
