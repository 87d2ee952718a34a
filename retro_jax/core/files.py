"""Atomic file writes, and reads whose errors name the file, the damage and the remedy.

Every JSON file of ours is read by `read_json` and every NumPy array by `load_array`: a file that is missing, empty, cut
off, altered or of another shape raises `DamagedFile`, whose message names the file, what is wrong and what to do.
"""

import errno
import hashlib
import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

SEAL = "sha256"  # the key of a JSON object that holds the SHA-256 of all other keys


class DamagedFile(ValueError):
    """A file of ours that is missing or damaged; `wrong` says how, and the message begins with the path."""

    def __init__(self, path: Path | str, wrong: str, remedy: str = ""):
        super().__init__(f"{path} {wrong}. {remedy}".rstrip())
        self.wrong = wrong

    def __reduce__(self):
        """Pickles with its arguments, so that the message survives on its way from another process."""
        return _same_words, (str(self), self.wrong)


def _same_words(message: str, wrong: str) -> DamagedFile:
    error = DamagedFile("", wrong)
    error.args = (message,)
    return error


class atomic_path:
    """`with atomic_path(path) as temporary: write(temporary)`: synced and renamed to `path` on success only."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{self.path.name}.writing")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(self, kind, value, traceback):
        if kind is None:
            with open(self.temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)
        return False


def digest(facts) -> str:
    """SHA-256 of the canonical JSON of a value, in hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_json(path: Path, facts, *, seal: bool = False) -> None:
    """Writes JSON atomically: a reader sees the complete old file or the complete new one.

    Args:
      seal: adds the key SEAL, by which `read_json` finds an altered value.
    """
    if seal:
        facts = json.loads(json.dumps(facts))  # as it will be read: lists for tuples, strings for keys
        facts = {**facts, SEAL: digest(facts)}
    with atomic_path(path) as temporary:
        Path(temporary).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path, remedy: str, *, keys: Sequence[str] = (), kind: type = dict):
    """The content of a JSON file of ours, without its seal.

    Args:
      remedy: a sentence, or more: what the user does when the file is missing or damaged.
      keys: that the object must have.
      kind: dict or list.

    Raises:
      DamagedFile: missing, unreadable, empty, cut off, no JSON, of another shape, or altered since it was sealed.
    """
    text = _read_text(path, remedy)
    try:
        facts = json.loads(text)
    except ValueError as error:
        at, found = f"line {error.lineno}, column {error.colno}", error.msg
        rest = text[error.pos :].strip()
        ends = rest in ("", ",") or (found.startswith("Unterminated string") and not text.rstrip().endswith(("}", "]")))
        wrong = "is cut off" if ends else f"is not JSON ({found} at {at})"
        raise DamagedFile(path, wrong, remedy) from None
    except RecursionError:
        raise DamagedFile(path, "is not JSON that retro_jax wrote (nested too deeply)", remedy) from None
    if not isinstance(facts, kind):
        raise DamagedFile(path, f"holds a {type(facts).__name__} instead of a {kind.__name__}", remedy)
    if missing := [key for key in keys if key not in facts]:
        raise DamagedFile(path, f"has no {', '.join(map(repr, missing))}", remedy)
    if kind is dict and SEAL in facts and facts.pop(SEAL) != digest(facts):
        raise DamagedFile(path, "was altered: its content does not match the checksum stored in it", remedy)
    return facts


def _read_text(path: Path, remedy: str) -> str:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DamagedFile(path, why_unreadable(error), remedy) from None
    if not content.strip():
        raise DamagedFile(path, "is empty", remedy)
    if not content.strip(b"\0"):
        raise DamagedFile(path, "holds only NUL bytes, as after a power failure", remedy)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFile(path, f"is not UTF-8 text (byte {error.start})", remedy) from None


def why_unreadable(error: OSError) -> str:
    """The reason why a file cannot be read, as the rest of a sentence that begins with its path."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "is missing"
    if error.errno == errno.EISDIR:
        return "is a folder, not a file"
    return f"cannot be read ({error.strerror or error})"


def load_array(path: Path, remedy: str, *, mapped: bool = False):
    """The NumPy array of a .npy file, mapped into memory where asked; code in it is never run.

    Raises:
      DamagedFile: missing, cut off, or no .npy file.
    """
    import numpy as np  # imported here, so that --help and usage errors do not wait for it

    try:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except OSError as error:
        raise DamagedFile(path, why_unreadable(error), remedy) from None
    except (ValueError, EOFError, SyntaxError, MemoryError) as error:  # NumPy's header is a Python literal
        raise DamagedFile(path, f"is not a complete .npy file ({str(error).splitlines()[0]:.90})", remedy) from None


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """`file_sha256`, computed once in a process for a file that does not change meanwhile."""
    found = os.stat(path)
    return _sha256_of(str(path), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@lru_cache(maxsize=1 << 16)
def _sha256_of(path: str, *state: int) -> str:
    return file_sha256(Path(path))
