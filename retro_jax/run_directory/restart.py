"""A run that got somewhere and has no whole checkpoint left is not started from step 0 unless the user says so.

RUN/saved.json holds the step of the last checkpoint that became whole, 0 before the first. It lies outside of checkpoints/,
so that it is still there when those are gone. Runs of before do not have it; their metrics speak for them.
"""

import sys
from pathlib import Path

from retro_jax.core.files import write_json
from retro_jax.core.side_files import free_name, read_object, set_aside
from retro_jax.run_directory.whole import describe_faults, find_whole, steps, whole_path
from retro_jax.train.metrics import parse_metrics

PROGRESS = ("metrics.jsonl", "metrics.abandoned.jsonl", "seconds.json", "saved.json", "checkpoints")


def note_saved(workdir: Path, step: int) -> None:
    """Notes that the checkpoint of `step` is whole."""
    write_json(Path(workdir) / "saved.json", {"step": step})


def begin_notes(workdir: Path, step: int) -> None:
    """Makes saved.json where there is none: `step` is that of the newest whole checkpoint, or 0."""
    try:
        if read_object(workdir / "saved.json") is not None:
            return
    except ValueError as error:
        set_aside(workdir / "saved.json", str(error), "it is made anew")
    note_saved(workdir, step)


def tell_others(workdir: Path, step: int, restart: bool) -> None:
    """Says of a run that goes on from `step` what its user may not expect."""
    if restart:
        print(
            f"train: step {step} is saved whole, so the run goes on from there in spite of --restart.", file=sys.stderr
        )
    if (saved := _saved_step(workdir)) is not None and saved > step:
        print(
            f"checkpoint: step {saved} was saved, and is not there any more or damaged; going on from step {step}.",
            file=sys.stderr,
        )


def require_no_progress(workdir: Path, every: int, restart: bool = False) -> None:
    """For a run without a whole checkpoint: lets it begin at step 0, or stops it.

    Args:
      every: steps between checkpoints, for a run whose config.json does not say.
      restart: move the signs of progress aside instead of stopping.

    Raises:
      ValueError: something in the directory shows progress; it is named, and what is wrong with each checkpoint.
    """
    # The first save ends before the second begins: without a note of one, a run was killed before that.
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
            f"Bring a whole checkpoint back, if you have a copy, and run the same command again. Or start again from step 0 "
            f"with --restart, which moves what is here to {aside}; or use another --workdir."
        )
    aside.mkdir()
    for path in sorted(workdir.iterdir()):
        if path.name in PROGRESS or path.name.startswith("events.out.tfevents"):
            path.rename(aside / path.name)
    print(f"train: starting again from step 0; what was in {workdir} is kept in {aside}.", file=sys.stderr)


def signs_of_progress(workdir: Path, allowed: int) -> list[str]:
    """What shows that a checkpoint was whole once, or that more than the `allowed` steps were trained; a phrase each."""
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
    """None where no note can be read."""
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
