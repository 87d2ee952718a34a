"""Table 14 and Figures 1 and 5 of the paper: four sizes with their baselines, each retrofitted too; `smoke` shrinks all to a laptop.

    retro sweep --config=configs/table_14.py --workdir=runs/table_14 --topology=v5p:8x8x4 --plan
    retro sweep --config=configs/table_14.py:smoke --workdir=runs/table_14-smoke
    retro sweep --config=configs/table_14.py --workdir=runs/table_14 --only=172m      # one size; later calls add others

Each RETRO model is also evaluated with smaller databases (evaluate.tried_shares: nested shares of the documents) and with other
numbers of neighbors (evaluate.tried_neighbors). A retrofit starts from the baseline of its size (configs/retrofit.py).
Hardware: a v5p:8x8x4 (256 chips), for which 7b5 has its mesh and accumulation here. By the roofline of `--plan`, a lower
bound: 37,868 chip-hours, 25,772 of them for 7b5.
Expected, C4 bits per byte at 172m to 7b5: baseline .98 .92 .84 .78, Off the same, On .82 .77 .71 .66; with half of the database
.88 .83 .76 .71, with a thousandth .97 .91 .84 .78; best at k from 4 to 30. Retrofits end close to training from scratch. Not
reproduced here at these sizes; docs/measured/study.md has a small form.
"""

from collections.abc import Iterator

from retro_jax.presets.overrides import Overrides, differences
from retro_jax.presets.recipes import RECIPES, set_recipe
from retro_jax.presets.sizes import RETRO, paper_config, retrofit_schedule, split_argument

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of 1.75T tokens, about the paper's 2B to 900B
NEIGHBORS = (1, 3, 4, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)  # besides the 2 of training
SMALLEST, SLICE = "172m", "v5p:8x8x4"


def get_config(argument: str = ""):
    smoke = "smoke" in split_argument(argument, ["smoke"])
    config = paper_config(f"{SMALLEST},smoke" if smoke else SMALLEST, RETRO)
    config.evaluate.tried_shares = (0.1, 0.5) if smoke else SHARES
    config.evaluate.tried_neighbors = (1, 4) if smoke else NEIGHBORS
    return config


def sweep(argument: str = "") -> Iterator[tuple[str, Overrides]]:
    smoke = "smoke" in split_argument(argument, ["smoke"])
    usual = get_config(argument)
    for name in RETRO:
        config = paper_config(f"{name},smoke" if smoke else name, RETRO)
        if not smoke and (name, SLICE) in RECIPES:
            set_recipe(config, RECIPES[name, SLICE])
        yield name, differences(usual, config)
        retrofit_schedule(config, shrunk=smoke)
        config.train.accumulation = 1  # a quarter of 7b5's batch
        config.train.initialize_from = f"point:{name}/baseline"
        yield f"{name}-retrofit", differences(usual, config)
