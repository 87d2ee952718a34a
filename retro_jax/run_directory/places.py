"""Where the runs of a work directory are. No import of jax, so that mistakes on a command line answer at once."""

from pathlib import Path


def model_directory(workdir: Path) -> Path:
    """Where the model of a work directory is: WORKDIR/retro; without it, WORKDIR if that is a run, then WORKDIR/baseline."""
    workdir = Path(workdir)
    inside = workdir / "retro"
    if inside.exists():
        return inside
    if (workdir / "checkpoints").exists():
        return workdir
    return workdir / "baseline" if (workdir / "baseline").exists() else inside
