"""One build at a time in a directory: a file beside it, locked by the system for as long as the process lives.

A killed process loses its lock with its life, so a file that was left behind stops nobody.
"""

import fcntl
import os
import socket
from pathlib import Path

from data_pipeline.manifests import StageError


class BuildLock:
    """`with BuildLock(directory): ...` raises StageError where another process, on any machine that shares the storage
    and its locks, builds there already. `content` says which process holds it."""

    def __init__(self, directory: Path):
        directory = Path(directory).absolute()
        self.directory, self.path = directory, directory.with_name(directory.name + ".lock")
        self.content = f"{socket.gethostname()} {os.getpid()}"

    def __enter__(self) -> "BuildLock":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self._file = open(self.path, "a+", encoding="utf-8", errors="replace")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.seek(0)
                host, _, process = self._file.read().partition(" ")
                self._file.close()
                raise StageError(
                    f"One build at a time may write into {self.directory}, but process {process or '?'} on "
                    f"{host or 'another machine'} is building there. Wait for it or stop it, then run the same command "
                    f"again; or give another --workdir."
                ) from None
            if self.path.exists() and os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                break
            self._file.close()  # its holder ended and removed it between our opening and locking
        self._file.truncate(0)
        self._file.write(self.content)
        self._file.flush()
        return self

    def __exit__(self, *error) -> None:
        self.path.unlink(missing_ok=True)
        self._file.close()
