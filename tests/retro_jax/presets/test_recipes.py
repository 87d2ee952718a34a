"""Recipes, and goldens of the shapes and shardings of all eight sizes.

RETRO_UPDATE_GOLDENS=1 python -m pytest tests/retro_jax/presets/test_recipes.py      # rewrites tests/fixtures/golden after an intended change
"""

import json
import math
import os
from dataclasses import replace

import jax
import pytest
from flax.traverse_util import flatten_dict
from places import FIXTURES, ROOT

from launch.command.config_files import load_config
from retro_jax.config import MeshConfig, resolve
from retro_jax.models.retro import abstract_model
from retro_jax.parallel.sharding import check_sizes, mesh_sizes, parameter_specs, shardings
from retro_jax.preflight.estimate import memory_gib
from retro_jax.presets.recipes import RECIPES, XLA_RECIPES, recipe_for, size_of
from retro_jax.presets.topologies import parse_topology
from retro_jax.train.optimizer import make_optimizer

GOLDEN = FIXTURES / "golden"
SIZES = [("retro", name) for name in ("172m", "425m", "1b5", "7b5")]
SIZES += [("baseline", name) for name in ("132m", "368m", "1b3", "7b")]
LARGE = 1_000_000  # numbers; a leaf of more is cut


def run_of(argument, file="retro"):
    return resolve(load_config(f"{ROOT}/configs/{file}.py:{argument}"))


@pytest.mark.parametrize(("file", "size"), SIZES)
def test_shapes_and_shardings_are_the_golden_ones(file, size):
    params = abstract_model(run_of(size, file).model)[1]
    specs = flatten_dict(parameter_specs(params))
    found = {
        "/".join(path): [list(leaf.shape), str(leaf.dtype), list(specs[path])]
        for path, leaf in flatten_dict(params).items()
    }
    path = GOLDEN / f"{size}.json"
    if os.environ.get("RETRO_UPDATE_GOLDENS") == "1":
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in sorted(found.items())]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    assert json.loads(path.read_text()) == found


BOTH = [(recipe, "auto") for recipe in RECIPES.values()] + [(recipe, "xla") for recipe in XLA_RECIPES.values()]


@pytest.mark.parametrize(
    ("recipe", "attention"), BOTH, ids=[f"{recipe.size}-{recipe.topology}-{attention}" for recipe, attention in BOTH]
)
def test_a_recipe_fits_its_slice_and_cuts_what_is_large(recipe, attention):
    topology, run = parse_topology(recipe.topology), recipe.apply(run_of(recipe.size))
    run = replace(run, model=replace(run.model, attention=attention))
    sizes = mesh_sizes(run.train.mesh, topology.devices)
    check_sizes(run, sizes)
    assert memory_gib(run, sizes, topology.chip)["total"] <= topology.memory_gib
    params = abstract_model(run.model)[1]
    specs = flatten_dict(parameter_specs(params))
    for path, leaf in flatten_dict(params).items():
        cuts = math.prod(sizes[axis] for axis in jax.tree.leaves(tuple(specs[path])) if axis)
        assert leaf.size < LARGE or cuts == sizes["fsdp"] * sizes["tensor"], path
    assert run.train.batch * run.model.sequence_length * run.train.steps == 419_430_400_000


@pytest.mark.parametrize(("file", "size"), SIZES)
def test_moments_are_cut_like_their_parameters(file, size):
    """No device holds whole moments, in any size; `create_state` gives the optimizer these shardings."""
    from retro_jax.parallel.sharding import make_mesh

    run = run_of(size, file)
    mesh, params = make_mesh(MeshConfig(2, 2, 2)), abstract_model(run.model)[1]
    moments = jax.eval_shape(make_optimizer(run.train).init, params)[1][0]
    of_params = shardings(params, mesh)
    assert shardings(moments.mu, mesh) == of_params == shardings(moments.nu, mesh)


def test_a_word_after_the_size_applies_the_recipe():
    run = run_of("7b5,v5p-8x8x4")
    assert run == RECIPES["7b5", "v5p:8x8x4"].apply(run_of("7b5")) != run_of("7b5")


@pytest.mark.parametrize("argument", ["172m,v5p-8x8x4", "7b5,v5p-8x8x4,smoke", "7b5,v5p-8x8x4,v5e-16x16"])
def test_a_recipe_that_there_is_not(argument):
    with pytest.raises(ValueError, match="needs one slice that .* has a recipe for"):
        run_of(argument)


def test_a_recipe_is_applied_where_the_config_asks_for_no_mesh():
    run, topology = run_of("7b5"), parse_topology("v5p:8x8x4")
    assert recipe_for(run, topology) == RECIPES["7b5", "v5p:8x8x4"]
    by_xla = replace(run, model=replace(run.model, attention="xla"))
    assert recipe_for(by_xla, topology) == XLA_RECIPES["7b5", "v5p:8x8x4"]
    own = replace(run, train=replace(run.train, mesh=MeshConfig(1, 128, 2)))
    assert recipe_for(own, topology) is None and recipe_for(run, parse_topology("v5p:2x2x1")) is None
    assert recipe_for(run_of("7b", "baseline"), topology) == RECIPES["7b5", "v5p:8x8x4"]
    assert size_of(run_of("7b5,smoke").model) is None
