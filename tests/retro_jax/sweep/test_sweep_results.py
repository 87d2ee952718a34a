"""The results of a sweep: table, means over seeds, best points, page, HParams; from made-up results."""

import csv
import json
import math
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from scipy import stats

from retro_jax.sweep.outcomes import Outcome, best_first, by_group, check_metric, known_metrics
from retro_jax.sweep.page import make_page, summary_text
from retro_jax.sweep.plots import axis_plots, points_plot
from retro_jax.sweep.report import ranking, write_report
from retro_jax.sweep.seeds import mean_over_seeds, quantile
from retro_jax.sweep.table import tidy

COST = {"seconds": 10.0, "tokens": 1000, "parameters": 5000, "flops": 3e9}


def figures(on, off=2.0, baseline=1.9):
    gap = {"mean": on - off, "low": on - off - 0.1, "high": on - off + 0.1, "shown": True}
    bpb = {"baseline": baseline, "off": off, "on": on}
    return {
        "documents": 3,
        **{metric: {name: value for name, value in bpb.items()} for metric in ("bpb", "perplexity")},
        "word_perplexity": {"on": None},
        "accuracy": {"on": on / 4, "off": None},
        "on_minus_off": gap,
    }


def write(folder, on):
    curves = {"alphas": [0.5, 1.0], "bpb": {"on": [None, on]}}
    found = {"protocol": "documents", "subsets": {"farm": figures(on)}, "all": figures(on)}
    found["leakage"] = {"farm": curves, "all": curves}
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"sets": {"held_out": found}}))
    return folder


@pytest.fixture
def outcomes(tmp_path):
    """Two rates and two numbers of neighbors with two seeds; one seed of one point failed, one point is a baseline."""
    found = []
    for rate in (1e-4, 1e-3):
        for k in (1, 2):
            for seed in (0, 1):
                name = f"rate={rate},k={k}"
                axes = {"train.learning_rate": rate, "model.neighbors": k, "model.retrieval_layers": (2, 4)}
                workdir = write(tmp_path / "points" / f"{name},seed={seed}", 1.8 - rate * 100 - k / 100 + seed / 1000)
                found.append(Outcome(f"{name},seed={seed}", name, seed, axes, "done", workdir, cost=COST))
    lost = found[1]
    found[1] = Outcome(lost.name, lost.group, 1, lost.axes, "failed", lost.workdir, why="train ended with code 3: <no>")
    axes = {"train.learning_rate": 1e-3, "model.neighbors": 2, "model.retrieval_layers": ()}
    workdir = write(tmp_path / "points" / "none", 0.0)
    found.append(Outcome("none", "none", 0, axes, "done", workdir, condition="baseline", cost=COST))
    return found


def test_csv_and_parquet_hold_the_same_rows(outcomes, tmp_path):
    """Guards against two tables that drift apart; a text, a number and a missing value of each row are compared."""
    write_report(outcomes, tmp_path, "bpb", "Sweep")
    table = pq.read_table(tmp_path / "results.parquet").to_pydict()
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(table) == list(rows[0]) and len(rows) == len(table["point"])
    for name, values in table.items():
        assert [row[name] for row in rows] == ["" if value is None else str(value) for value in values], name
    assert {"train.learning_rate", "model.neighbors", "seconds", "tokens", "parameters", "flops"} <= set(table)


def test_a_row_is_one_figure_and_a_failed_point_has_one_row_with_its_state(outcomes):
    columns = tidy(outcomes)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (failed,) = [row for row in rows if row["state"] != "done"]
    assert failed["point"] == "rate=0.0001,k=1,seed=1" and failed["state"] == "failed" and failed["value"] is None
    (one,) = [
        row
        for row in rows
        if (row["point"], row["subset"], row["condition"], row["metric"]) == ("none", "all", "baseline", "bpb")
    ]
    assert (one["seed"], one["set"], one["value"], one["model.retrieval_layers"]) == (0, "held_out", 1.9, "()")
    (gap,) = [
        row for row in rows if row["metric"] == "bpb_difference" and row["point"] == "none" and row["subset"] == "all"
    ]
    assert gap["condition"] == "on - off" and gap["low"] < gap["value"] < gap["high"]
    keys = [(row["point"], row["set"], row["subset"], row["condition"], row["metric"], row["alpha"]) for row in rows]
    assert len(set(keys)) == len(keys)


def test_a_mean_over_seeds_has_students_interval():
    assert mean_over_seeds([2.0]).low is None
    values = [1.0, 2.0, 4.0]
    found = mean_over_seeds(values)
    low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    assert math.isclose(found.low, low, rel_tol=1e-5) and math.isclose(found.high, high, rel_tol=1e-5)
    for degrees in range(1, 200):
        assert quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-4)


def test_the_best_are_the_lowest_or_the_highest_by_their_metric(outcomes):
    assert ranking(outcomes, "bpb")[0]["point"] == "rate=0.001,k=2" and ranking(outcomes, "bpb")[-1]["point"] == "none"
    assert ranking(outcomes, "accuracy")[0]["point"] == "rate=0.0001,k=1"
    assert [one["seeds"] for one in ranking(outcomes, "bpb")] == [2, 2, 2, 1, 1]
    assert ranking(outcomes, "on_minus_off")[0]["mean"] == pytest.approx(-2.0)  # the made-up one
    assert best_first({"a": 1.0, "b": 2.0}, "exact_match") == ["b", "a"]


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="--metric=loss is not a metric; known metrics: bpb, .*on_minus_off.*exact_match"
    ):
        check_metric("loss")
    assert "bpb" in known_metrics()


def test_the_page_shows_best_points_failures_and_a_plot_for_each_key(outcomes, tmp_path):
    page = make_page(outcomes, "bpb", "Sweep <x>")
    assert "Sweep &lt;x&gt;" in page and "train ended with code 3: &lt;no&gt;" in page and "<no>" not in page
    assert page.count("<svg") == 4 and "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "lower is better" in page and "Student" in page
    text = summary_text(outcomes, "bpb")
    assert "rate=0.001,k=2, on, seeds: 2" in text and "failed: rate=0.0001,k=1,seed=1: train ended" in text


def test_a_line_joins_points_that_differ_in_one_key(outcomes):
    """Guards against a line through points that differ in other keys as well."""
    plots = axis_plots(by_group(outcomes), "bpb")
    assert set(plots) == {"train.learning_rate", "model.neighbors", "model.retrieval_layers"}
    assert (
        plots["train.learning_rate"].count('class="line"') == 2 and plots["model.neighbors"].count('class="line"') == 2
    )
    assert 'class="band"' in plots["train.learning_rate"]


def test_of_many_combinations_the_mean_is_drawn(tmp_path):
    found = []
    for rate in range(8):
        for k in (1, 2):
            workdir = write(tmp_path / f"{rate}-{k}", rate + k / 10)
            found.append(Outcome(f"{rate}-{k}", f"{rate}-{k}", 0, {"r": rate, "k": k}, "done", workdir))
    plots = axis_plots(by_group(found), "bpb")
    assert "mean of 8 combinations" in plots["k"] and plots["k"].count('class="line"') == 1
    assert plots["r"].count('class="line"') == 2


def test_a_key_that_follows_another_does_not_cut_its_lines(tmp_path):
    """Guards against empty plots where a batch size implies the number of steps."""
    found = []
    for batch in (8, 16):
        workdir = write(tmp_path / f"{batch}", batch / 10)
        found.append(Outcome(f"{batch}", f"{batch}", 0, {"batch": batch, "steps": 160 // batch}, "done", workdir))
    assert set(axis_plots(by_group(found), "bpb")) == {"batch", "steps"}


def test_of_many_points_the_best_are_drawn(tmp_path):
    found = []
    for number in range(40):
        workdir = write(tmp_path / f"{number}", float(number))
        found.append(Outcome(f"p{number}", f"p{number}", 0, {"x": number}, "done", workdir))
    plot = points_plot(by_group(found), "bpb", "All")
    assert "best 12 of 40" in plot and ">p11<" in plot and ">p12<" not in plot


def test_a_sweep_without_results_has_a_page_and_a_table(tmp_path):
    lost = Outcome("a", "a", 0, {}, "missing", tmp_path, why="it was not run yet")
    assert "missing: a: it was not run yet" in write_report([lost], tmp_path, "bpb", "Sweep")
    assert "nothing to show" in (tmp_path / "sweep.html").read_text()
    assert json.loads((tmp_path / "best.json").read_text())["best"] == []
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 2


def test_tensorboard_reads_the_axes_and_metrics(outcomes, tmp_path):
    """The files are read back as TensorBoard's own format, written without TensorFlow."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    for _ in range(2):  # again: replaced, not appended to
        write_report(outcomes, tmp_path, "bpb", "Sweep")
    folders = sorted(path.name for path in (tmp_path / "hparams").iterdir())
    assert len(folders) == 8 and "rate=0.0001,k=1,seed=1" not in folders
    content = (tmp_path / "hparams" / "rate=0.001,k=2,seed=0" / "events.out.tfevents.sweep").read_bytes()
    values, started, place = {}, [], 0
    while place < len(content):
        length = int.from_bytes(content[place : place + 8], "little")
        event = Event.FromString(content[place + 12 : place + 12 + length])
        place += 16 + length
        for value in event.summary.value:
            values[value.tag] = value.simple_value
            if value.tag == "_hparams_/session_start_info":
                data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                started.append(data.session_start_info.hparams)
    (hparams,) = started
    assert hparams["train.learning_rate"].number_value == 1e-3 and hparams["train.seed"].number_value == 0
    assert hparams["model.retrieval_layers"].string_value == "(2, 4)"
    assert values["bpb"] == pytest.approx(1.68) and "_hparams_/session_end_info" in values
    lost = [replace(one, state="failed") if number == 0 else one for number, one in enumerate(outcomes[:-1])]
    write_report(lost, tmp_path, "bpb", "Sweep")
    left = {path.name for path in (tmp_path / "hparams").iterdir()}
    assert left == {one.name for one in lost if one.state == "done"}
