"""Works around paths that orbax and tensorstore misread (glob patterns, backslashes) by a link to them."""

import atexit
import functools
import os
import re
import shutil
import tempfile
from pathlib import Path

from retro_jax.parallel.agreement import on_first

# No pattern for glob, no backslash, no name that is not UTF-8, no root that etils takes for a bucket's URL.
PLAIN = re.compile(r"(?!/(gs|s3|az|hf)/)[\w./=,+@ -]*")
LONGEST = 3500  # bytes; the system allows 4096, and file names of a few hundred follow


def require_path(path: Path, where: str) -> None:
    """Raises ValueError where a path cannot be given to the libraries that open files (`where`: the flag or key)."""
    name = os.fsencode(Path(path).absolute())
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{where}={str(path)!r} must be UTF-8, but is {name!r}; rename the folder.") from None
    if len(name) > LONGEST:
        raise ValueError(f"{where} has {len(name):,} bytes; at most {LONGEST:,} are possible: {str(path)[:80]}…")


def plain_path(directory: Path) -> Path:
    """`directory`, or a link to it where orbax or tensorstore would take its name for something else.

    Orbax globs below the path of a checkpoint, so that brackets in it hide its files; tensorstore takes no backslash and no
    name that is not UTF-8. The link is in a new folder for temporary files, the same on every process (orbax compares
    the paths), and goes with the process.

    Raises:
      ValueError: the link cannot be made.
    """
    if PLAIN.fullmatch(str(directory)):
        return directory
    try:
        link = Path(_folder(directory)) / "checkpoints"
        link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # on the other hosts, or where /tmp was cleaned
        try:
            link.symlink_to(directory)
        except FileExistsError:  # made before, or by another process of this host
            if os.readlink(link) != str(directory):
                raise
    except OSError as error:
        raise ValueError(
            f"{directory} has characters that orbax cannot read, and the link that works around this could not be made: {error}. "
            f"Give another --workdir, or set TMPDIR to a folder with a plain name that can be written to."
        ) from None
    return link


@functools.cache
def _folder(directory: Path) -> str:
    """A new folder, once a directory and process."""

    def make() -> str:
        folder = tempfile.mkdtemp(prefix="retro_jax-")
        if not PLAIN.fullmatch(folder):
            raise OSError(f"the folder for temporary files is {folder}")
        return folder

    folder = on_first(make)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
