"""Where the weights of a run came from, if another project made them.

RUN/imported.json is written by `retro import`; RUN/origin.json is its copy in a run whose weights start from there, directly or over
other runs, so that a license is not lost where the import moves.
"""

from collections.abc import Mapping
from pathlib import Path

from retro_jax.core.files import DamagedFile, read_json, write_json

RECORD, ORIGIN = "imported.json", "origin.json"


def origin_of(directory: Path) -> Mapping:
    """The facts of the import that a run is, or starts from; empty where there is none, or a damaged file."""
    for path in (Path(directory) / RECORD, Path(directory) / ORIGIN):
        try:
            if path.is_file():
                return read_json(path, "")
        except DamagedFile:
            continue
    return {}


def note_origin(directory: Path, start: str) -> None:
    """Copies the facts of the run that the weights start from (config.train.initialize_from), once."""
    if start and not (Path(directory) / ORIGIN).exists() and (found := origin_of(Path(start))):
        write_json(Path(directory) / ORIGIN, {key: value for key, value in found.items() if key != "sha256"})
