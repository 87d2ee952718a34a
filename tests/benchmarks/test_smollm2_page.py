"""The page of the retrofit of an imported model, on made-up scores."""

import dataclasses
import json
import re

import pytest
from points import Missing, Study
from smollm2 import page, plot
from test_study import BYTES, CHUNKS, write_point

from retro_jax.config import ModelConfig, RunConfig, to_dict
from retro_jax.core.files import write_json


@pytest.fixture
def swept(tmp_path):
    write_point(tmp_path, "frozen", 0, {"random": -0.15})
    point = tmp_path / "points" / "frozen,seed=0"
    results = json.loads((point / "results.json").read_text())
    facts = {
        name: {"documents": count, "bytes": count * CHUNKS * BYTES} for name, count in (("legal", 40), ("wiki", 20))
    }
    results["sets"] = {"held_out": {"subsets": facts}}
    results["data"] = {"legal": {"train_bytes": 1_234_567}}
    results |= {"seconds": {"train retro": 600.0, "evaluate": 120.0}, "versions": {"devices": "1 x cpu"}}
    write_json(point / "results.json", results)
    write_json(point / "retro" / "config.json", to_dict(RunConfig()))
    source = dataclasses.replace(ModelConfig(), retrieval_layers=())
    write_json(point / "baseline" / "config.json", to_dict(RunConfig(model=source)))
    origin = {"files": {"model.gguf": "0" * 64}, "dtypes": ["Q4_1"], "license": "apache-2.0"}
    write_json(point / "baseline" / "imported.json", origin)
    losses = {"validation_loss_on": 2.0, "validation_loss_off": 2.5, "validation_loss_random": 2.25}
    (point / "retro" / "metrics.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in ({"step": 50, "loss": 3.0}, {"step": 50, **losses}))
    )
    return tmp_path


def test_gain_and_adaptation_are_told_apart(swept):
    """Random neighbors gain 0.15 of the 0.2 of On: the page must not sell it as retrieval."""
    text = page(Study(swept))
    row = next(line for line in text.splitlines() if line.startswith("| On less random neighbors |"))
    gains = [float(one) for one in re.findall(r"\| ([+-]\d\.\d{4}) \(", row)]
    assert len(gains) == 2 and all(abs(gain + 0.05) < 0.01 for gain in gains)
    low, middle, high = (
        re.findall(r"\| ([+-]\d\.\d{4}) \(", line)
        for line in text.splitlines()
        if line.startswith("| ") and "%" in line
    )
    assert float(high[0]) == pytest.approx(-0.3, abs=0.02) and float(low[0]) == pytest.approx(-0.1, abs=0.02)
    assert not middle  # no chunk has such an overlap
    assert "in bytes: legal 1,234,567." in text
    assert "| 50 | 2.0000 | 2.5000 | 2.2500 |" in text
    assert "<svg" in plot(Study(swept))


def test_off_is_compared_in_every_digit(swept):
    assert "bits in 0 of 60 documents" in page(Study(swept))
    scores = swept / "points" / "frozen,seed=0" / "scores" / "held_out"
    (scores / "off-0" / "part-00000.parquet").write_bytes((scores / "baseline-0" / "part-00000.parquet").read_bytes())
    assert "bits in 60 of 60 documents" in page(Study(swept))


def test_a_sweep_without_results_is_named(tmp_path):
    with pytest.raises(Missing, match="the point frozen"):
        page(Study(tmp_path))
