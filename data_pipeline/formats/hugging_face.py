"""Folders written by the `datasets` library: separates the files of the data set from caches and metadata.

`save_to_disk` leaves `state.json` beside the Arrow files and names them in it; later `map` and `shuffle` put files named
`cache-*.arrow` into the same folder, which hold the same rows again or row numbers alone. `dataset_dict.json` names the
folders of splits.
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath

from data_pipeline.formats.files import SourceFile, open_file
from data_pipeline.stages.run import StageError

STATE, SPLITS = "state.json", "dataset_dict.json"
METADATA = ("dataset_info.json", "dataset_infos.json", STATE, SPLITS, "features.json")
CACHE = re.compile(r"cache-[0-9a-f]{16}(_\d{5}_of_\d{5})?\.arrow")  # a fingerprint; of a part where several made it


def caches(files: Mapping[str, SourceFile]) -> set[str]:
    """Names of Arrow files that are not part of the data set.

    Args:
      files: every file of the folder by its name, metadata and all.

    Raises:
      StageError: metadata that is damaged, or names a missing file or split, or a selection of rows.
    """
    for name, file in files.items():
        if PurePosixPath(name).name == SPLITS:
            folder = PurePosixPath(name).parent
            for split in _names(file, _json(file), "splits"):
                if not any(PurePosixPath(other).is_relative_to(folder / split) for other in files):
                    raise _missing(file, split, "folder")
    listed: set[str] = set()
    folders: set[PurePosixPath] = set()
    for name, file in files.items():
        if PurePosixPath(name).name != STATE:
            continue
        state = _json(file)
        if "_data_files" not in state:
            continue  # another program's
        folder = PurePosixPath(name).parent
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise StageError(
                f"{file.url} says that the data set is a selection of rows of its Arrow files, but Arrow files are read in full "
                "here. Write the selection itself: data_set.flatten_indices().save_to_disk(FOLDER)."
            )
        for data in _names(file, state, "_data_files"):
            if str(folder / data) not in files:
                raise _missing(file, data, "file")
            listed.add(str(folder / data))
        folders.add(folder)
    beside = {name for name in files if PurePosixPath(name).parent in folders and name.endswith(".arrow")}
    return {name for name in beside | cache_names(files) if name not in listed}


def cache_names(names: Collection[str]) -> set[str]:
    """Those that are caches by their name."""
    return {name for name in names if CACHE.fullmatch(PurePosixPath(name).name)}


def _json(file: SourceFile) -> dict:
    with open_file(file) as stream:
        content = stream.read()
    try:
        found = json.loads(content)
    except ValueError as error:
        raise StageError(
            f"{file.url} is damaged ({str(error)[:80]}), and it says which files are the data set. Fetch or make it again."
        ) from None
    return found if isinstance(found, dict) else {}


def _names(file: SourceFile, facts: Mapping, key: str) -> list[str]:
    found = facts.get(key, [])
    names = [entry.get("filename") if isinstance(entry, Mapping) else entry for entry in found]
    if not all(isinstance(name, str) and name for name in names):
        raise StageError(f"{file.url} is damaged: {key} must be names, but is {found!r:.80}. Fetch or make it again.")
    return names


def _missing(file: SourceFile, name: str, what: str) -> StageError:
    return StageError(
        f"{file.url} names the {what} {name!r} as a part of the data set, but it is missing. Fetch or make the data set "
        "again."
    )
