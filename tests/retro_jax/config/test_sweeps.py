"""Every point of every sweep in `configs/` resolves, has a name of its own, and starts from points before it."""

import importlib.util
from functools import cache

import pytest
from places import ROOT

from launch.config_files import load_config
from retro_jax.config import RunConfig, open_maps, resolve
from retro_jax.presets.ablations import TABLE_13

SWEEPS = [("study", ""), ("study", "smoke")]


@cache
def points(file: str, argument: str) -> dict[str, tuple[dict, RunConfig]]:
    """The points of a config file's sweep: overrides, and the config that they make."""
    path = ROOT / "configs" / f"{file}.py"
    spec = importlib.util.spec_from_file_location(f"config_{file}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found, usual = {}, load_config(f"{path}:{argument}" if argument else str(path))
    for name, overrides in module.sweep(argument):
        assert name not in found, f"two points are named {name}"
        config = open_maps(usual.copy_and_resolve_references())
        config.update_from_flattened_dict(overrides)
        found[name] = overrides, resolve(config)
    return found


@pytest.mark.parametrize(("file", "argument"), SWEEPS)
def test_every_point_resolves_and_starts_from_one_before_it(file, argument):
    """Guards against a misspelled key, sizes that do not fit, and a run that waits for one that comes later."""
    before = set()
    for name, (overrides, _) in points(file, argument).items():
        for value in overrides.values():
            if isinstance(value, str) and value.startswith("point:"):
                assert value.removeprefix("point:").removesuffix("/baseline") in before, (name, value)
        before.add(name)


def test_the_study_has_every_row_of_table_13_with_three_seeds():
    """Guards against a row that is missing, or that differs from the default in more than its own fields."""
    found = points("study", "")
    model = found["default,seed=0"][1].model
    for row in TABLE_13:
        if row.name == "no_retrieval":
            continue  # the baseline of `default`
        for seed in (0, 1, 2):
            _, run = found[f"{row.name},seed={seed}"]
            assert run.train.seed == seed
            assert (run.model == model) == (row.name == "default")
            assert run.data == found["default,seed=0"][1].data
