"""Stops a run that has made progress and has no whole checkpoint left, unless --restart is given.

RUN/saved.json holds the step of the last checkpoint that became whole, 0 before the first. It lies outside of checkpoints/,
so that it survives when those are deleted. Runs of earlier versions lack it; their metrics are read instead.
"""

import sys
from pathlib import Path

from retro_jax.core.files import write_json
from retro_jax.core.side_files import free_name, read_object, set_aside
from retro_jax.run_directory.whole import describe_faults, find_whole, steps, whole_path
from retro_jax.train.metrics import parse_metrics

PROGRESS = ("metrics.jsonl", "metrics.abandoned.jsonl", "seconds.json", "saved.json", "checkpoints")


def note_saved(workdir: Path, step: int) -> None:
    """Records in saved.json that the checkpoint of `step` is whole."""
    write_json(Path(workdir) / "saved.json", {"step": step})


def begin_notes(workdir: Path, step: int) -> None:
    """Writes saved.json if it is missing; `step` is that of the newest whole checkpoint, or 0."""
    try:
        if read_object(workdir / "saved.json") is not None:
            return
    except ValueError as error:
        set_aside(workdir / "saved.json", str(error), "it is rewritten")
    note_saved(workdir, step)


def tell_others(workdir: Path, step: int, restart: bool) -> None:
    """Logs what the user of a run that continues from `step` may not expect."""
    if restart:
        print(
            f"train: step {step} has a whole checkpoint, so the run continues from it in spite of --restart.",
            file=sys.stderr,
        )
    if (saved := _saved_step(workdir)) is not None and saved > step:
        print(
            f"checkpoint: step {saved} was saved and is now missing or damaged; continuing from step {step}.",
            file=sys.stderr,
        )


def require_no_progress(workdir: Path, every: int, restart: bool = False) -> None:
    """Lets a run without a whole checkpoint begin at step 0, or raises ValueError.

    Args:
      every: steps between checkpoints, for a run whose config.json does not say.
      restart: move the signs of progress aside instead of stopping.

    Raises:
      ValueError: something in the directory shows progress; it is named, and what is wrong with each checkpoint.
    """
    # The first save ends before the second begins: without a record, the run was killed before that.
    noted = _saved_step(workdir) is not None
    every = _interval(workdir) or every
    signs = signs_of_progress(workdir, 2 * every if noted else every - 1)
    if not signs:
        return
    aside = free_name(workdir / "before", "restart")
    if not restart:
        _, faults = find_whole(workdir / "checkpoints")
        described = describe_faults(faults) or f"there is none in {workdir / 'checkpoints'}"
        raise ValueError(
            f"{workdir} shows progress ({'; '.join(signs)}), but no checkpoint is whole: {described}. Nothing was changed. "
            f"Restore a whole checkpoint if you have a copy, and run the same command again. Or start again from step 0 "
            f"with --restart, which moves what is here to {aside}; or use another --workdir."
        )
    aside.mkdir()
    for path in sorted(workdir.iterdir()):
        if path.name in PROGRESS or path.name.startswith("events.out.tfevents"):
            path.rename(aside / path.name)
    print(f"train: starting again from step 0; what was in {workdir} is kept in {aside}.", file=sys.stderr)


def signs_of_progress(workdir: Path, allowed: int) -> list[str]:
    """Evidence that a checkpoint was whole once, or that more than `allowed` steps were trained, as phrases."""
    saved, folder, signs = _saved_step(workdir), workdir / "checkpoints", []
    if saved:
        signs.append(f"saved.json: step {saved} was saved")
    for name in ("metrics.jsonl", "metrics.abandoned.jsonl"):
        if (reached := _last_step(workdir / name)) > allowed:
            signs.append(f"{name} reaches step {reached}")
    for step in steps(folder):
        if whole_path(folder / str(step)).exists():
            signs.append(f"checkpoints/{step}.whole.json is there")
        elif saved is None and (folder / str(step) / "_CHECKPOINT_METADATA").exists():
            signs.append(f"checkpoints/{step} is there")
    return signs


def _saved_step(workdir: Path) -> int | None:
    """The recorded step; None if it cannot be read."""
    try:
        step = (read_object(workdir / "saved.json") or {}).get("step")
    except ValueError:
        return None
    return step if isinstance(step, int) else None


def _interval(workdir: Path) -> int | None:
    """config.train.checkpoint_every of the start before; None where it cannot be read."""
    try:
        return int(read_object(workdir / "config.json")["train"]["checkpoint_every"])
    except (ValueError, TypeError, KeyError):
        return None


def _last_step(path: Path) -> int:
    records, _ = parse_metrics(path.read_bytes()) if path.is_file() else ([], [])
    return max((record["step"] for _, record in records), default=0)
