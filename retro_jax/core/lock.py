"""File locks: one writer at a time, for as long as its process lives.

The lock is flock's. It ends with its process, so a leftover file blocks nobody. It holds on one
machine, and between machines on storage whose locks reach all of them: NFS from version 3 on, Lustre mounted with `flock`,
GPFS, CephFS. A bucket that is mounted as a folder (gcsfuse) locks within one machine only. On storage without any locks
the work continues and a line is logged.
"""

import errno
import fcntl
import os
import socket
import sys
import time
from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
TRIES, PAUSE = 20, 0.01  # of what another process may be in the middle of, and seconds between two


class Busy(ValueError):
    """Another process has the lock.

    Attributes:
      holder: that process.
    """

    holder = "another process"


class FileLock:
    """`with FileLock(path, ...): ...`; the file is removed at the end, with the empty folders that were made for it.

    `content`, which the file holds, says which process has the lock.

    Args:
      path: of the file that is locked.
      rule: first words of the refusal: what only one process may do, and where.
      remedy: its last words.
    """

    error = ValueError  # where the file cannot be written
    busy = Busy  # where another process has the lock

    def __init__(self, path: Path, rule: str, remedy: str):
        self.path, self._rule, self._remedy = Path(path), rule, remedy
        self.content = f"{socket.gethostname()} {os.getpid()}"
        self._made: list[Path] = []

    def acquire(self) -> None:
        """Raises `busy` where another process has the lock, `error` where the file cannot be written."""
        folder = self.path.parent
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            while not self._take():
                pass  # its holder ended and removed it between our opening and locking
        except OSError as error:
            raise self.error(
                f"{folder} cannot be written to ({error.strerror}). Give another --workdir, or correct the permissions or the "
                f"storage."
            ) from None

    def _take(self) -> bool:
        self._make_folder()
        try:
            self._file = open(self.path, "a+", encoding="utf-8", errors="replace")
        except FileNotFoundError:
            if self.path.is_symlink():
                raise
            return False  # the holder removed the folder as well
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise self._refusal() from None
            if error.errno not in NO_LOCKS:
                raise
            print(
                f"lock: the storage of {self.path.parent} has no file locks ({error.strerror}); make sure that no "
                f"other process writes there.",
                file=sys.stderr,
            )
        if not (self.path.exists() and os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())):
            self._file.close()
            return False
        self._file.truncate(0)
        self._file.write(self.content)
        self._file.flush()
        return True

    def _make_folder(self) -> None:
        """Makes the folder, again where a process that releases its lock removes one of the parents meanwhile."""
        for left in reversed(range(TRIES)):
            try:
                return self.path.parent.mkdir(parents=True, exist_ok=True)
            except (FileNotFoundError, FileExistsError):
                if not left:
                    raise
                time.sleep(PAUSE)

    def _refusal(self) -> Busy:
        with self._file as file:
            for _ in range(TRIES):
                file.seek(0)
                host, _, process = file.read().partition(" ")
                if process:
                    break
                time.sleep(PAUSE)  # the holder has locked the file and not yet written into it
        holder = f"process {process or '?'} on {host or 'another machine'}"
        busy = self.busy(f"{self._rule}, but {holder} is doing so now. {self._remedy}")
        busy.holder = holder
        return busy

    def fileno(self) -> int:
        """The locked file. A process that inherits it keeps the lock until it ends, even if this one is killed."""
        return self._file.fileno()

    def release(self) -> None:
        self.path.unlink(missing_ok=True)
        self._file.close()
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:
                return  # it holds something

    def __enter__(self) -> "FileLock":
        self.acquire()
        return self

    def __exit__(self, *error) -> None:
        self.release()


def lock_directory(directory: Path, verb: str) -> FileLock:
    """The lock of one verb of `retro` in a directory: DIRECTORY/VERB.lock."""
    directory = Path(directory).absolute()
    return FileLock(
        directory / f"{verb}.lock",
        f"One `retro {verb}` at a time may write into {directory}",
        "Wait for it or stop it, then run the same command again; or give another --workdir.",
    )
