"""`retro compare`: results of several work directories side by side."""

import csv
import json
import shutil

import pytest
from evaluation_fixture import build, save_runs

from launch.compare import main
from launch.evaluate import main as evaluate_main
from retro_jax.evaluate.report.comparison import Evaluated, _difference, _on


@pytest.fixture(scope="module")
def runs(tmp_path_factory, on_one_device):
    """Two evaluations of one set, the second with one neighbor in place of two."""
    root = tmp_path_factory.mktemp("compare")
    for name, more in (("one", []), ("two", ["--config.model.neighbors=1"])):
        build(root / name)
        save_runs(root / name, "retro")
        assert evaluate_main([f"--workdir={root / name}", *more]) == 0
    return root / "one", root / "two"


def results(run):
    return json.loads((run / "results.json").read_text())["sets"]["held_out"]


def test_runs_stand_side_by_side_with_paired_differences(runs, tmp_path, capsys):
    assert main([*map(str, runs), f"--output={tmp_path}"]) == 0
    text, page = capsys.readouterr().out, (tmp_path / "compare.html").read_text()
    for run in runs:
        assert f"{results(run)['all']['bpb']['on']:.4f}" in text and str(run) in page
    with open(tmp_path / "compare.csv", encoding="utf-8", newline="") as file:
        rows = {(row["subset"], row["run"], row["condition"]): float(row["value"]) for row in csv.DictReader(file)}
    assert rows["all", "two", "on"] == results(runs[1])["all"]["bpb"]["on"] != rows["all", "one", "on"]
    gap = results(runs[1])["all"]["bpb"]["on"] - results(runs[0])["all"]["bpb"]["on"]
    assert f"{gap:+.4f}" in text and "95% intervals" in text


def test_a_sweep_stands_for_its_evaluated_points(runs, tmp_path, capsys):
    (tmp_path / "sweep" / "points").mkdir(parents=True)
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"points": {"a": {}, "b": {}, "lost": {}}}))
    assert main([str(tmp_path / "sweep"), str(runs[0]), f"--output={tmp_path / 'never'}"]) == 2
    assert "No point of the sweep" in capsys.readouterr().err
    for name, run in zip("ab", runs, strict=True):
        (tmp_path / "sweep" / "points" / name).symlink_to(run)
    assert main([str(tmp_path / "sweep"), f"--output={tmp_path / 'out'}"]) == 0
    found = capsys.readouterr()
    assert "1 points of" in found.err and "have no results: lost" in found.err
    with open(tmp_path / "out" / "compare.csv", encoding="utf-8", newline="") as file:
        assert {row["run"] for row in csv.DictReader(file)} == {"a", "b"}


def test_other_text_has_no_paired_difference(runs, tmp_path, capsys):
    """Guards against a difference where scores are missing or the texts differ; the figures are shown all the same."""
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    shutil.rmtree(other / "scores")
    assert main([str(runs[0]), str(other), f"--output={tmp_path / 'out'}"]) == 0
    assert "scores missing" in capsys.readouterr().out


def evaluated(run, left_out=None, contaminated=0.8):
    """A run as if some documents had been contaminated; left_out None: by a version that did not say which."""
    found = json.loads((run / "results.json").read_text())
    found["settings"]["contaminated"] = contaminated
    del found["sets"]["held_out"]["left_out"]
    found["sets"]["held_out"] |= {} if left_out is None else {"left_out": left_out}
    return Evaluated(run.name, run, found)


def test_paired_differences_are_over_the_documents_that_count(runs):
    """Guards against a difference beside two figures that it is not the difference of."""
    gone, totals = [0, 3], []
    for run in runs:
        _, sizes, _, bits = _on(evaluated(run, gone), "held_out")
        kept = [number for number in range(len(sizes)) if number not in gone]
        assert len(kept) == len(sizes) - 2 > 1
        totals.append(sum(bits[kept]) / sum(sizes[kept]))
    clean, one, two = _difference(*(evaluated(run, gone) for run in runs), "held_out"), *runs
    assert clean["mean"] == pytest.approx(totals[1] - totals[0], rel=1e-9)
    whole = _difference(evaluated(one, [], 0.0), evaluated(two, None, 0.0), "held_out")
    assert whole["mean"] != clean["mean"], "an earlier version's results, of all documents"
    assert _difference(evaluated(one, gone), evaluated(two, [0]), "held_out") is None
    assert _difference(evaluated(one, gone), evaluated(two), "held_out") is None


def test_what_cannot_be_compared_is_refused(runs, tmp_path, capsys):
    for arguments, message in (
        ([runs[0]], "needs two work directories or more, but 1 was given"),
        ([runs[0], tmp_path], "There is no results.json in"),
        ([*runs, "--metric=bpc"], "--metric=bpc is not a metric; known metrics: bpb, perplexity"),
        ([*runs, "--config=configs/quickstart.py"], "reads no config"),
    ):
        assert main([*map(str, arguments), f"--output={tmp_path / 'never'}"]) == 2
        assert message in capsys.readouterr().err
    old = tmp_path / "old"
    shutil.copytree(runs[0], old)
    (old / "results.json").write_text(json.dumps({"made_from": {"format": 2}}))
    assert main([str(runs[0]), str(old), f"--output={tmp_path / 'never'}"]) == 2
    assert "has format 2 of another version, but 3 is needed" in capsys.readouterr().err
    assert not (tmp_path / "never").exists()
