"""RETRO at the sizes of the paper's Table 2: 172m, 425m, 1b5, 7b5; `,smoke` after a size shrinks it to a laptop.

    retro build --config=configs/retro.py:172m --workdir=runs/172m      # once; or --config.data.directory=DIR of another
    retro train --config=configs/retro.py:172m --workdir=runs/172m

A slice after the size takes its mesh, remat and accumulation (`:7b5,v5p-8x8x4`; docs/measured/scaling.md lists them):

    retro preflight --config=configs/retro.py:7b5 --topology=v5p:8x8x4      # does it fit, what will it cost

Hardware: the full sizes are meant for accelerators (TPU pods or GPUs; set config.train.mesh) and for text of their own:
the packages named here are megabytes, the paper read 419 billion tokens of 600 billion in its database.
`:172m,smoke` builds and trains in a few minutes on 2 CPU cores.
Expected, from the paper's Table 14 (C4 bits per byte, retrieval on): .82, .77, .71, .66. Not reproduced here: neither
MassiveText nor C4 ships in a package.
"""

from retro_jax.presets.recipes import RECIPES, WORDS, set_recipe
from retro_jax.presets.sizes import RETRO, paper_config, split_argument


def get_config(argument: str = ""):
    words = split_argument(argument, [*RETRO, "smoke", *WORDS])
    slices = sorted(words & set(WORDS))
    config = paper_config(",".join(sorted(words - set(slices))), RETRO)
    if not slices:
        return config
    size, topology = min(words & set(RETRO)), slices[0].replace("-", ":")
    if len(slices) > 1 or "smoke" in words or (size, topology) not in RECIPES:
        known = ", ".join(name.replace(":", "-") for of, name in RECIPES if of == size)
        raise ValueError(f"'{argument}' needs one slice that {size} has a recipe for, and no smoke: {known}.")
    set_recipe(config, RECIPES[size, topology])
    return config
