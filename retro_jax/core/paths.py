"""Expands the paths that users write (`~`, `file://`), refuses URLs where a local path is needed, and names
files after what data holds."""

import os
import re
import urllib.parse
from pathlib import Path

from retro_jax.core.files import digest

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
PLAIN_NAME = re.compile(r"[A-Za-z0-9_()-][A-Za-z0-9._() -]{0,99}")  # as "Pile-CC" and "Wikipedia (en)"


def is_url(value: str) -> bool:
    """Whether this is the URL of an object store or a server; `file://` is a local path."""
    return bool(URL.match(value)) and not value.startswith("file://")


def local_path(value: str | os.PathLike, where: str) -> Path:
    """The path on this machine that `value` names: `~` and `~user` expanded, `file://` removed.

    Args:
      where: the flag or config key that holds the value, for messages.

    Raises:
      ValueError: the URL of a store, a `file://` URL of another machine, an unknown user, or a NUL character.
    """
    text = os.fspath(value)
    if "\0" in text:
        raise ValueError(f"{where}={text!r} holds a NUL character, which a path cannot. Correct the value.")
    if is_url(text):
        here = _beside(text)
        hint = f" (the local folder {here} is ./{here})" if here else ""
        raise ValueError(
            f"{where}={text!r} is a URL, but this must be a path on this machine{hint}. Mount the store as a folder (for "
            "example with gcsfuse or mount-s3), or copy to or from a local folder, and give that folder."
        )
    if text.startswith("file://"):
        parts = urllib.parse.urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(
                f"{where}={text!r} names the machine {parts.netloc!r}; a local path has three slashes: "
                f"file:///{parts.netloc}{parts.path}."
            )
        return Path(urllib.parse.unquote(parts.path))
    if text.startswith("~"):
        expanded = os.path.expanduser(text)
        if expanded == text:
            name = text.partition("/")[0]
            raise ValueError(
                f"{where}={text!r}: {name} is not a user of this machine. Give the full path, or ./{text}."
            )
        if os.path.lexists(text):
            raise ValueError(
                f"{where}={text!r} means {expanded}, but a file or folder {text!r} is in the current folder as well. "
                f"Give {expanded}, or ./{text}."
            )
        return Path(expanded)
    return Path(text)


def local_folder(value: str | os.PathLike, where: str) -> Path:
    """`local_path` of a folder, which need not exist yet.

    Raises:
      ValueError: as `local_path`; or a file, a broken link or a file's "subfolder" stands there.
    """
    path = local_path(value, where)
    for part in (path, *path.parents):
        if os.path.lexists(part):
            if not part.is_dir():
                what = "a link to nothing" if part.is_symlink() and not part.exists() else "a file"
                raise ValueError(f"{where}={str(value)!r} must be a folder, but {part} is {what}. Give another path.")
            break
    return path


def require_writable(folder: Path, where: str) -> None:
    """Raises ValueError where a folder, or the parent in which it would be made, is not writable."""
    there = next(part for part in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(part))
    if not os.access(there, os.W_OK | os.X_OK):
        read_only = os.statvfs(there).f_flag & os.ST_RDONLY
        why = "is on a file system that is mounted read-only" if read_only else "belongs to another user"
        raise ValueError(f"{where}={folder}: nothing can be written into {there}, which {why}. Give another path.")


def _beside(url: str) -> str:
    """The folder that an earlier version made when it took the URL for a local path; empty if there is none."""
    return str(Path(url)) if os.path.lexists(Path(url)) else ""


def file_name(name: str) -> str:
    """A name that comes from data as the name of one file: itself where it is plain, else its plain characters and a digest."""
    if PLAIN_NAME.fullmatch(name):
        return name
    plain = re.sub(r"[^A-Za-z0-9_()-]+", "-", name)[:80].strip("-")
    return f"{plain}-{digest(name)[:8]}".lstrip("-")


def special(value: str) -> bool:
    """Whether a path has `~`, a URL scheme or anything else that must be expanded."""
    return value.startswith(("~", "file://")) or "\0" in value or is_url(value)
