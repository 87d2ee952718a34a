"""Files of a source, on this machine or in an object store, by one way: listed, named, fingerprinted and read.

fsspec opens both; a URL needs the package of its store beside it (gcsfs for gs://, s3fs for s3://). A read that fails
is tried again from the byte it had reached, a few times; then the build stops, and the same command continues it.
"""

import glob
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from data_pipeline.manifests import StageError

ATTEMPTS = 5  # stores drop connections; the waits between are 2, 4, 8 and 16 seconds
BLOCK = 1 << 20
# What stores say of an object's content, the best first; a local file's content is read instead.
STAMPS = ("md5Hash", "crc32c", "ETag", "etag", "content_md5", "generation", "mtime", "created", "LastModified")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source. `name` is its path relative to what the user pointed at, and part of document names."""

    url: str
    name: str
    bytes: int


def file_system(url: str):
    """(fsspec file system, its path) of a path or URL; StageError where the store's package is missing."""
    import fsspec  # of the [build] extra

    try:
        fs, path = fsspec.core.url_to_fs(str(url))
    except ImportError as error:
        store = url.partition("://")[0]
        package = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "az": "adlfs", "abfs": "adlfs"}.get(
            store, "its package"
        )
        raise StageError(
            f"{store}:// needs a package that is not installed ({error}): pip install {package}."
        ) from None
    except ValueError as error:
        raise StageError(
            f"{url} cannot be opened: {error}. Give a path, or a URL such as gs://BUCKET/FOLDER."
        ) from None
    return fs, path


def list_files(path: str, endings: tuple[str, ...], where: str) -> list[SourceFile]:
    """The files of a file, folder or glob, in the order of their names; in a folder, those with one of `endings`.

    Raises:
      StageError: nothing is there; the message begins with `where`.
    """
    shown = str(path)
    fs, root = file_system(os.path.expanduser(shown))

    def find() -> tuple[str, dict]:
        kind = _kind(fs, root)
        if kind == "file":
            return str(PurePosixPath(root).parent), {root: fs.info(root)}
        if kind == "directory":
            return root, {p: info for p, info in _files_below(fs, root) if p.endswith(endings)}
        if not glob.has_magic(root):
            raise StageError(f"{where}.path={shown!r} does not exist; give a file, a folder or a glob.")
        fixed = PurePosixPath(root).parts
        fixed = fixed[: next(i for i, part in enumerate(fixed) if glob.has_magic(part))]
        return str(PurePosixPath(*fixed)), _files_of_glob(fs, root)

    base, found = attempt(find, f"{where}.path={shown!r}")
    if not found and glob.has_magic(root):
        raise StageError(f"{where}.path={shown!r} is a glob that matches no file; check it with `ls`.")
    if not found:
        kinds = " or ".join(f"*{ending}" for ending in endings)
        raise StageError(f"{where}.path={shown!r} is a folder without any {kinds} file; put text there.")
    local = "file" in fs.protocol
    files = [
        SourceFile(p if local else fs.unstrip_protocol(p), PurePosixPath(p).relative_to(base).as_posix(), info["size"])
        for p, info in found.items()
    ]
    return sorted(files, key=lambda file: file.name)


def _kind(fs, path: str) -> str:
    """ "file", "directory", or "" where nothing is there. fsspec's own `isfile` takes every failure for a no."""
    if "file" in fs.protocol:
        return "file" if fs.isfile(path) else "directory" if fs.isdir(path) else ""
    try:
        return fs.info(path)["type"]
    except FileNotFoundError:
        return ""


def _files_below(fs, folder: str) -> Iterator[tuple[str, dict]]:
    """Every file in a folder and its folders. fsspec's own `find` leaves out a folder that cannot be listed."""
    from fsspec.spec import AbstractFileSystem

    if type(fs).find is not AbstractFileSystem.find:  # the store lists all at once
        yield from fs.find(folder, detail=True).items()
        return
    for info in fs.ls(folder, detail=True):
        if info["type"] == "directory":
            yield from _files_below(fs, info["name"])
        else:
            yield info["name"], info


def _files_of_glob(fs, pattern: str) -> dict[str, dict]:
    """Every file that a glob matches. On a disk fsspec leaves out what cannot be listed, so each folder on the way is."""
    parts = PurePosixPath(pattern).parts
    for number, part in enumerate(parts) if "file" in fs.protocol else ():
        if not glob.has_magic("/".join(parts[: number + 1])):
            continue
        for folder, info in fs.glob(str(PurePosixPath(*parts[:number])), detail=True).items():
            if info["type"] == "directory":
                _ = list(_files_below(fs, folder)) if "**" in part else fs.ls(folder)
        if "**" in part:
            break
    return {path: info for path, info in fs.glob(pattern, detail=True).items() if info["type"] == "file"}


def attempt(call: Callable, what: str, *, tries: int = ATTEMPTS):
    """`call()`, again after a failure that may pass; StageError with the way to go on when it does not."""
    for number in range(tries):
        if number:
            time.sleep(2.0**number)
        try:
            return call()
        except (StageError, FileNotFoundError, PermissionError, NotImplementedError):
            raise
        except Exception as error:  # every store has errors of its own, few of them an OSError
            last = error
    # Only the kind of the error: its text may hold an address with a key in it.
    raise StageError(
        f"{what} cannot be read: {tries} attempts failed, the last with {type(last).__name__}. What was read whole is "
        "kept; run the same command again when the store answers, and it continues."
    ) from last


class RetryingFile(io.RawIOBase):
    """A file that reopens itself where a read failed. A stream that ends before its size counts as failed."""

    def __init__(self, file: SourceFile):
        super().__init__()
        self._fs, self._path = file_system(file.url)
        self._shown, self._bytes = file.url, file.bytes
        self._stream, self._at = None, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._bytes}[whence]
        return self._at

    def readinto(self, buffer) -> int:
        wanted = min(len(buffer), self._bytes - self._at)
        content = attempt(lambda: self._read(wanted), f"{self._shown}, byte {self._at:,},") if wanted > 0 else b""
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def _read(self, size: int) -> bytes:
        stream, self._stream = self._stream, None  # a failure leaves none, so that the next attempt opens it anew
        if stream is None:
            stream = self._fs.open(self._path, "rb")
        if stream.tell() != self._at:
            stream.seek(self._at)
        content = stream.read(size)
        if not content:
            raise EOFError("it ends early")
        self._stream = stream
        return content

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        super().close()


def open_file(file: SourceFile) -> io.BufferedReader:
    return io.BufferedReader(RetryingFile(file), BLOCK)


def digest_files(files: list[SourceFile]) -> str:
    """SHA-256 over names and contents; of a store's object, over what the store says of its content."""
    digest = hashlib.sha256()
    for file in files:
        fs, path = file_system(file.url)
        if "file" in fs.protocol:
            with open(path, "rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
        else:
            info = attempt(lambda fs=fs, path=path: fs.info(path), file.url)
            stamp = next((f"{key}={info[key]}" for key in STAMPS if info.get(key)), "")
            content = f"{file.bytes} {stamp}"
        digest.update(f"{file.name}\0{content}\n".encode())
    return digest.hexdigest()
