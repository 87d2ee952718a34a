"""Opens, reads and fingerprints the files of a source, local or in an object store (listing.py lists them).

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
from functools import partial
from pathlib import PurePosixPath

from data_pipeline.stages.run import StageError
from retro_jax.core.paths import is_url, local_path

ATTEMPTS = 5  # stores drop connections; the waits between are 2, 4, 8 and 16 seconds
BLOCK = 1 << 20
# A store's fields that identify an object's content, the best first; a local file's content is read instead.
STAMPS = ("md5Hash", "crc32c", "ETag", "etag", "content_md5", "generation", "mtime", "created", "LastModified")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source. `name` is its path relative to what the user pointed at, and part of document names."""

    url: str
    name: str
    bytes: int
    changed: int = 0  # nanoseconds, of a file on this machine; 0: not known

    @property
    def local(self) -> bool:
        return not is_url(self.url)


STORES = {
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "s3": "s3fs",
    "s3a": "s3fs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "oss": "ossfs",
}


def file_system(url: str):
    """(fsspec file system, its path) of a path or URL; StageError where the store's package is missing."""
    import fsspec  # of the [build] extra

    if not is_url(str(url)):  # fsspec reads more than a path out of "local:x" and "a::b"
        return fsspec.filesystem("file"), os.path.abspath(local_path(url, "path"))
    try:
        fs, path = fsspec.core.url_to_fs(str(url))
    except ImportError as error:
        store = url.partition("://")[0]
        package = STORES.get(store, "the package of its fsspec file system")
        raise StageError(
            f"{url}: {store}:// needs a package that is not installed ({error}): pip install {package}."
        ) from None
    except ValueError as error:
        raise StageError(
            f"{url} cannot be opened: {error}. Give a path, or a URL such as gs://BUCKET/FOLDER."
        ) from None
    return fs, path


def store_files(fs, root: str) -> tuple[str, dict[str, dict]]:
    """Lists an object, folder or glob of a store: (the folder that names are relative to, {path: information}).

    fsspec's own `isfile` takes every failure for a no.

    Raises:
      FileNotFoundError: nothing exists there, and it is not a glob.
    """
    try:
        kind = fs.info(root)["type"]
    except FileNotFoundError:
        if not glob.has_magic(root):
            raise
        parts = PurePosixPath(root).parts
        fixed = parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))]
        found = fs.glob(root, detail=True)
        return str(PurePosixPath(*fixed)), {path: info for path, info in found.items() if info["type"] == "file"}
    if kind == "file":
        return str(PurePosixPath(root).parent), {root: fs.info(root)}
    return root, dict(_files_below(fs, root))


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


def attempt(call: Callable, what: str, *, tries: int = ATTEMPTS):
    """`call()`, repeated after temporary failures; StageError with the remedy when all attempts fail."""
    for number in range(tries):
        if number:
            time.sleep(2.0**number)
        try:
            return call()
        except (StageError, FileNotFoundError, NotImplementedError):
            raise
        except PermissionError as error:
            raise forbidden(what, error) from error
        except Exception as error:  # every store has errors of its own, few of them an OSError
            last = error
    # Only the kind of the error: its text may hold an address with a key in it.
    raise StageError(
        f"{what} cannot be read: {tries} attempts failed, the last with {type(last).__name__}. What was read whole is "
        "kept; run the same command again when the store answers, and it continues."
    ) from last


def forbidden(what: str, error: PermissionError) -> StageError:
    """The error for a file or folder without read permission."""
    place = f" ({error.filename})" if error.filename else ""
    return StageError(
        f"{what} cannot be read: permission denied{place}. Change its permissions, or remove it from the source."
    )


def check_unchanged(file: SourceFile) -> None:
    """Raises StageError where a local file has changed since it was listed and fingerprinted."""
    if not file.changed:
        return
    try:
        now = os.stat(file.url)
    except OSError:
        raise StageError(
            f"{file.url} was deleted while it was read. Restore it, and run the same command again."
        ) from None
    if (now.st_size, now.st_mtime_ns) != (file.bytes, file.changed):
        raise StageError(
            f"{file.url} changed while it was read (it had {file.bytes:,} bytes, and now has {now.st_size:,}). Wait until it "
            "is written, then run the same command again."
        )


class RetryingFile(io.RawIOBase):
    """A file that reopens itself where a read failed. A stream that ends before its size counts as failed."""

    def __init__(self, file: SourceFile):
        super().__init__()
        self._fs, self._path = file_system(file.url)
        self._file, self._shown, self._bytes = file, file.url, file.bytes
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
        stream, self._stream = self._stream, None  # a failure leaves none, so that the next attempt reopens it
        if stream is None:
            stream = self._fs.open(self._path, "rb")
        if stream.tell() != self._at:
            stream.seek(self._at)
        content = stream.read(size)
        if not content:
            check_unchanged(self._file)
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
    """SHA-256 over names and contents; for a store's object, over its name, size and the store's checksum."""
    digest = hashlib.sha256()
    for file in files:
        fs, path = file_system(file.url)
        if "file" in fs.protocol:
            content = attempt(partial(_sha256, path), file.url)
        else:
            info = attempt(lambda fs=fs, path=path: fs.info(path), file.url)
            stamp = next((f"{key}={info[key]}" for key in STAMPS if info.get(key)), "")
            content = f"{file.bytes} {stamp}"
        digest.update(f"{file.name}\0{content}\n".encode())
    return digest.hexdigest()


def _sha256(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
