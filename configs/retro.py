"""RETRO at the sizes of the paper's Table 2: 172m, 425m, 1b5, 7b5; `,smoke` after a size shrinks it to a laptop.

    retro build --config=configs/retro.py:172m --workdir=runs/172m      # once; or --config.data.directory=DIR of another
    retro train --config=configs/retro.py:172m --workdir=runs/172m

Hardware: the full sizes are meant for accelerators (TPU pods or GPUs; set config.train.mesh) and for text of their own:
the packages named here are megabytes, the paper read 419 billion tokens of 600 billion in its database.
`:172m,smoke` builds and trains in a few minutes on 2 CPU cores.
Expected, from the paper's Table 14 (C4 bits per byte, retrieval on): .82, .77, .71, .66. Not reproduced here: neither
MassiveText nor C4 ships in a package.
"""

from retro_jax.sizes import RETRO, paper_config


def get_config(argument: str = ""):
    return paper_config(argument, RETRO)
