"""Meshes, remat and accumulation with which the paper's sizes fit, at the paper's batch, on named slices.

    retro train --config=configs/retro.py:7b5,v5p-8x8x4 --workdir=...       # the word after the size takes a recipe

Memory and roofline of each are in docs/measured/scaling.md, which `make scaling` writes.
"""

from dataclasses import dataclass, replace

from ml_collections import ConfigDict

from retro_jax.config import MeshConfig, ModelConfig, RunConfig, to_dict
from retro_jax.presets.sizes import RETRO
from retro_jax.presets.topologies import Topology


@dataclass(frozen=True)
class Recipe:
    """How one size runs on one slice; sequences a micro-batch are batch / (data x fsdp x accumulation)."""

    size: str
    topology: str
    mesh: MeshConfig
    accumulation: int
    remat: str = "full"
    loss_block: int = 8192

    def apply(self, run: RunConfig) -> RunConfig:
        return replace(
            run,
            model=replace(run.model, remat=self.remat, loss_block=self.loss_block),
            train=replace(run.train, mesh=self.mesh, accumulation=self.accumulation),
        )


def set_recipe(config: ConfigDict, recipe: Recipe) -> None:
    """Sets what the recipe sets in a config."""
    config.model.update(remat=recipe.remat, loss_block=recipe.loss_block)
    config.train.accumulation = recipe.accumulation
    config.train.mesh.update(to_dict(recipe.mesh))


def _recipes(
    size: str, batch: int, slices: dict[str, tuple[int, int, int]], sequences: int = 1, remat: str = "full"
) -> list[Recipe]:
    """The recipe with this many sequences a device and micro-batch."""
    return [
        Recipe(size, name, MeshConfig(*mesh), accumulation=batch // (mesh[0] * mesh[1] * sequences), remat=remat)
        for name, mesh in slices.items()
    ]


def _known(*recipes: Recipe) -> dict[tuple[str, str], Recipe]:
    return {(recipe.size, recipe.topology): recipe for recipe in recipes}


V4 = {"v4:2x2x4": (1, 16, 1)}
SIXTEEN = {"v5e:4x4": (1, 16, 1), "v5p:2x2x4": (1, 16, 1), "v6e:4x4": (1, 16, 1)}
SIXTY_FOUR = {"v5e:8x8": (1, 64, 1), "v5p:4x4x4": (1, 64, 1), "v6e:8x8": (1, 64, 1)}
LARGE = {"v5e:16x16": (2, 64, 2), "v5p:8x8x4": (4, 64, 1), "v6e:16x16": (4, 64, 1)}
A100 = {"a100:8": (1, 8, 1), "a100:64": (8, 8, 1)}
GPUS = {"h100:8": (1, 8, 1), "h100:64": (8, 8, 1), **A100}

# TPUs and H100s whose self-attention is a kernel, which leaves no scores in memory: data parallel where parameters and moments fit,
# several sequences a micro-batch, and matmuls kept for the backward pass.
RECIPES = _known(
    *_recipes("172m", 256, V4),
    *_recipes("172m", 256, {"v5e:4x4": (16, 1, 1)}, 1, "dots"),
    *_recipes("172m", 256, {"v5p:2x2x4": (16, 1, 1)}, 4, "dots"),
    *_recipes("172m", 256, {"v6e:4x4": (16, 1, 1)}, 4, "dots"),
    *_recipes("425m", 256, V4),
    *_recipes("425m", 256, {"v5e:4x4": (1, 16, 1)}, 1, "dots"),
    *_recipes("425m", 256, {"v5p:2x2x4": (16, 1, 1)}, 4, "dots"),
    *_recipes("425m", 256, {"v6e:4x4": (1, 16, 1)}, 4, "dots"),
    *_recipes("1b5", 256, {"v4:4x4x4": (1, 64, 1)}),
    *_recipes("1b5", 256, {"v5e:8x8": (1, 64, 1)}, 1, "dots"),
    *_recipes("1b5", 256, {"v5p:4x4x4": (64, 1, 1)}, 4, "dots"),
    *_recipes("1b5", 256, {"v6e:8x8": (1, 64, 1)}, 4, "dots"),
    *_recipes("7b5", 1024, {"v4:8x8x4": (4, 64, 1)}),
    *_recipes("7b5", 1024, {"v5e:16x16": (4, 64, 1)}, 1),
    *_recipes("7b5", 1024, {"v5p:8x8x4": (4, 64, 1)}, 2, "dots"),
    *_recipes("7b5", 1024, {"v6e:16x16": (4, 64, 1)}, 2, "dots"),
    *_recipes("172m", 256, {"h100:8": (1, 8, 1)}, 16, "dots"),
    *_recipes("172m", 256, {"h100:64": (8, 8, 1)}, 4, "dots"),
    *_recipes("172m", 256, A100, 4),
    *_recipes("425m", 256, GPUS, 4),
    *_recipes("1b5", 256, GPUS, 4),
    *_recipes("7b5", 1024, GPUS, 2),
)
# The same with config.model.attention="xla": one sequence at a time, whose scores decide the memory.
XLA_RECIPES = _known(
    *_recipes("172m", 256, SIXTEEN),
    *_recipes("172m", 256, GPUS, 4),
    *_recipes("425m", 256, SIXTEEN),
    *_recipes("1b5", 256, SIXTY_FOUR),
    *_recipes("7b5", 1024, LARGE),
)
WORDS = sorted({topology.replace(":", "-") for _, topology in RECIPES})


def size_of(model: ModelConfig) -> str | None:
    """The paper's size with the decoder of `model` (a baseline's is that of its RETRO), at its vocabulary and length."""
    shape = (model.width, model.feed_forward, model.heads, model.head_dim, model.layers)
    if (model.vocabulary, model.sequence_length) != (128_000, 2_048):
        return None
    named = {(s.width, s.feed_forward, s.heads, s.head_dim, s.layers): name for name, s in RETRO.items()}
    return named.get(shape)


def recipe_for(run: RunConfig, topology: Topology) -> Recipe | None:
    """The recipe of this run's size on this topology, if there is one and the config has no values of its own."""
    usual = ModelConfig()
    own = run.train.mesh != MeshConfig() or run.train.accumulation != 1
    own = own or (run.model.remat, run.model.loss_block) != (usual.remat, usual.loss_block)
    known = RECIPES | (XLA_RECIPES if run.model.attention == "xla" else {})
    recipe = None if own else known.get((size_of(run.model), topology.name))
    fits_batch = recipe and run.train.batch % (recipe.mesh.data * recipe.mesh.fsdp * recipe.accumulation) == 0
    return recipe if fits_batch else None
