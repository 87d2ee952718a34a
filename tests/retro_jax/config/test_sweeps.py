"""Every point of every sweep in `configs/` resolves, has a name of its own, and starts from points before it."""

import dataclasses
import importlib.util
from functools import cache

import pytest
from places import ROOT

from launch.command.config_files import load_config
from retro_jax.config import MeshConfig, RunConfig, open_maps, resolve
from retro_jax.presets.ablations import TABLE_13
from retro_jax.presets.recipes import RECIPES

SWEEPS = [
    *(
        (file, argument)
        for file in ("study", "table_13", "table_14", "retrofit_imported")
        for argument in ("", "smoke")
    ),
    *(("wikitext103", argument) for argument in ("FOLDER", "FOLDER,smoke")),
]


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


def test_the_retrofits_differ_in_start_and_in_what_trains_alone():
    """Guards against a comparison at unequal tokens, or of decoders of two seeds."""
    found = points("retrofit_imported", "")
    same = [(run.train.steps, run.train.batch, run.model.sequence_length, run.data) for _, run in found.values()]
    assert len(same) == 12 and all(one == same[0] for one in same)
    for seed in (0, 1, 2):
        scratch, frozen, everything, alone = (
            found[f"{name},seed={seed}"][1] for name in ("from_scratch", "frozen", "everything", "continued")
        )
        start = f"point:from_scratch,seed={seed}/baseline"
        assert scratch.model == frozen.model == everything.model and not alone.model.retrieves
        assert [run.train.initialize_from for run in (scratch, frozen, everything, alone)] == ["", start, start, start]
        trains = [run.train.trainable for run in (scratch, frozen, everything, alone)]
        assert trains == ["all", "retrieval", "all", "all"] and frozen.train.seed == seed


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


def test_table_13_is_at_the_papers_schedule():
    """Guards against the steps of pre-training, and rows that are not the paper's at 12 layers."""
    found = {name: run for name, (_, run) in points("table_13", "").items()}
    assert list(found) == [row.name for row in TABLE_13]
    tokens = {run.train.steps * run.train.batch * run.model.sequence_length for run in found.values()}
    assert tokens == {157_286_400_000}
    assert found["deeper_encoder"].model.encoder.layers == 6
    layers = {name: run.model.retrieval_layers for name, run in found.items()}
    assert layers["default"] == (6, 9, 12) and layers["no_retrieval"] == ()
    assert (layers["first_layer"], layers["middle_layer"], layers["last_layer"]) == ((1,), (6,), (12,))
    assert layers["all_layers"] == tuple(range(1, 13)) and layers["thirds_from_1"] == (1, 4, 7, 10)


def test_table_14_has_four_sizes_and_their_retrofits():
    """Guards against a size that differs from configs/retro.py, or a retrofit from configs/retrofit.py."""
    found = points("table_14", "")
    for size in ("172m", "425m", "1b5", "7b5"):
        plain, retrofit = (resolve(load_config(f"{ROOT}/configs/{file}.py:{size}")) for file in ("retro", "retrofit"))
        _, run = found[size]
        usual = {"mesh": MeshConfig(), "accumulation": 1}  # 7b5 has those of its recipe, and its remat
        assert dataclasses.replace(run.model, remat="full") == plain.model
        assert dataclasses.replace(run.train, **usual) == plain.train
        overrides, fitted = found[f"{size}-retrofit"]
        assert overrides["train.initialize_from"] == f"point:{size}/baseline"
        usual["initialize_from"] = retrofit.train.initialize_from
        assert dataclasses.replace(fitted.train, **usual) == retrofit.train
    run, recipe = found["7b5"][1], RECIPES["7b5", "v5p:8x8x4"]
    assert (run.train.mesh, run.train.accumulation, run.model.remat) == (recipe.mesh, recipe.accumulation, recipe.remat)
    assert len(run.evaluate.tried_shares) == 9 and run.evaluate.tried_neighbors[-1] == 100


def test_wikitext_103_is_the_papers():
    """Guards against the main text's 24 layers (C.2 says 18), and training on Wikipedia."""
    found = {name: run for name, (_, run) in points("wikitext103", "FOLDER").items()}
    model, train = found["retrofit"].model, found["retrofit"].train
    assert (model.layers, model.width, model.feed_forward, model.heads, model.head_dim) == (18, 1024, 4096, 16, 64)
    assert (model.sequence_length, model.retrieval_layers) == (3072, (6, 9, 12, 15, 18)) and model.shared_embeddings
    assert (train.batch, train.steps, train.warmup_steps, train.learning_rate) == (128, 100_000, 4_000, 2.5e-4)
    assert train.learning_rate * train.final_fraction == pytest.approx(2e-5)
    assert train.subset_weights == {"wikitext": 1.0, "wikipedia": 0.0}
    assert not found["baseline"].model.retrieves
