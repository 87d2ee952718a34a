"""Initial parameters: random, a trained decoder with a new encoder and CCA (retrofit, paper 4.2), or all of a RETRO model.

From a RETRO run a RETRO model takes every weight, to be fine-tuned (paper C.4). A retrofit loads every decoder weight of the
baseline bit for bit and sets the CCA output projections to zero, so that step 0 is the baseline, with retrieval On or Off.
With `config.train.trainable="retrieval"` only encoder and CCA train and Off always equals the baseline; "all" trains
everything from there.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from retro_jax.config import DECODER_KIND, RUNTIME, ModelConfig, RunConfig
from retro_jax.models.retro import zero_cca_updates
from retro_jax.parallel.sharding import Mesh
from retro_jax.run_directory.checkpoints import load_fingerprints, load_params
from retro_jax.run_directory.directory import read_config
from retro_jax.run_directory.whole import require_whole
from retro_jax.train.optimizer import group
from retro_jax.train.state import TrainState, create_state, initial_params

DECODER_FIELDS = ("vocabulary", "layers", "width", "heads", "head_dim", "feed_forward", *DECODER_KIND)
FREE = (*RUNTIME, "sequence_length")  # of a RETRO model: no weight depends on them


def initial_state(
    run: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh, fingerprints: dict
) -> TrainState:
    """The state at step 0.

    Raises:
      ValueError: a retrofit of a model without retrieval, or from a model of another shape or tokenizer.
    """
    check_start(run, fingerprints)
    if not run.train.initialize_from:
        return create_state(run, optimizer, mesh)
    source = Path(run.train.initialize_from)
    if takes_all(run, read_config(source)):
        return create_state(run, optimizer, mesh, load_params(source, mesh=mesh)[0])
    base, _, _ = load_params(source)
    return create_state(run, optimizer, mesh, graft(initial_params(run, mesh), base))


def check_start(run: RunConfig, fingerprints: dict) -> None:
    """Checks that a run can start, without loading an array; raises as `initial_state` does."""
    train = run.train
    if train.trainable == "retrieval" and not (run.model.retrieves and train.initialize_from):
        raise ValueError(
            "config.train.trainable='retrieval' trains encoder and CCA around a trained decoder; it needs "
            "config.train.initialize_from=RUN_DIRECTORY of a baseline and a model with config.model.retrieval_layers."
        )
    if train.initialize_from:
        source = Path(train.initialize_from)
        _require_same_sizes(run, read_config(source), source)
        _require_same_tokenizer(fingerprints["tokenizer"], source, require_whole(source))


def graft(params: dict, base: dict) -> dict:
    """`params` with the decoder of `base`, and with CCA outputs of zero; shardings are those of `params`."""
    decoder = {path: leaf for path, leaf in flatten_dict(base).items() if group(path) == "decoder"}
    placed = {
        # From the host: every process has read the whole decoder, and places its part.
        path: jax.device_put(np.asarray(decoder[path]), leaf.sharding) if path in decoder else leaf
        for path, leaf in flatten_dict(params).items()
    }
    grafted = unflatten_dict(placed)
    return zero_cca_updates(grafted) if "cross_attention" in grafted else grafted


def takes_all(run: RunConfig, base: RunConfig) -> bool:
    """Whether the run starts with all weights of the other, not with its decoder alone."""
    return run.model.retrieves and base.model.retrieves


def _require_same_sizes(run: RunConfig, base: RunConfig, source: Path) -> None:
    every = takes_all(run, base)
    fields = [
        f"config.model.{name} (there {there}, here {here})"
        for field in (_sizes(run.model) if every else DECODER_FIELDS)
        for name, there, here in _values(field, getattr(base.model, field), getattr(run.model, field))
        if there != here
    ]
    if fields:
        what = "RETRO model" if every else "decoder"
        raise ValueError(
            f"The {what} of {source} does not fit this model: {'; '.join(fields)}. Take the sizes of that run."
        )


def _sizes(model: ModelConfig) -> list[str]:
    return [one.name for one in dataclasses.fields(model) if one.name not in FREE]


def _values(name: str, there, here) -> list[tuple]:
    """(name, value there, value here) of a field, or of each field of a section."""
    if not dataclasses.is_dataclass(there):
        return [(name, there, here)]
    return [
        (f"{name}.{one.name}", getattr(there, one.name), getattr(here, one.name)) for one in dataclasses.fields(there)
    ]


def _require_same_tokenizer(tokenizer: str, source: Path, step: int) -> None:
    found = load_fingerprints(source, step)["tokenizer"]
    if found != tokenizer:
        raise ValueError(
            f"The model of {source} was trained with tokenizer {found[:16]}…, but this data has {tokenizer[:16]}…; "
            f"build the data with that tokenizer (config.data.tokenizer)."
        )
