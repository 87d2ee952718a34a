"""The plan of a sweep: what points share, what they need, what is refused before anything starts."""

import json
import shutil

import pytest
from made_up_checkpoints import write_whole
from places import ROOT
from table_13 import TABLE_13, ablated
from training_fixture import build_data

from launch.command.arguments import parse
from launch.evaluate import VERB as EVALUATE
from launch.sweep import cost, digests, verb
from launch.sweep.planner import make_plan
from launch.sweep.points import make_points
from launch.train import VERB as TRAIN
from retro_jax.config import RunConfig, to_dict
from retro_jax.models import retro

CONFIG = "configs/quickstart.py:smoke"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def planned(swept, workdir="runs/s", grid="", seeds="", base=None, **options):
    facts = to_dict(parse(verb.VERB, [f"--config={CONFIG}", "--workdir=x"]).run) if base is None else base
    return make_plan(facts, CONFIG, {}, make_points(swept, grid, seeds), workdir, **options)


def by_name(plan):
    return {one.point.name: one for one in plan.points}


def trainings(plan):
    return [task for task in plan.tasks.values() if task.step.verb == "train"]


def table_13():
    """Every row of the paper's ablations as overrides of the quickstart's config."""
    base = parse(verb.VERB, [f"--config={CONFIG}", "--workdir=x"]).run.model
    for row in TABLE_13:
        model = ablated(base, row)
        yield (
            row.replace("_", " "),
            {
                "model.retrieval_layers": model.retrieval_layers,
                "model.neighbors": model.neighbors,
                "model.neighbor_parts": model.neighbor_parts,
                "model.cross_attention_positions": model.cross_attention_positions,
                "model.shared_embeddings": model.shared_embeddings,
                "model.encoder.layers": model.encoder.layers,
                "model.encoder.cross_attention_layers": model.encoder.cross_attention_layers,
            },
        )


def test_all_rows_of_table_13_with_one_seed_share_one_baseline_and_one_build():
    """Guards against a baseline for each ablation of retrieval, which none of them changes."""
    plan = planned(list(table_13()), seeds="0,1")
    assert len(plan.points) == 2 * len(TABLE_13)
    found = by_name(plan)
    assert {one.data.task for one in plan.points} == {next(iter(plan.tasks))}
    baselines = {one.seed: set() for one in plan.points}
    for one in plan.points:
        baselines[one.seed].add((one.baseline or one.model).task)
    assert all(len(keys) == 1 for keys in baselines.values()) and baselines[0] != baselines[1]
    assert not found["no retrieval,seed=0"].model.retrieves and found["no retrieval,seed=0"].baseline is None
    assert len(trainings(plan)) == 2 * len(TABLE_13)


def test_every_step_is_a_command_that_its_verb_takes():
    """Guards against a step whose own flags give another config than the one that was planned."""
    plan = planned([("a", {"model.neighbors": 1, "train.learning_rate": 1e-4, "evaluate.passages": 1})], seeds="3")
    for task in trainings(plan):
        run = parse(TRAIN, task.step.arguments).run
        assert (run.model, run.train) == (task.run.model, task.run.train)
        assert run.train.seed == 3 and run.data.directory == str(plan.points[0].data.directory)
    evaluation = plan.tasks["evaluate-a,seed=3"]
    run = parse(EVALUATE, evaluation.step.arguments).run
    assert run.evaluate == evaluation.run.evaluate and run.model == evaluation.run.model
    one = plan.points[0]
    assert evaluation.links == {
        "data": one.data.directory,
        "retro": one.model.directory,
        "baseline": one.baseline.directory,
    }
    assert set(evaluation.needs) == {one.data.task, one.model.task, one.baseline.task}


def test_what_only_the_evaluation_reads_shares_the_training():
    found = by_name(planned([("a", {}), ("b", {"evaluate.seed": 5}), ("c", {"train.seed": 5})]))
    assert found["a"].model.task == found["b"].model.task and found["a"].task != found["b"].task
    assert found["a"].model.task != found["c"].model.task


@pytest.mark.parametrize(
    "change",
    [
        {"log_every": 7},
        {"mesh": {"data": 1, "fsdp": 2, "tensor": 1}},
        {"keep_checkpoints": 1, "keep_also": {"every": 10}},
    ],
    ids=str,
)
def test_settings_that_change_no_number_count_only_where_a_point_changes_them(change):
    """Guards against a sweep that trains everything again on another mesh."""
    base = to_dict(parse(verb.VERB, [f"--config={CONFIG}", "--workdir=x"]).run)
    other = {**base, "train": {**base["train"], **change}}
    points = [("a", {}), ("b", {"model.remat": "full"}), ("c", {"train.mesh.fsdp": 4})]
    before, after = (by_name(planned(points, base=facts)) for facts in (base, other))
    assert before["a"].model.task == after["a"].model.task
    assert len({one.model.task for one in before.values()}) == 3


@pytest.mark.parametrize("key", ["train.retrieval_check_every", "train.retrieval_alarm_checks", "model.neighbors"])
def test_what_no_baseline_reads_gives_no_baseline_of_its_own(key):
    found = by_name(planned([("a", {}), ("b", {key: 1})]))
    assert found["a"].model.task != found["b"].model.task
    assert found["a"].baseline.task == found["b"].baseline.task


def test_a_share_of_the_database_is_built_beside_the_whole():
    plan = planned(None, grid="data.database_fraction=0.5,1.0")
    half, whole = plan.points
    assert half.data.directory == whole.data.directory / "subset-0.5" and half.data.task != whole.data.task
    assert half.baseline.task != whole.baseline.task  # training checks that the database is its own
    assert plan.tasks[half.data.task].writes == plan.tasks[whole.data.task].writes != ""


def test_a_retrofit_starts_from_the_baseline_and_is_compared_with_it():
    retrofit = {"train.initialize_from": "point:full/baseline", "train.trainable": "retrieval", "train.steps": 60}
    plan = planned([("retrofit", retrofit), ("full", {})], seeds="0,1")
    found = by_name(plan)
    for seed in (0, 1):
        one, full = found[f"retrofit,seed={seed}"], found[f"full,seed={seed}"]
        assert one.baseline.task == full.baseline.task and full.baseline.task in plan.tasks[one.model.task].needs
        flag = f"--config.train.initialize_from={full.baseline.directory}"
        assert flag in plan.tasks[one.model.task].step.arguments
    keys = list(plan.tasks)
    assert all(keys.index(need) < keys.index(key) for key, task in plan.tasks.items() for need in task.needs)


def test_a_point_may_evaluate_the_model_of_another_one():
    swept = [("full", {"model.width": 32}), ("k4", {"evaluate.retro": "point:full", "model.neighbors": 4})]
    plan = planned(swept)
    full, k4 = plan.points
    assert (k4.model.task, k4.baseline.task) == (full.model.task, full.baseline.task) and k4.run.model.width == 32
    assert len(trainings(plan)) == 2
    run = parse(EVALUATE, plan.tasks[k4.task].step.arguments).run
    assert run.model.neighbors == 4 and run.model.width == 32


def test_a_run_outside_is_known_by_its_weights_and_not_by_its_place(tmp_path):
    """Guards against a training again where a folder was moved, and against results of weights that have changed."""
    for place in ("here", "there"):
        write_whole(tmp_path / place / "checkpoints", 0)
        (tmp_path / place / "config.json").write_text(json.dumps(to_dict(RunConfig())))

    def of(place):
        points = [("a", {"train.initialize_from": str(tmp_path / place), "evaluate.baseline": str(tmp_path / place)})]
        one = by_name(plan := planned(points))["a"]
        return one.model.task, plan.tasks[one.task].digest

    before = of("here")
    assert of("there") == before
    write_whole(tmp_path / "there" / "checkpoints", 5)
    training, evaluation = of("there")
    assert training != before[0] and evaluation != before[1] and of("here") == before


def test_a_given_baseline_replaces_the_derived_one_and_none_may_be_wanted():
    assert by_name(planned([("a", {})], baselines=False))["a"].baseline is None
    found = by_name(planned([("a", {}), ("b", {"train.steps": 20, "evaluate.baseline": "point:a/baseline"})]))
    assert found["b"].baseline.task == found["a"].baseline.task


@pytest.mark.parametrize(
    ("swept", "message"),
    [
        (
            [("a", {"train.initialize_from": "point:fulll"}), ("full", {})],
            "'a': train.initialize_from=point:fulll names no point .* did you mean 'full'",
        ),
        (
            [("a", {"train.initialize_from": "point:b"}), ("b", {"train.initialize_from": "point:a"})],
            "circle: a -> b -> a",
        ),
        ([("a", {"evaluate.retro": "point:a"})], "circle: a -> a"),
        ([("a", {"evaluate.retro": "point:b/baseline"}), ("b", {})], "must be the model of a point"),
        (
            [("a", {"evaluate.retro": "point:b", "train.steps": 9}), ("b", {})],
            "trains none: retro evaluate does not read config.train.steps",
        ),
        (
            [("a", {"evaluate.retro": "point:b", "model.width": 32}), ("b", {})],
            "model that differs from the config: config.model.width",
        ),
        ([("a", {"train.initialize_from": "nowhere"})], "nowhere/config.json is missing. Point 'a' needs it"),
    ],
)
def test_references_that_lead_nowhere_are_refused_by_name(swept, message):
    with pytest.raises(ValueError, match=message):
        planned(swept)


def test_what_no_evaluation_takes_is_refused_before_anything_is_trained():
    with pytest.raises(ValueError, match="were never compared with the sets"):
        planned([("a", {"evaluate.clean_database": 0.8, "evaluate.tried_databases": ("x/data",)})])


def test_the_axes_are_the_keys_that_vary():
    plan = planned([("a", {"model.neighbors": 1, "train.batch": 8}), ("b", {"train.batch": 8})], seeds="0,1")
    assert plan.axes() == {"model.neighbors": [1, 1, 2, 2]}


def test_a_point_that_does_not_fit_is_refused_before_anything_starts(tmp_path, capsys):
    argv = ["--config=configs/retro.py:1b5", f"--workdir={tmp_path / 's'}", "--grid=model.neighbors=2,4"]
    assert verb.main([*argv, "--topology=h100:1"]) == 2
    said = capsys.readouterr().err
    assert "Point 'neighbors=2' (train RETRO) does not fit on h100:1: about" in said
    assert "It fits with --config.train.accumulation=" in said and "Nothing was started" in said
    assert not (tmp_path / "s").exists()
    assert verb.main([*argv, "--topology=h100:1", "--plan"]) == 0
    assert "NOTE: Point 'neighbors=2'" in capsys.readouterr().out


def test_a_plan_costs_by_preflight_on_a_known_chip_and_by_nothing_on_a_new_cpu(tmp_path, capsys):
    argv = [
        "--config=configs/retro.py:172m",
        f"--workdir={tmp_path / 's'}",
        "--grid=model.neighbors=2",
        "--plan",
        "--json",
    ]
    for topology, by in (("v5p:4x4x4", "roofline, a lower bound"), ("cpu:1", "")):
        assert verb.main([*argv, f"--topology={topology}"]) == 0
        tasks = json.loads(capsys.readouterr().out)["tasks"]
        assert {one["seconds_by"] for one in tasks if one["verb"] == "train"} == {by}
        assert all((one["seconds"] is None) == (not by) for one in tasks if one["verb"] == "train")


def test_two_hundred_points_are_planned_without_tracing_a_model(tmp_path, monkeypatch, capsys):
    """Guards against a trace of the model for each point, which takes minutes: calls are counted, not seconds."""
    traced, loaded = [], []
    monkeypatch.setattr(retro, "_abstract", lambda config: traced.append(config) or pytest.fail("traced"))
    real = cost.misfit
    monkeypatch.setattr(cost, "misfit", lambda *arguments: loaded.append(1) or real(*arguments))
    grid = "model.width=32,64,128,256 model.neighbors=1,2 train.learning_rate=1e-3,2e-3,3e-3,4e-3,5e-3"
    argv = [f"--config={CONFIG}", f"--workdir={tmp_path / 's'}", f"--grid={grid}", "--seeds=0,1,2,3,4"]
    assert verb.main([*argv, "--plan", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["points"]) == 200 and len({one["model"] for one in found["points"]}) == 200
    assert len({one["baseline"] for one in found["points"]}) == 100 and len(loaded) == 300
    assert traced == [] and not (tmp_path / "s").exists()


def test_a_metric_and_a_point_that_do_not_exist_are_refused(tmp_path, capsys):
    argv = [f"--config={CONFIG}", f"--workdir={tmp_path / 's'}", "--grid=model.neighbors=1,2"]
    assert verb.main([*argv, "--metric=bbp"]) == 2
    assert "--metric=bbp is not a metric; known metrics: bpb, perplexity" in capsys.readouterr().err
    assert verb.main([*argv, "--only=neighbors=3"]) == 2
    assert "--only=neighbors=3 is no point of this sweep; did you mean 'neighbors=" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_key_of_a_later_version_leaves_every_directory_where_it_is(monkeypatch):
    """Guards against training everything again after an update that adds a setting."""

    def later(config):
        facts = to_dict(config)
        return {**facts, "model": {**facts["model"], "added": 1}} if "model" in facts else {**facts, "added": 1}

    swept = [("a", {"model.neighbors": 1}), ("b", {"data.sources.wiki.max_train_bytes": 1_000})]
    before = planned(swept)
    monkeypatch.setattr(digests, "to_dict", later)
    after = planned(swept)
    assert [(key, task.digest) for key, task in after.tasks.items()] == [
        (key, task.digest) for key, task in before.tasks.items()
    ]
    assert before.points[0].data != before.points[1].data


def test_a_finished_database_is_known_by_its_content_and_not_by_its_place(tmp_path):
    """Guards against trainings that are lost when a database is moved."""
    places = [build_data(tmp_path / "a"), tmp_path / "b", build_data(tmp_path / "other", seed=2)]
    shutil.copytree(places[0], places[1])
    plans = [planned([("a", {"data.directory": str(place)})], tmp_path / "s") for place in places]
    first, moved, other = (plan.points[0] for plan in plans)
    assert first.model.task == moved.model.task != other.model.task
    assert not [key for key in plans[0].tasks if key.startswith("build")] and first.data.directory == places[0]
    assert plans[1].tasks[moved.task].links["data"] == places[1]
    with pytest.raises(
        ValueError, match="Point 'a': data.rerank would change nothing, because the data of .* are finished"
    ):
        planned([("a", {"data.directory": str(places[0]), "data.rerank": "bm25"})], tmp_path / "s")
    with pytest.raises(ValueError, match="The stage 'joined' in .* does not exist"):
        planned([("a", {"data.directory": str(tmp_path / "none")})], tmp_path / "s")
