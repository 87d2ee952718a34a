"""The lock of a build: one build at a time writes into a data directory."""

from pathlib import Path

from data_pipeline.stages.run import StageError
from retro_jax.core.lock import Busy, FileLock


class BusyBuild(StageError, Busy):
    """Another process builds there."""


class BuildLock(FileLock):
    """`with BuildLock(directory): ...` raises BusyBuild where another process, on any machine that shares the storage and its
    locks, builds there already, and StageError where the lock cannot be written."""

    error, busy = StageError, BusyBuild

    def __init__(self, directory: Path):
        self.directory = Path(directory).absolute()
        # A link to a directory and the directory have one lock.
        place = self.directory.resolve() if self.directory.is_symlink() else self.directory
        super().__init__(
            place.with_name(place.name + ".lock"),
            f"One build at a time may write into {self.directory}",
            "Wait for it or stop it, then run the same command again; or give another --workdir.",
        )
