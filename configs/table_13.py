"""Table 13 of the paper: what RETRO's parts are worth, each row a point beside the default; `smoke` shrinks it to a laptop.

    retro sweep --config=configs/table_13.py --workdir=runs/table_13 --topology=v5p:2x2x4 --plan
    retro sweep --config=configs/table_13.py:smoke --workdir=runs/table_13-smoke

The 172M model on a schedule of 300,000 steps of 256 sequences (157B tokens), with one baseline for all rows (`no_retrieval`).
Rows and the paper's figures: retro_jax/presets/ablations.py.
Hardware: as configs/retro.py:172m. By the roofline of `--plan`, a lower bound: 5,220 chip-hours on v5p:2x2x4 (357 for the
default, by `retro preflight`), 4,883 on h100:64.
Expected, C4 bits per byte: .822 for the default, .950 with N alone, .895 with F alone, .987 without retrieval, .858 and .847 with 1
and 4 neighbors in training, .821 to .860 for the rest. Not reproduced here at this size; docs/measured/study.md has a small form.
"""

from collections.abc import Iterator

from retro_jax.config import resolve
from retro_jax.presets.ablations import TABLE_13
from retro_jax.presets.overrides import Overrides
from retro_jax.presets.sizes import RETRO, paper_config, split_argument

STEPS = 300_000


def get_config(argument: str = ""):
    smoke = "smoke" in split_argument(argument, ["smoke"])
    config = paper_config("172m,smoke" if smoke else "172m", RETRO)
    if not smoke:
        config.train.steps = STEPS
    return config


def sweep(argument: str = "") -> Iterator[tuple[str, Overrides]]:
    model = resolve(get_config(argument)).model
    for row in TABLE_13:
        yield row.name, row.overrides(model)
