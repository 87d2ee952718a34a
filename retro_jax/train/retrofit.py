"""Initial parameters: random, or a trained decoder with a new encoder and CCA (retrofit, paper 4.2).

A retrofit loads every decoder weight of the baseline bit for bit and sets the CCA output projections to zero, so that
step 0 is the baseline, with retrieval On or Off. With `config.train.trainable="retrieval"` only encoder and CCA train
and Off always equals the baseline; "all" trains everything from there.
"""

from pathlib import Path

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from retro_jax.config import RunConfig
from retro_jax.models.retro import zero_cca_outputs
from retro_jax.parallel.sharding import Mesh
from retro_jax.run_directory.checkpoints import load_fingerprints, load_params
from retro_jax.run_directory.directory import read_config
from retro_jax.run_directory.whole import require_whole
from retro_jax.train.optimizer import group
from retro_jax.train.state import TrainState, create_state, initial_params

DECODER_FIELDS = ("vocabulary", "layers", "width", "heads", "head_dim", "feed_forward")


def initial_state(
    run: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh, fingerprints: dict
) -> TrainState:
    """The state at step 0.

    Raises:
      ValueError: a retrofit of a model without retrieval, or from a decoder of another shape or tokenizer.
    """
    check_start(run, fingerprints)
    if not run.train.initialize_from:
        return create_state(run, optimizer, mesh)
    base, _, _ = load_params(Path(run.train.initialize_from))
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
        _require_same_decoder(run, read_config(source), source)
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
    return zero_cca_outputs(grafted) if "cross_attention" in grafted else grafted


def _require_same_decoder(run: RunConfig, base: RunConfig, source: Path) -> None:
    fields = [
        f"config.model.{name} (there {getattr(base.model, name)}, here {getattr(run.model, name)})"
        for name in DECODER_FIELDS
        if getattr(base.model, name) != getattr(run.model, name)
    ]
    if fields:
        raise ValueError(
            f"The decoder of {source} does not fit this model: {'; '.join(fields)}. Take the sizes of that run."
        )


def _require_same_tokenizer(tokenizer: str, source: Path, step: int) -> None:
    found = load_fingerprints(source, step)["tokenizer"]
    if found != tokenizer:
        raise ValueError(
            f"The decoder of {source} was trained with tokenizer {found[:16]}…, but this data has {tokenizer[:16]}…; "
            f"build the data with that tokenizer (config.data.tokenizer)."
        )
