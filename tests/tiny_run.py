"""A config file for `retro train` in processes of its own: runs that compile in seconds.

tests/tiny_run.py          the RETRO of tests/training_fixture.py
tests/tiny_run.py:small    one layer of it, with a retrieval check every four steps
tests/tiny_run.py:decoder  one layer of its decoder
"""

import dataclasses

from ml_collections import ConfigDict
from training_fixture import BASELINE, MODEL, make_run

from retro_jax.config import to_dict

STEPS, EVERY = 12, 3  # of a run, and between its checkpoints


def get_config(argument: str = "") -> ConfigDict:
    models = {
        "": MODEL,
        "small": dataclasses.replace(MODEL, layers=1, retrieval_layers=(1,)),
        "decoder": dataclasses.replace(BASELINE, layers=1),
    }
    run = make_run(
        models[argument], steps=STEPS, checkpoint_every=EVERY, retrieval_check_every=4 if argument == "small" else 0
    )
    return ConfigDict(to_dict(run))
