"""Points of a sweep: grids, seeds, names, references."""

import pytest

from launch.command.config_files import load_sweep
from launch.sweep.points import SEED, Point, make_points, parse_grid, resolved, value_of
from retro_jax.config import RunConfig, to_dict


def names(points):
    return [point.name for point in points]


def test_a_grid_is_the_product_of_its_values():
    grid = "train.learning_rate=1e-4,2e-4 model.retrieval_layers=(2, 4),(4,),() model.scan=true"
    points = make_points(None, grid, "")
    assert len(points) == 6
    assert points[0].name == "learning_rate=1e-4,retrieval_layers=(2,4),scan=true"
    assert points[0].overrides == {
        "train.learning_rate": 1e-4,
        "model.retrieval_layers": (2, 4),
        "model.scan": True,
    }
    assert [point.overrides["model.retrieval_layers"] for point in points[:3]] == [(2, 4), (4,), ()]


def test_keys_that_end_alike_keep_their_section_in_the_name():
    """Guards against two axes of one name: the names of their points would say nothing."""
    assert parse_grid("model.layers=2 model.encoder.layers=1,3")[1][0] == "model.layers=2,model.encoder.layers=3"


def test_a_value_that_is_no_literal_is_a_text_and_a_slash_stays_out_of_the_name():
    ((name, overrides),) = parse_grid("model.attention=xla data.encoder='a/b c'")
    assert overrides == {"model.attention": "xla", "data.encoder": "a/b c"} and name == "attention=xla,encoder=a_bc"


@pytest.mark.parametrize("grid", ["model.neighbors", "=1", "model.neighbors=", "model.neighbors=1,,2", "1,2"])
def test_a_grid_that_cannot_be_read_is_refused(grid):
    with pytest.raises(ValueError, match="--grid holds .* not KEY=VALUE,VALUE"):
        make_points(None, grid, "")


def test_seeds_and_grid_multiply_the_points_and_their_references():
    """Guards against a retrofit of seed 1 that starts from the baseline of seed 0."""
    swept = [("full", {}), ("retrofit", {"train.initialize_from": "point:full/baseline"})]
    points = make_points(swept, "model.neighbors=1,2", "0,1")
    assert names(points)[:3] == ["full,neighbors=1,seed=0", "full,neighbors=1,seed=1", "full,neighbors=2,seed=0"]
    assert points[-1].overrides == {
        "train.initialize_from": "point:full,neighbors=2,seed=1/baseline",
        "model.neighbors": 2,
        "train.seed": 1,
    }
    assert {point.group for point in points} == {
        f"{name},neighbors={k}" for name in ("full", "retrofit") for k in (1, 2)
    }


@pytest.mark.parametrize(
    ("swept", "grid", "seeds", "message"),
    [
        (None, "", "", "defines no sweep.*--grid is missing"),
        ([], "", "", "yields no points"),
        ([("a", {}), ("a", {"model.neighbors": 1})], "", "", "Two points are named 'a'"),
        (None, "model.neighbors=1,1", "", "Two points are named 'neighbors=1'"),
        ([("a", {})], "", "0,0", "Two points are named 'a,seed=0'"),
        ([("a/b", {})], "", "", "name of its folder, but one is 'a/b'"),
        ([(".a", {})], "", "", "name of its folder"),
        ([("a" * 161, {})], "", "", "name of its folder"),
        ([("a", {"train.seed": 1})], "", "0,1", "'a' sets train.seed already"),
        ([("a", {})], "", "0,x", "--seeds=0,x must be whole numbers such as 0,1,2, but holds 'x'"),
        (None, "model.neighbors=1 model.neighbors=2", "", "--grid sets model.neighbors twice"),
    ],
)
def test_points_that_cannot_be_are_refused_by_name(swept, grid, seeds, message):
    with pytest.raises(ValueError, match=message):
        make_points(swept, grid, seeds)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"model.neighbor": 1},
            "Point 'a': config.model.neighbor is not a known config key; did you mean config.model.neighbors",
        ),
        ({"modle.neighbors": 1}, "Point 'a': config.modle is not a known config key; did you mean config.model"),
        ({"sample.tokens": 1}, "Point 'a': retro sweep does not read config.sample.tokens"),
        ({"model.neighbors": "two"}, "Point 'a': config.model.neighbors must be of type int"),
        ({"train.warmup_steps": 10**7}, "Point 'a': The learning rate peaks before the last step"),
    ],
)
def test_an_override_that_the_config_does_not_take_is_refused_with_its_point(overrides, message):
    with pytest.raises(ValueError, match=message):
        resolved(to_dict(RunConfig()), Point("a", overrides))


def test_overrides_change_the_config_of_their_point_alone():
    base = to_dict(RunConfig())
    point = Point("a", {"model.encoder.layers": 3, "train.subset_weights.x": 2, "data.sources.new.path": "t"})
    run = resolved(base, point)
    assert run.model.encoder.layers == 3 and run.train.subset_weights == {"x": 2.0}
    assert run.data.sources["new"].path == "t" and value_of(run, "data.sources.new.path") == "t"
    assert value_of(run, "train.subset_weights.y") is None
    assert base == to_dict(RunConfig())


def write(path, text):
    path.write_text(f"from retro_jax.config import default_config as get_config\n{text}")
    return str(path)


def test_a_config_file_may_hold_a_sweep(tmp_path):
    assert load_sweep(write(tmp_path / "a.py", "")) is None
    with_argument = write(tmp_path / "b.py", "def sweep(argument):\n    yield argument, {'model.neighbors': 1}\n")
    assert load_sweep(f"{with_argument}:x") == [("x", {"model.neighbors": 1})]
    assert load_sweep(write(tmp_path / "c.py", "def sweep():\n    yield 'x', {}\n")) == [("x", {})]


def test_a_sweep_that_yields_something_else_is_refused(tmp_path):
    wrong = write(tmp_path / "a.py", "def sweep():\n    yield {'model.neighbors': 1}\n")
    with pytest.raises(ValueError, match="a.py must yield a name and a dict of overrides"):
        load_sweep(wrong)
    broken = write(tmp_path / "b.py", "def sweep():\n    yield 1 / 0\n")
    with pytest.raises(ValueError, match="b.py, line 3: ZeroDivisionError"):
        load_sweep(broken)


def test_seeds_that_a_sweep_yields_itself_make_a_group():
    """Guards against a page that shows the seeds of one model as different models, also where a grid is added."""
    points = make_points([(f"{name},seed={seed}", {SEED: seed}) for name in ("a", "b=1") for seed in (0, 10)], "", "")
    assert [point.group for point in points] == ["a", "a", "b=1", "b=1"]
    points = make_points([(f"a,seed={seed}", {SEED: seed}) for seed in (0, 10)], "model.neighbors=1,2", "")
    assert [point.group for point in points] == ["a,neighbors=1", "a,neighbors=2"] * 2
