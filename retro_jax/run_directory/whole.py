"""Finds the whole checkpoints of a run and deletes old ones. It reads files only, without jax and orbax.

    RUN/checkpoints/STEP/            a checkpoint; STEP is written as a plain number: 12, not 012
    RUN/checkpoints/STEP.whole.json  size and SHA-256 of each of its files, written after them
    RUN/checkpoints/STEP.broken-N    a damaged one that a new save replaced
    RUN/checkpoints/STEP.abandoned-N one that the run went back behind, after a spike
    RUN/checkpoints/STEP.pruned      being deleted

A checkpoint is whole when its listing can be read, every listed file has its size and checksum, and what a restore opens
is among them. Nothing else in the folder is ever counted, renamed or deleted.
"""

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from retro_jax.core.files import DamagedFile, file_sha256, read_json
from retro_jax.core.side_files import free_name

STEP = re.compile("0|[1-9][0-9]*")
# Without these no restore begins. Orbax once left out the manifests, where the path read as a glob pattern.
NEEDED = ("run/data.json", "params/manifest.ocdbt", "optimizer/manifest.ocdbt")


def whole_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.whole.json")


def steps(directory: Path) -> list[int]:
    """Steps with a folder, whole or not, rising."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if STEP.fullmatch(path.name) and path.is_dir())


def listing(path: Path) -> dict:
    """The content of STEP.whole.json, computed from the checkpoint's files on disk."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in files}


def find_fault(path: Path, checksums: bool = True) -> str | None:
    """The fault of a checkpoint's folder; None if it is whole.

    Args:
      checksums: compare the content of the files too, and not their sizes alone.
    """
    listed = _read_listing(whole_path(path))
    if isinstance(listed, str):
        return listed
    for name, (size, sha256) in listed.items():
        file = path / name
        try:
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes of {size}"
            if checksums and file_sha256(file) != sha256:
                return f"{name} was altered"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    for name in NEEDED:
        if name not in listed:
            return f"{name}, which a restore needs, was never written"
    return _not_of_this_step(path)


def _read_listing(path: Path) -> dict[str, tuple[int, str]] | str:
    """(bytes, SHA-256) by file, or what is wrong with STEP.whole.json."""
    if not path.exists():
        return f"{path.name} was not written"
    try:
        found = read_json(path, "")
        return {name: (facts["bytes"], facts["sha256"]) for name, facts in found.items()}
    except DamagedFile as error:
        return f"{path.name} is damaged (it {error.wrong})"
    except (TypeError, KeyError) as error:
        return f"{path.name} is damaged ({error or type(error).__name__})"


def read_facts(path: Path) -> dict:
    """The JSON of a checkpoint: identity, step (in new ones), iterator, the state of the spike limit."""
    return read_json(path / "run" / "data.json", "")


def _not_of_this_step(path: Path) -> str | None:
    """Raises ValueError for a copy under the name of another step. Old checkpoints do not store their step."""
    try:
        facts = read_facts(path)
        step, _ = facts.get("step", int(path.name)), facts["identity"]["config"]
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        return f"run/data.json is not a retro_jax file ({error})"
    return None if step == int(path.name) else f"it holds step {step}"


def find_whole(directory: Path, at_most: int | None = None) -> tuple[int | None, dict[int, str]]:
    """(newest step up to `at_most` whose checkpoint is whole, faults of the newer ones by step)."""
    faults = {}
    for step in reversed(steps(directory)):
        if at_most is None or step <= at_most:
            fault = find_fault(Path(directory) / str(step))
            if fault is None:
                return step, faults
            faults[step] = fault
    return None, faults


def newest_whole(directory: Path, at_most: int | None = None) -> int | None:
    """The newest step (up to `at_most`) whose checkpoint is whole; those skipped are logged."""
    directory = Path(directory)
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        if ".orbax-checkpoint-tmp" in path.name:
            print(f"checkpoint: {path} was never finished; it is skipped.", file=sys.stderr)
    step, faults = find_whole(directory, at_most)
    _pass_over(faults, step)
    return step


def _pass_over(faults: Mapping[int, str], step: int | None) -> None:
    then = "no older one is whole" if step is None else f"going back to step {step}"
    for newer, fault in faults.items():
        print(f"checkpoint: step {newer} is not whole ({fault}); {then}.", file=sys.stderr)


def require_whole(run_directory: Path, step: int | None = None) -> int:
    """The step asked for, or the newest whole one.

    Raises:
      ValueError: no whole checkpoint, or none at `step`; what is wrong with each is said.
    """
    directory = Path(run_directory) / "checkpoints"
    if step is None:
        step, faults = find_whole(directory)
        if step is None:
            raise ValueError(
                f"{run_directory} has no whole checkpoint{': ' * bool(faults)}{describe_faults(faults)}. Train it with "
                f"`retro train --workdir={run_directory}`, or name another directory."
            )
        _pass_over(faults, step)
    elif fault := find_fault(directory / str(step)):
        raise ValueError(
            f"{run_directory} has no whole checkpoint at step {step} ({fault}); ask for another of the steps "
            f"{steps(directory)}."
        )
    return step


def describe_faults(faults: Mapping[int, str]) -> str:
    """One phrase a step, newest first; empty where there is none."""
    return "; ".join(f"step {step} ({fault})" for step, fault in faults.items())


def abandon_after(directory: Path, step: int) -> None:
    """Renames the checkpoints after `step`: a run that went back to it would resume from them, and lose what it does now."""
    for later in steps(directory):
        if later > step:
            _rename(Path(directory) / str(later), "abandoned")


def _rename(path: Path, word: str) -> Path:
    """Renames a checkpoint and its listing, the listing first: a folder without one is not whole."""
    aside = free_name(path, word)
    if whole_path(path).exists():
        whole_path(path).rename(whole_path(aside))
    path.rename(aside)
    return aside


def make_way(path: Path) -> None:
    """Makes the folder of the checkpoints and renames what exists at `path`, with its listing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(path):
        return
    aside = _rename(path, "broken")
    print(f"checkpoint: {path} was replaced by a new save; it was renamed to {aside.name}.", file=sys.stderr)


def prune(directory: Path, keep: Callable[[Sequence[Path]], Sequence[bool]], newest: int, verified: set[int]) -> None:
    """Deletes the whole checkpoints up to `newest` that `keep` does not keep.

    Those that are not whole, later than `newest` or links are neither given to `keep` nor deleted.

    Args:
      keep: says of whole checkpoints, oldest first, whether each stays.
      newest: the step that was just saved; it stays.
      verified: steps whose checksums were compared in this process; those compared here are added.
    """
    directory = Path(directory)
    _finish_deleting(directory)
    paths = [directory / str(step) for step in steps(directory) if step <= newest]
    whole = [path for path in paths if not path.is_symlink() and not find_fault(path, checksums=False)]
    damaged = {None}
    while damaged:  # what stays is read; without a damaged one another may stay in its place
        stay = [path for path, kept in zip(whole, keep(whole), strict=True) if kept]
        damaged = {path for path in stay if int(path.name) not in verified and find_fault(path)}
        verified.update(int(path.name) for path in stay if path not in damaged)
        whole = [path for path in whole if path not in damaged]
    for path in whole:
        if path not in stay and int(path.name) != newest:
            path.rename(path.with_name(f"{path.name}.pruned"))
    _finish_deleting(directory)


def _finish_deleting(directory: Path) -> None:
    """Deletes the folders named STEP.pruned, also those of a process that was killed meanwhile."""
    for path in sorted(directory.iterdir()):
        step, _, rest = path.name.partition(".")
        if STEP.fullmatch(step) and rest == "pruned" and path.is_dir() and not path.is_symlink():
            if not path.with_name(step).exists():
                whole_path(path.with_name(step)).unlink(missing_ok=True)
            shutil.rmtree(path)
