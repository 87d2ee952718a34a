"""Sends metrics to Weights & Biases if `config.train.wandb_project` names a project. The only file that imports it."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from retro_jax.config import RunConfig, to_dict
from retro_jax.core.streams import side_channel


class WandbBoard:
    """Sends records as they are written. WANDB_MODE=offline keeps them in WORKDIR/wandb, to be sent later."""

    def __init__(self, run: RunConfig, workdir: Path):
        wandb = require_wandb(run)
        name = Path(workdir).absolute().name
        self._run, self._channel = None, side_channel("wandb")
        with self._channel:
            # The same name again continues the same curves after a resume.
            self._run = wandb.init(
                project=run.train.wandb_project,
                id=plain_id(name),
                name=name,
                resume="allow",
                dir=str(workdir),
                config=to_dict(run),
            )

    def write(self, step: int, record: Mapping) -> None:
        """A failure of the service is logged once; training continues."""
        if self._run is not None:
            with self._channel:
                self._run.log({key: value for key, value in record.items() if key != "step"}, step=step)

    def close(self) -> None:
        if self._run is not None:
            with self._channel:
                self._run.finish()


def require_wandb(run: RunConfig):
    """The package, or None where the config names no project.

    Raises:
      ValueError: it is not installed.
    """
    if not run.train.wandb_project:
        return None
    try:
        import wandb
    except ModuleNotFoundError:
        raise ValueError(
            "config.train.wandb_project is set, but the package wandb is not installed; it is the [wandb] extra: "
            "pip install 'retro_jax[wandb]', or leave the project empty."
        ) from None
    return wandb


def plain_id(name: str) -> str:
    """A valid run id: the name itself, or without the characters that the service refuses and with a digest."""
    plain = re.sub(r"[^\w.=,+-]", "-", name)[:100]
    return name if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def open_board(run: RunConfig, workdir: Path) -> WandbBoard | None:
    """None where the config names no project."""
    return WandbBoard(run, workdir) if run.train.wandb_project else None
