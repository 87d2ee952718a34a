"""The paper's baselines, decoders without retrieval: 132m, 368m, 1b3, 7b (Table 2); `,smoke` shrinks one to a laptop.

    retro train --config=configs/baseline.py:132m --workdir=runs/132m --config.data.directory=runs/172m/data

It reads the joined shards of its RETRO model without the neighbors, so both train on the same tokens in the same order.
Hardware: as configs/retro.py. `:132m,smoke` trains in a minute on 2 CPU cores after the build.
Expected, from the paper's Table 14 (C4 bits per byte): .98, .92, .84, .78. Not reproduced here, see configs/retro.py.
"""

from retro_jax.presets.sizes import BASELINE, paper_config


def get_config(argument: str = ""):
    return paper_config(argument, BASELINE)
