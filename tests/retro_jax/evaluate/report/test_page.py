"""`retro evaluate` from a finished build to results.json, the table and the page."""

import csv
import dataclasses
import html.parser
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from evaluation_fixture import RUN, build, save_runs
from file_contents import contents
from recording import assert_reads, recorded

from data_pipeline.documents.stage import DocumentTable
from launch.evaluate import evaluate_directory
from launch.evaluate import main as evaluate_main
from retro_jax.core.files import SEAL, write_json
from retro_jax.evaluate.conditions import CONDITIONS, Condition
from retro_jax.evaluate.conditions import register as register_condition
from retro_jax.evaluate.evaluation import Evaluation
from retro_jax.evaluate.metrics import METRICS, Metric
from retro_jax.evaluate.metrics import register as register_metric
from retro_jax.evaluate.report.page import make_report
from retro_jax.evaluate.report.passages import longest_run
from retro_jax.evaluate.report.plots import condition_series, make_plots
from retro_jax.evaluate.results import find_results, version_facts
from retro_jax.interchange.architectures import OWN
from retro_jax.interchange.model_card import model_card

VOID = {"meta", "br"}


@pytest.fixture(scope="module")
def root(tmp_path_factory, on_one_device):
    root = tmp_path_factory.mktemp("report")
    build(root)
    save_runs(root, "baseline", "retro")
    with recorded() as recorder:
        assert evaluate_main([f"--workdir={root}"]) == 0  # the config is that of the run
    assert_reads("evaluate", recorder.keys, besides=["evaluate.answer_tokens"])  # of questions alone
    return root


@pytest.fixture(scope="module")
def results(root):
    return json.loads((root / "results.json").read_text())


@pytest.fixture(scope="module")
def held_out(results):
    return results["sets"]["held_out"]


@pytest.fixture(scope="module")
def page(root):
    return (root / "report.html").read_text()


def with_set(results, **changes):
    """The results with other figures of the held-out set."""
    return {**results, "sets": {"held_out": {**results["sets"]["held_out"], **changes}}}


@pytest.mark.parametrize(
    ("step", "words"),
    [(RUN.train.steps, "### held_out\n\n```\nsubset"), (1, "are of another checkpoint: baseline at step")],
)
def test_a_model_card_has_the_results_of_its_own_checkpoint(root, step, words):
    card = model_card(RUN, step, root / "retro", root, OWN, "float32")
    assert words in card and ("\nall " in card) == (step != 1)


def test_results_hold_figures_models_and_seconds(results, held_out):
    for figures in [*held_out["subsets"].values(), held_out["all"]]:
        assert {"documents", "tokens", "bytes", "bpb", "on_minus_off"} <= set(figures)
        assert {"baseline", "off", "on", "random", "empty"} <= set(figures["bpb"]) == set(CONDITIONS)
        gap = figures["on_minus_off"]
        assert gap["low"] <= gap["mean"] <= gap["high"]
        assert abs(gap["mean"] - (figures["bpb"]["on"] - figures["bpb"]["off"])) < 1e-9
        assert abs(figures["bpb"]["empty"] - figures["bpb"]["off"]) < 1e-5  # an empty retrieval is Off
        assert figures["bpb"]["on"] != figures["bpb"]["off"]
    assert set(held_out["subsets"]) == {"laws", "tales"} and held_out["protocol"] == "documents"
    assert {"chunks", "documents", "recall"} <= set(results["database"])
    assert results["database"]["recall"] == {"k": 3, "value": 1.0}
    assert results["model"]["parameters"] > results["model"]["baseline_parameters"] > 0
    stages = {"documents", "tokenizer", "chunks", "index", "neighbors", "joined", "train baseline", "train retro"}
    assert stages | {"evaluate"} == set(results["seconds"])
    assert all(curves["bpb"]["on"][-1] for curves in held_out["leakage"].values())


def test_all_is_the_sum_of_the_subsets(held_out):
    for condition in CONDITIONS:
        bits = sum(figures["bpb"][condition] * figures["bytes"] for figures in held_out["subsets"].values())
        assert abs(bits / held_out["all"]["bytes"] - held_out["all"]["bpb"][condition]) < 1e-9


def test_the_table_for_notebooks_has_every_figure(root, held_out):
    """results.csv and results.parquet: a figure a row, in full."""
    with open(root / "results.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = {("laws", "bpb", "on"): held_out["subsets"]["laws"]["bpb"]["on"]}
    wanted["all", "bpb_difference", "on - off"] = held_out["all"]["on_minus_off"]["mean"]
    wanted["tales", "perplexity", "baseline"] = held_out["subsets"]["tales"]["perplexity"]["baseline"]
    found = {(row["subset"], row["metric"], row["condition"]): row for row in rows if not row["alpha"]}
    for key, value in wanted.items():
        assert float(found[key]["value"]) == value and found[key]["set"] == "held_out"
    assert not [row for row in rows if row["metric"] in ("accuracy", "word_perplexity")], "held-out text has none"
    table = pq.read_table(root / "results.parquet").to_pylist()
    assert len(table) == len(rows) and table[0]["value"] == float(rows[0]["value"])


class Reader(html.parser.HTMLParser):
    """Checks that tags close, and collects tags and attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert not {"script", "link", "img", "iframe", "object", "a"} & set(reader.tags)
    assert not {"src", "xlink:href"} & {name for name, _ in reader.attributes}
    assert all(
        value.startswith("#") for name, value in reader.attributes if name == "href"
    )  # a mark of the same figure
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert "@import" not in page and "url(" not in page
    assert set(re.findall(r"https?://[^\"' <]+", page)) == {"http://www.w3.org/2000/svg"}  # a name, never loaded
    assert reader.tags.count("svg") == 3 + 3 + 1


def test_text_of_the_data_is_escaped(page, root):
    """Documents, names and licenses may hold anything; one of the texts and the license hold markup."""
    passages = json.loads((root / "passages.json").read_text())
    shown = "".join(token["text"] for passage in passages for chunk in passage["chunks"] for token in chunk["tokens"])
    held_out = [
        document for document in DocumentTable(root / "data" / "documents").read() if document.split == "validation"
    ]
    assert any("<script>" in document.text for document in held_out) and shown
    assert "<script" not in page and "CC0 &lt;b&gt;" in page and "CC0 <b>" not in page


def test_markup_in_every_place_that_takes_text(results):
    wicked = "<script>alert(1)</script>\"'&"
    part = {"text": wicked, "continuation": False, "shared": True}
    neighbor = {"chunk": 1, "distance": 0.5, "subset": wicked, "document": wicked, "parts": [part]}
    token = {"text": wicked, "off": 5.0, "on": 1.0}
    passage = {"kind": wicked, "subset": wicked, "document": wicked, "bytes": 9, "bits_off": 5.0, "bits_on": 1.0}
    passage["chunks"] = [{"chunk": 3, "overlap": 0.5, "tokens": [token], "neighbors": [neighbor]}]
    of_set = results["sets"]["held_out"]
    curves = {"all": of_set["leakage"]["all"], wicked: of_set["leakage"]["all"]}
    verdict = {**results["verdict"], "text": wicked}
    of_set = {**of_set, "subsets": {wicked: of_set["all"]}, "leakage": curves, "verdict": verdict, "protocol": "pile"}
    changed = {**results, "sets": {"held_out": of_set, wicked: of_set}, "data": {wicked: {**results["data"]["laws"]}}}
    changed["verdict"] = verdict
    changed["versions"] = {wicked: wicked}
    page = make_report(changed, [passage], make_plots(changed, {}), wicked)
    reader = Reader()
    reader.feed(page)
    assert "<script" not in page and page.count("&lt;script&gt;") > 10 and reader.open == []


class Texts(html.parser.HTMLParser):
    """What stands in each <div class="text">, character by character."""

    def __init__(self):
        super().__init__()
        self.texts, self.inside = [], False

    def handle_starttag(self, tag, attributes):
        if ("class", "text") in attributes:
            self.texts.append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside &= tag != "div"

    def handle_data(self, data):
        if self.inside:
            self.texts[-1] += data


def test_the_page_shows_passages_as_they_are(page, root):
    """White space is part of a text: a template adds none and drops none."""
    parser = Texts()
    parser.feed(page)
    wanted = []
    for passage in json.loads((root / "passages.json").read_text()):
        for chunk in passage["chunks"]:
            wanted.append("".join(token["text"] for token in chunk["tokens"]))
            for neighbor in chunk["neighbors"]:
                parts = sorted(neighbor["parts"], key=lambda part: part["continuation"])
                wanted.append("".join(part["text"] for part in parts))
    assert parser.texts == wanted and any("\n" in text for text in wanted)


def test_passages_show_the_text_as_it_is(root):
    texts = [document.text for document in DocumentTable(root / "data" / "documents").read()]
    passages = json.loads((root / "passages.json").read_text())
    assert len(passages) == 3 and len({passage["document"] for passage in passages}) == 3
    assert {passage["subset"] for passage in passages} == {"laws", "tales"}
    for passage in passages:
        text = "".join(token["text"] for chunk in passage["chunks"] for token in chunk["tokens"])
        assert any(text.strip("\ufffd") in whole for whole in texts)
        saved = sum(token["off"] - token["on"] for chunk in passage["chunks"] for token in chunk["tokens"])
        assert abs(saved - (passage["bits_off"] - passage["bits_on"])) < 1e-2
        for chunk in passage["chunks"]:
            for neighbor in chunk["neighbors"]:
                found = "".join(part["text"] for part in neighbor["parts"]).strip("\ufffd")
                assert any(found.strip("\ufffd") in whole for whole in texts) and neighbor["document"]


def test_longest_run_marks_the_first_of_the_longest():
    assert longest_run([9, 5, 6, 7, 8, 5, 6], [1, 5, 6, 7]) == (1, 3)
    assert longest_run([1, 2], [3]) == (0, 0)


def test_again_only_the_report_is_made(root, results, monkeypatch, capsys):
    (root / "report.html").unlink()
    monkeypatch.setattr(Evaluation, "measure", lambda *arguments: pytest.fail("measured again"))
    assert evaluate_main([f"--workdir={root}"]) == 0
    assert json.loads((root / "results.json").read_text()) == results
    assert (root / "report.html").exists() and "is up to date" in capsys.readouterr().err


def test_nothing_is_bold_that_is_not_shown(results, held_out):
    """0 within an interval: neither the difference nor On is bold, and the plot's mark is hollow."""
    shown = {"mean": -0.2, "low": -0.3, "high": -0.1, "shown": True}
    tie = {"mean": -0.2, "low": -0.3, "high": 0.1, "shown": False}
    names = ("on_minus_off", "on_minus_random", "on_minus_shuffled", "off_minus_baseline", "on_minus_baseline")

    def page(gap):
        figures = {**held_out["all"], **dict.fromkeys(names, gap)}
        curves = {**held_out["leakage"]["all"], "on_minus_off_at_lowest_alpha": gap}
        of_all = {"all": curves, "laws": curves}
        changed = with_set(results, subsets={"laws": figures}, all=figures, leakage=of_all)
        plots = make_plots(changed, {})
        return make_report(changed, [], plots), plots["held_out-gains"]

    bold, mark = re.compile("<td[^>]*><b>"), 'class="mark hollow"'
    sure, plot = page(shown)
    assert len(bold.findall(sure)) == 2 * (1 + 5) + 2 * 2 and mark not in plot
    unsure, plot = page(tie)
    assert not bold.findall(unsure) and plot.count(mark) == 2 * 3


def test_many_subsets_keep_a_readable_histogram(results, held_out):
    """One bar a color: the six largest subsets, and the axis says so."""
    named = {f"s{n}": {**held_out["all"], "bytes": n} for n in range(9)}
    changed = with_set(results, subsets=named, leakage=dict.fromkeys(named, held_out["leakage"]["all"]))
    drawn = make_plots(changed, {})["held_out-overlap"]
    assert drawn.count('class="bar"') == 6 * 9 and "6 largest subsets" in drawn
    assert ">s3<" in drawn and ">s2<" not in drawn
    assert "largest" not in make_plots(results, {})["held_out-overlap"]


def test_subsets_of_any_name_are_plotted_into_one_folder(results, held_out, tmp_path):
    """Guards against a report that fails after all scoring, or files outside of plots/: names of subsets come from data."""
    names = ("a/b", "../../../x", "長" * 100, "Wikipedia (en)")
    of_all, curves = held_out["all"], held_out["leakage"]["all"]
    changed = with_set(results, subsets=dict.fromkeys(names, of_all), leakage=dict.fromkeys([*names, "all"], curves))
    work = tmp_path / "a" / "b" / "c" / "work"
    write_json(work / "results.json", {key: value for key, value in changed.items() if key != SEAL})
    write_json(work / "passages.json", [])
    Evaluation.report(SimpleNamespace(workdir=work, models=SimpleNamespace(runs={})))
    plots = [path for path in tmp_path.rglob("*") if path.suffix == ".svg"]
    assert len(plots) == len(make_plots(changed, {})) and {path.parent for path in plots} == {work / "plots"}
    assert (work / "plots" / "held_out-leakage-Wikipedia (en).svg").exists() and (work / "report.html").exists()


def test_a_condition_has_one_color_dash_and_marker_in_every_plot():
    lines = [condition_series(name, [(0, 1.0)]) for name in CONDITIONS]
    assert len({(line.color, line.dash) for line in lines}) == len(CONDITIONS)
    assert {line.marker for line in lines} == {"circle", "square", "diamond", "triangle"}


def test_results_of_an_older_form_are_computed_again(root, tmp_path, capsys):
    """A results.json of another version is never read with a KeyError: its format is looked at first."""
    made_from = json.loads((root / "results.json").read_text())["made_from"]
    shutil.copy(root / "passages.json", tmp_path)
    for older in ({}, {"made_from": {**made_from, "format": 2}}, {"made_from": 3}, {"made_from": made_from}):
        (tmp_path / "results.json").write_text(json.dumps(older))
        assert find_results(tmp_path, made_from) is None
        assert "computed again" in capsys.readouterr().err
    shutil.copy(root / "results.json", tmp_path)
    own = {name: value for name, value in made_from.items() if name != "passages"}
    assert find_results(tmp_path, own) is not None


@pytest.mark.parametrize("content", [None, "", "{}", '{"python": "3.11"}', "[]"])
def test_damaged_versions_are_reported_as_unknown_with_a_line(content, tmp_path, capsys):
    """Guards against a report without versions where versions.json lost its content, and no line that says so."""
    if content is not None:
        (tmp_path / "versions.json").write_text(content)
    found = version_facts(tmp_path)
    assert (found["python"], found["devices"]) == ("unknown", "unknown") and set(found) == {
        "source",
        "python",
        "devices",
    }
    note = capsys.readouterr().err
    assert "versions.json" in note and "The report omits the versions of that run." in note


def test_on_with_other_neighbors_stands_beside_on(root, tmp_path, capsys):
    """What does not change is not scored again: Off, the baseline and the controls keep their scores."""
    work = tmp_path / "work"
    shutil.copytree(root, work, symlinks=True)
    parts = {path: path.stat().st_mtime_ns for path in (work / "scores").rglob("*.parquet")}
    assert evaluate_main([f"--workdir={work}", "--config.evaluate.tried_neighbors=(1,)"]) == 0
    held_out = json.loads((work / "results.json").read_text())["sets"]["held_out"]
    bpb, page = held_out["all"]["bpb"], (work / "report.html").read_text()
    assert bpb["on k=1"] not in (None, bpb["on"], bpb["off"]) and "on k=1" in page
    assert "Number of neighbors" in page and (work / "plots" / "held_out-neighbors.svg").exists()
    after = {path: path.stat().st_mtime_ns for path in (work / "scores").rglob("*.parquet")}
    assert {path: after[path] for path in parts} == parts and len(after) == len(parts) + 1
    assert evaluate_main([f"--workdir={work}", "--config.evaluate.tried_neighbors=(1,1)"]) == 2
    assert "config.evaluate.tried_neighbors must be different numbers from 1" in capsys.readouterr().err
    assert evaluate_main([f"--workdir={work}", "--config.evaluate.sets=('books',)"]) == 2
    assert "no evaluation set 'books'" in capsys.readouterr().err


def test_evaluation_without_neighbors_is_refused(root, capsys):
    assert evaluate_main([f"--workdir={root}", "--config.model.neighbors=0"]) == 2
    assert "config.model.neighbors=0 leaves nothing to evaluate" in capsys.readouterr().err
    assert evaluate_main([f"--workdir={root}", "--config.model.layers=3"]) == 2
    assert "config.model.layers (there 2, here 3)" in capsys.readouterr().err
    assert evaluate_main([f"--workdir={root}", "--config.model.neighbors=4"]) == 2
    assert "The stage 'embeddings' in" in capsys.readouterr().err, "more than the 3 stored are searched again"


def test_a_tried_database_cannot_be_cleaned(root, capsys):
    """Guards against a figure of a clean database that still holds copies: a tried one was never compared with the set."""
    before = contents(root)
    both = ["--config.evaluate.clean_database=0.8", "--config.evaluate.tried_databases=('x/data',)"]
    assert evaluate_main([f"--workdir={root}", *both]) == 2
    message = capsys.readouterr().err
    assert "config.evaluate.clean_database=0.8" in message and "config.evaluate.tried_databases=('x/data',)" in message
    assert "were never compared with the sets" in message and "Evaluate twice" in message and contents(root) == before
    settings = dataclasses.replace(RUN.evaluate, clean_database=0.8, tried_databases=("x/data",))
    with pytest.raises(ValueError, match="were never compared with the sets"):
        Evaluation(dataclasses.replace(RUN, evaluate=settings), root, {}, {})


def test_a_model_of_another_database_is_refused(root, monkeypatch, capsys):
    wrong = {"tokenizer": "a" * 64, "database": "b" * 64, "joined": "c" * 64}
    monkeypatch.setattr("retro_jax.evaluate.models.load_fingerprints", lambda directory, step: wrong)
    assert evaluate_main([f"--workdir={root}"]) == 2
    message = capsys.readouterr().err
    assert "tokenizer in" in message and "aaaaaaaaaaaaaaaa…" in message and str(root / "baseline") in message


def test_without_a_baseline_its_column_is_empty(root, tmp_path, capsys):
    (tmp_path / "retro").symlink_to(root / "retro")
    run = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, directory=str(root / "data")))
    text = evaluate_directory(run, tmp_path)
    assert "there is no baseline" in capsys.readouterr().err
    found = json.loads((tmp_path / "results.json").read_text())["sets"]["held_out"]
    assert found["all"]["bpb"]["baseline"] is None and "off_minus_baseline" not in found["all"]
    assert "on - off" in text and (tmp_path / "report.html").exists()


def test_a_work_directory_without_a_model_is_explained(tmp_path, capsys):
    assert evaluate_main([f"--workdir={tmp_path}"]) == 2
    assert "holds no trained model" in capsys.readouterr().err


def test_a_condition_and_a_metric_are_added_from_outside(root, tmp_path):
    """Without a file of ours being edited they are scored, and stand in results.json, the table and the page."""
    work = tmp_path / "work"
    shutil.copytree(root, work, symlinks=True)
    nearest = Condition("nearest", "its nearest neighbor alone", "#444444", neighbors=only_nearest, control=True)
    try:
        register_condition(nearest)
        register_metric(Metric("bits_a_token", "bits of a token", lambda of: of.bits.sum() / of.tokens.sum()))
        assert evaluate_main([f"--workdir={work}"]) == 0
        results, page = json.loads((work / "results.json").read_text()), (work / "report.html").read_text()
        held_out = results["sets"]["held_out"]
        for found in (held_out["all"], *held_out["subsets"].values()):
            assert found["bpb"]["nearest"] not in (None, found["bpb"]["on"], found["bpb"]["off"])
            assert set(found["bits_a_token"]) == {*CONDITIONS}
            assert found["bits_a_token"]["on"] == pytest.approx(np.log2(found["perplexity"]["on"]))
        assert "its nearest neighbor alone" in page and "bits of a token" in page
        with pytest.raises(ValueError, match="a condition named 'nearest' already"):
            register_condition(nearest)
        with pytest.raises(ValueError, match="a metric named 'bpb' already"):
            register_metric(METRICS["bpb"])
    finally:
        CONDITIONS.pop("nearest", None)
        METRICS.pop("bits_a_token", None)


def only_nearest(asked):
    kept = asked.real.copy()
    kept[:, :, 1:] = -1
    return kept
