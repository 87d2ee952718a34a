"""Writes an opened model as a run directory: the checkpoint of step 0, config.json, and imported.json with its origin."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import optax

from retro_jax.config import RunConfig, check
from retro_jax.core.files import write_json
from retro_jax.interchange.importing import Source, place
from retro_jax.parallel.agreement import on_first
from retro_jax.parallel.sharding import Mesh, check_sizes, make_mesh, replicated
from retro_jax.run_directory.checkpoints import Checkpoints
from retro_jax.run_directory.directory import claim, identity
from retro_jax.run_directory.origin import RECORD
from retro_jax.run_directory.whole import steps
from retro_jax.train.state import TrainState


def require_empty(workdir: Path) -> None:
    """Raises ValueError where a run is in the directory already."""
    if (workdir / "config.json").exists() or any(step > 0 for step in steps(workdir / "checkpoints")):
        raise ValueError(f"{workdir} holds a run already; import into another --workdir.")


def run_of(source: Source) -> RunConfig:
    """The config of the run; raises ValueError where it is none."""
    run = RunConfig(model=source.model)
    check(run)
    return run


def save(source: Source, workdir: Path, tokenizer: str) -> None:
    """Places the model and writes its run directory; all processes call it.

    config.json is last, so that a directory without it is no run.

    Args:
      tokenizer: the fingerprint of its stage.
    """
    run, prints = run_of(source), {"tokenizer": tokenizer}
    # Nothing is trained here, so there are no moments; a run that starts from this one makes its own.
    mesh = _mesh(run)
    step = jax.device_put(np.zeros((), np.int32), replicated(mesh))
    state = TrainState(step, place(source, mesh), optax.identity().init({}))
    checkpoints = Checkpoints(workdir / "checkpoints", identity(run, prints))
    checkpoints.save(0, state, {})
    checkpoints.require_saved()
    checkpoints.close()
    on_first(lambda: write_json(workdir / RECORD, source.facts()))
    on_first(lambda: claim(workdir, run, prints))


def _mesh(run: RunConfig) -> Mesh:
    """Every device takes a part of the width; where it cannot be cut so, all hold copies."""
    cut = make_mesh(replace(run.train.mesh, data=1, fsdp=-1))
    try:
        check_sizes(replace(run, train=replace(run.train, batch=jax.device_count())), cut)
        return cut
    except ValueError:
        return make_mesh(run.train.mesh)
