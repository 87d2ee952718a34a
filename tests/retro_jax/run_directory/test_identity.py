"""A run directory that an earlier version wrote belongs to the same run under this one."""

import dataclasses
import json

from retro_jax.config import RunConfig, completed, to_dict
from retro_jax.run_directory.identity import differing_fields

LATER = {  # keys that came after the first run directories
    "model": ("positions", "rotary_scaling", "key_heads", "tied_readout", "neighbor_parts", "shared_embeddings"),
    "train": ("keep_also", "on_spike"),
}


def stored(run: RunConfig) -> dict:
    """As a run directory holds it: tuples are lists."""
    return json.loads(json.dumps(to_dict(run)))


def test_a_run_from_before_new_keys_and_a_chosen_attention_continues():
    """Guards against refusing old runs: a default that is a tuple, a key of a section in a section, attention "auto"."""
    old = stored(RunConfig())
    for section, names in LATER.items():
        for name in names:
            del old[section][name]
    del old["model"]["encoder"]["cross_attention_layers"]
    old["model"] |= {"attention": "xla", "scan": True}  # before they were "auto"
    for now in (to_dict(RunConfig()), stored(RunConfig())):
        assert differing_fields(completed(old), now) == []


def test_another_model_is_another_run():
    run = RunConfig()
    other = dataclasses.replace(run, model=dataclasses.replace(run.model, retrieval_layers=(2,)))
    assert differing_fields(stored(run), to_dict(other)) == ["model.retrieval_layers (there [6, 9, 12], now (2,))"]
