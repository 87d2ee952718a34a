"""Reads zip and tar archives as data, in place or unpacked with every path checked; runs nothing from them."""

import fnmatch
import os
import shutil
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from data_pipeline.stages.run import StageError


def read_members(archive: Path, *patterns: str) -> Iterator[tuple[str, bytes]]:
    """Yields (path, content) of the archive's regular files that match a shell pattern, in the archive's order
    (the pinned checksum fixes it, and a compressed tar can only be read from front to back).

    An sdist's leading `NAME-VERSION/` is cut off, so that paths are those inside the package.

    Raises:
      StageError: nothing matches.
    """
    with _opened(archive) as members:
        chosen = [name for name in members if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        if not chosen:
            raise StageError(f"{archive} holds no file {' or '.join(patterns)}; it is not the package that was pinned.")
        for name in chosen:
            yield name, members[name]()


@contextmanager
def _opened(archive: Path):
    """{path: function returning the content} of the regular files of a zip or tar; links and folders are left out."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield {
                _checked(archive, info.filename): (lambda info=info: file.read(info))
                for info in file.infolist()
                if not info.is_dir() and (info.external_attr >> 16) & 0o170000 in (0, 0o100000)
            }
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as file:
            yield {
                _checked(archive, info.name).partition("/")[2]: (lambda info=info: file.extractfile(info).read())
                for info in file.getmembers()
                if info.isreg()
            }
    else:
        raise StageError(
            f"{archive} is neither a zip nor a tar archive. Move it away, and the next run fetches it again."
        )


def _checked(archive: Path, name: str) -> str:
    """`name` if it stays inside its folder; StageError otherwise."""
    if "\\" in name or ":" in name or "\0" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise StageError(f"{archive} holds the path {name!r}, which leads out of its folder; the archive is refused.")
    return name


def unpack(archive: Path, prefix: str, directory: Path) -> Path:
    """Unpacks the archive's files under `prefix` into `directory` atomically; existing files are checked.

    Raises:
      StageError: a path that leads outside, or a file in `directory` that is not the archive's.
    """
    directory = Path(directory)
    present = directory.exists()
    temporary = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:8]}.writing")  # each process has its own
    try:
        for name, content in read_members(archive, f"{prefix}*"):
            path = directory / name.removeprefix(prefix)
            if not present:
                target = temporary / name.removeprefix(prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            elif not path.is_file() or path.stat().st_size != len(content) or _crc(path) != zlib.crc32(content):
                raise StageError(
                    f"{path} is missing or altered. Move {directory} away, and the next run unpacks it again."
                )
        if not present:
            try:
                os.rename(temporary, directory)
            except OSError:
                if not directory.exists():
                    raise
                return unpack(archive, prefix, directory)  # another process was first; its files are checked
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # our own unfinished work
    return directory


def _crc(path: Path) -> int:
    return zlib.crc32(path.read_bytes())
