"""Measures validation losses with neighbors, without, and with another chunk's, and raises an alarm when On is not better.

A RETRO model can train, look healthy and ignore its neighbors. The sign is cheap to read while it trains: On is not below
random neighbors.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from retro_jax.config import RunConfig
from retro_jax.data.batches import make_batch, random_neighbors, used_neighbors, validation_examples
from retro_jax.parallel.sharding import Mesh, place_whole
from retro_jax.train.step import make_loss_step

BATCHES = 4  # fixed validation batches, spread evenly over the split


class RetrievalCheck:
    """The fixed batches and the compiled losses."""

    def __init__(self, run: RunConfig, joined: Path, mesh: Mesh):
        examples = validation_examples(joined, run.model)
        chosen = np.linspace(0, len(examples) - 1, BATCHES * run.train.batch).astype(int)
        batches = [
            make_batch(examples.__getitems__(part.tolist()), used_neighbors(run.model))
            for part in np.split(chosen, BATCHES)
        ]
        self.pairs = [
            (_placed(batch, mesh), _placed(random_neighbors(batch, seed), mesh)) for seed, batch in enumerate(batches)
        ]
        self.loss = make_loss_step(run.model, mesh, run.train.accumulation)  # where a step fits, a check fits

    @staticmethod
    def when_due(run: RunConfig, joined: Path, mesh: Mesh) -> "RetrievalCheck | None":
        """None for a model without retrieval, or where the config turns the check off."""
        wanted = run.model.retrieves and run.model.neighbors and run.train.retrieval_check_every
        return RetrievalCheck(run, joined, mesh) if wanted else None

    def losses(self, params: dict, stop: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """`validation_loss_on`, `_off`, `_random` in nats a token; None where `stop`, asked after every batch, says so."""
        sums = []
        for real, mixed in self.pairs:
            three = (
                self.loss(params, real, real.neighbor_tokens),
                self.loss(params, real, None),
                self.loss(params, real, mixed.neighbor_tokens),
            )
            sums.append(jax.device_get(three))
            if stop():
                return None
        nats, tokens = np.asarray(sums, np.float64).sum(axis=0).T
        on, off, random = nats / np.maximum(tokens, 1)
        return {"validation_loss_on": on, "validation_loss_off": off, "validation_loss_random": random}


def _placed(batch, mesh: Mesh):
    return jax.tree.map(partial(place_whole, mesh=mesh), batch)
