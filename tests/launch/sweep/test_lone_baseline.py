"""A work directory with a baseline alone: evaluated with its own column, compared, and not mistaken for a RETRO model."""

import json

import numpy as np
import pytest
from evaluation_fixture import build, save_runs

from launch.compare import main as compare
from launch.evaluate import main as evaluate
from retro_jax.evaluate.questions.summary import Answered, summarize


@pytest.fixture(scope="module")
def work(tmp_path_factory, on_one_device):
    root = tmp_path_factory.mktemp("baseline")
    build(root)
    save_runs(root, "baseline")
    assert evaluate([f"--workdir={root}"]) == 0
    return root


def test_a_baseline_is_evaluated_alone(work):
    results = json.loads((work / "results.json").read_text())
    found = results["sets"]["held_out"]["all"]
    assert [one["name"] for one in results["conditions"]] == ["baseline"]
    assert set(found["bpb"]) == {"baseline"} and found["bpb"]["baseline"] > 0
    assert not [key for key in found if "_minus_" in key]
    assert results["verdict"]["text"] == "A baseline was scored alone: nothing is said about retrieval."
    assert "A baseline was scored alone" in (work / "report.html").read_text()


def test_a_baseline_answers_questions_alone():
    answered = Answered({"baseline": np.array([True, False])}, {"baseline": np.array([3, 4])}, np.array([1, 0]))
    found = summarize(answered, k=2, limit=8, resamples=50, seed=0)
    assert found["exact_match"]["baseline"]["mean"] == 0.5 and found["differences"] == {}
    assert found["verdict"]["text"] == "A baseline answered alone: nothing is said about passages."


def test_its_figures_are_those_of_the_baseline_beside_a_retro_model(work, tmp_path):
    build(tmp_path)
    save_runs(tmp_path, "retro", "baseline")
    baseline = work / "baseline"
    assert evaluate([f"--workdir={tmp_path}", f"--config.evaluate.baseline={baseline}"]) == 0
    both, alone = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path, work))
    for subset in ("laws", "tales"):
        values = [one["sets"]["held_out"]["subsets"][subset]["bpb"]["baseline"] for one in (both, alone)]
        assert values[0] == values[1]
    assert compare([str(work), str(tmp_path), f"--output={tmp_path / 'out'}"]) == 0


def test_a_config_that_retrieves_is_refused(work, tmp_path, capsys):
    """Guards against the evaluation of a baseline in the name of a RETRO model whose training is missing."""
    config = tmp_path / "config.py"
    config.write_text("from retro_jax.config import default_config as get_config\n")
    assert evaluate([f"--workdir={work}", f"--config={config}"]) == 2
    assert "holds a baseline and no RETRO model, but the config has config.model.retrieval_layers=(6, 9, 12)" in (
        capsys.readouterr().err
    )
