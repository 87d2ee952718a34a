"""The user's cache of downloads, shared by all folders; several processes may fill it at once.

$RETRO_CACHE, else $XDG_CACHE_HOME/retro_jax, else ~/.cache/retro_jax; in it `downloads/`, or $RETRO_DOWNLOADS instead.
Files that an earlier version kept in `downloads/` of the current folder are still used.
"""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.stages.run import StageError
from retro_jax.core.paths import local_path

STALE = 24 * 3600  # seconds, after which an unfinished download counts as abandoned


def cache_directory() -> Path:
    """The folder of the cache, which may not exist yet; StageError if it cannot be determined."""
    if given := _variable("RETRO_CACHE"):
        return given
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "retro_jax"
    try:
        return Path.home() / ".cache" / "retro_jax"
    except RuntimeError:
        raise StageError(
            "There is no home folder for the cache of downloads. Name a folder with RETRO_CACHE."
        ) from None


def downloads_directory() -> Path:
    """The folder of archives."""
    return _variable("RETRO_DOWNLOADS") or cache_directory() / "downloads"


def earlier_downloads(file: str) -> list[Path]:
    """The path where an earlier version kept a file (`downloads/` in the current folder); None if RETRO_DOWNLOADS is set."""
    return [] if os.environ.get("RETRO_DOWNLOADS") else [Path("downloads") / file]


def _variable(name: str) -> Path | None:
    value = os.environ.get(name, "")
    try:
        return local_path(value, name) if value else None
    except ValueError as error:
        raise StageError(str(error)) from None


def make_folder(folder: Path) -> None:
    """Makes the folder of downloads; StageError if it is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write into {folder}")
    except OSError as error:
        raise StageError(
            f"Downloads go to {folder}, but it cannot be written ({error.strerror or error}). Name another folder with "
            "RETRO_CACHE."
        ) from error


@contextmanager
def own_temporary(path: Path) -> Iterator[Path]:
    """`with own_temporary(path) as temporary: write(temporary)`: synced and renamed to `path` on success only.

    The name contains the process id, so two processes that download one file do not write into each other's.
    """
    for left in path.parent.glob(f".{path.name}.*.writing"):  # by a process that was killed
        if time.time() - left.stat().st_mtime > STALE:
            left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.writing")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
