"""`retro sweep` with its real processes on a tiny text: what is shared, a failure, the results; the examples of the guide."""

import csv
import json
import os
import random
import re
import types
from pathlib import Path

import pytest
import tiny_sweep
from places import FIXTURES, ROOT

from launch.sample import main as sample
from launch.sweep.points import make_points, resolved
from launch.sweep.verb import main
from retro_jax.config import RunConfig, to_dict


@pytest.fixture(scope="module", autouse=True)
def surroundings():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("PYTHONPATH", f"{FIXTURES}{os.pathsep}{ROOT}")
        patch.setenv("XLA_FLAGS", "")
        yield


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep with a point that fails, and what it printed."""
    root = tiny_sweep.write(tmp_path_factory.mktemp("sweep"))
    argv = [f"--config={FIXTURES / 'tiny_sweep.py'}:{root}", f"--workdir={root / 'work'}"]
    assert main(argv) == 1
    return root / "work", argv


def rows(work):
    with open(work / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_points_share_their_build_and_their_baseline(swept):
    work, _ = swept
    assert len(list((work / "data").glob("*/config.json"))) == 1 and len(list((work / "runs").iterdir())) == 2
    points = {path.name: path for path in (work / "points").iterdir()}
    assert set(points) == {"default", "none"}
    assert (points["default"] / "baseline").resolve() == (points["none"] / "baseline").resolve()
    values = {
        row["point"]: float(row["value"])
        for row in rows(work)
        if (row["subset"], row["condition"], row["metric"]) == ("all", "baseline", "bpb")
    }
    assert values["default"] == values["none"]


def test_a_failed_point_is_reported_and_stops_nothing(swept):
    work, _ = swept
    (lost,) = [row for row in rows(work) if row["point"] == "lost"]
    assert lost["state"] == "failed" and lost["value"] == ""
    (failed,) = [
        found
        for path in (work / "state").glob("*.json")
        if (found := json.loads(path.read_text()))["state"] == "failed"
    ]
    assert failed["code"] == 2 and "nowhere" in failed["line"] and "nowhere" in Path(failed["log"]).read_text()
    page = (work / "sweep.html").read_text()
    assert "Not finished" in page and "ended with exit code 2" in page


def test_the_same_command_runs_only_what_failed(swept, capsys):
    work, argv = swept
    before = {path: path.stat().st_mtime_ns for path in work.rglob("results.json")}
    assert main(argv) == 1
    said = capsys.readouterr()
    assert "[1/4] build" in said.err and "[2/4]" not in said.err
    assert {path: path.stat().st_mtime_ns for path in work.rglob("results.json")} == before
    assert main([*argv, "--only=none", "--metric=perplexity"]) == 0
    assert "perplexity" in capsys.readouterr().out


def test_a_point_is_an_ordinary_work_directory(swept, capsys):
    work, _ = swept
    prompt = "--prompt=the grain and the mill of a river in the town"
    assert sample([f"--workdir={work / 'points' / 'default'}", prompt, "--config.sample.tokens=4"]) == 0
    assert "the grain" in capsys.readouterr().out


def test_another_sweep_in_the_directory_is_refused(swept, capsys):
    work, argv = swept
    before = (work / "sweep.json").read_bytes()
    assert main([*argv, "--config.model.width=32"]) == 2
    assert "belongs to a sweep of another config: model.width (there 16, now 32)" in capsys.readouterr().err
    assert (work / "sweep.json").read_bytes() == before


def test_the_examples_of_the_guide_are_sweeps_of_ten_lines():
    """Guards against examples that no longer run; the random search must draw the same points at every call."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs/guides/sweeps.md").read_text(encoding="utf-8"), re.S)
    counts = []
    for example in examples:
        assert len(example.strip().splitlines()) <= 10
        module = types.ModuleType("example")
        exec(compile(example, "sweeps.md", "exec"), module.__dict__)
        state = random.getstate()
        points = make_points(list(module.sweep()), "", "")
        assert make_points(list(module.sweep()), "", "") == points and random.getstate() == state
        runs = [resolved(to_dict(RunConfig()), point) for point in points]
        assert len({(run.train.learning_rate, run.model.neighbors) for run in runs}) == len(points)
        counts.append(len(points))
    assert counts == [9, 20]
