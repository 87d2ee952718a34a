"""Small JSON files beside a run: read whatever they hold, and put a damaged one aside instead of stopping for it."""

import json
import os
import sys
from pathlib import Path


def read_object(path: Path) -> dict | None:
    """The JSON object in a file; None where there is no file.

    Raises:
      ValueError: the file holds something else; it is named.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}).") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged (it holds no JSON object).")
    return found


def free_name(path: Path, word: str) -> Path:
    """NAME.WORD-N beside a file, with the first N that is free."""
    number = 0
    while os.path.lexists(free := path.with_name(f"{path.name}.{word}-{number}")):
        number += 1
    return free


def set_aside(path: Path, why: str, then: str) -> None:
    """Renames a damaged file to NAME.damaged-N and says so, with what is done `then`."""
    aside = free_name(path, "damaged")
    path.rename(aside)
    print(f"{why} It is kept as {aside.name}; {then}.", file=sys.stderr, flush=True)
