"""Small JSON files of a run whose damage does not stop it: a damaged one is renamed and rewritten."""

import os
import sys
from pathlib import Path

from retro_jax.core.files import DamagedFile, read_json


def read_object(path: Path) -> dict | None:
    """The JSON object in a file; None where there is no file.

    Raises:
      ValueError: the file holds something else; it is named.
    """
    if not os.path.lexists(path):
        return None
    try:
        return read_json(path, "")
    except DamagedFile as error:
        raise ValueError(f"{path} is damaged (it {error.wrong}).") from None


def free_name(path: Path, word: str) -> Path:
    """NAME.WORD-N beside a file, with the first N that is free."""
    number = 0
    while os.path.lexists(free := path.with_name(f"{path.name}.{word}-{number}")):
        number += 1
    return free


def set_aside(path: Path, why: str, then: str) -> None:
    """Renames a damaged file to NAME.damaged-N and logs it; `then` says what happens next."""
    aside = free_name(path, "damaged")
    path.rename(aside)
    print(f"{why} It is kept as {aside.name}; {then}.", file=sys.stderr, flush=True)
