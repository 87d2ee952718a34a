"""Where the runs of a work directory are. No import of jax, so that mistakes on a command line answer at once."""

from pathlib import Path


def model_directory(workdir: Path) -> Path:
    """Where the RETRO model of a work directory is: WORKDIR/retro, or WORKDIR where that alone holds a run."""
    inside = Path(workdir) / "retro"
    return Path(workdir) if not inside.exists() and (Path(workdir) / "checkpoints").exists() else inside
