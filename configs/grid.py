"""A grid of learning rates and batch sizes for one size of the paper: 172m, 425m, 1b5, 7b5; `,smoke` shrinks it.

    retro sweep --config=configs/grid.py:smoke --workdir=runs/grid-smoke          # 4 points, a few minutes on 2 CPU cores
    retro sweep --config=configs/grid.py:172m --workdir=runs/grid --topology=v5p:2x2x1 --plan

Every point trains on the same number of tokens, a tenth of the paper's, with its baseline. `smoke` alone is `172m,smoke`.
Hardware: as configs/retro.py, for each point; `--plan` gives the cost on a slice. Expected: unknown. The paper states one
learning rate and one batch for each size (C.1) and reports no grid.
"""

from retro_jax.presets.sizes import RETRO, paper_config, split_argument

SHARE = 10  # of the paper's steps, one in so many
RATES = (0.5, 1.0, 2.0)  # times the size's own
BATCHES = (0.5, 1.0, 2.0)


def _argument(argument: str) -> str:
    words = split_argument(argument, [*RETRO, "smoke"])
    return argument if words & set(RETRO) else f"172m,{argument}".rstrip(",")


def get_config(argument: str = ""):
    config = paper_config(_argument(argument), RETRO)
    if "smoke" not in argument:
        config.train.steps //= SHARE
    return config


def sweep(argument: str = ""):
    config = get_config(argument)
    smoke = "smoke" in argument
    for rate in RATES[1:] if smoke else RATES:
        for batch in BATCHES[1:] if smoke else BATCHES:
            size = int(config.train.batch * batch)
            changes = {"train.learning_rate": config.train.learning_rate * rate, "train.batch": size}
            changes["train.steps"] = config.train.steps * config.train.batch // size
            yield f"learning_rate={changes['train.learning_rate']:g},batch={size}", changes
