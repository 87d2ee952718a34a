"""Weights & Biases beside metrics.jsonl, where `config.train.wandb_project` names a project. The only file that imports it."""

import sys
from collections.abc import Mapping
from pathlib import Path

from retro_jax.config import RunConfig, to_dict


class WandbBoard:
    """Sends records as they are written. WANDB_MODE=offline keeps them in WORKDIR/wandb, to be sent later."""

    def __init__(self, run: RunConfig, workdir: Path):
        try:
            import wandb
        except ModuleNotFoundError:
            raise ValueError(
                "config.train.wandb_project is set, but the package wandb is not there; it is the [wandb] extra: "
                "pip install 'retro_jax[wandb]', or leave the project empty."
            ) from None
        name = Path(workdir).absolute().name
        # The same name again continues the same curves after a resume.
        self._run = wandb.init(
            project=run.train.wandb_project, id=name, name=name, resume="allow", dir=str(workdir), config=to_dict(run)
        )
        self._told = False

    def write(self, step: int, record: Mapping) -> None:
        """A failure of the service is told once and does not touch the training."""
        try:
            self._run.log({key: value for key, value in record.items() if key != "step"}, step=step)
        except Exception as error:
            if not self._told:
                print(f"wandb: {error}; metrics.jsonl has everything.", file=sys.stderr)
            self._told = True

    def close(self) -> None:
        self._run.finish()


def open_board(run: RunConfig, workdir: Path) -> WandbBoard | None:
    """None where the config names no project."""
    return WandbBoard(run, workdir) if run.train.wandb_project else None
