"""Walks a local folder or glob: the files below it, and why other entries are left out.

A folder that cannot be listed is an error. Links are followed, but not in a circle, and nothing but regular files is
ever opened: a pipe would wait for its writer.
"""

import errno
import glob
import os
import stat
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path

from data_pipeline.formats.files import SourceFile
from data_pipeline.stages.run import StageError

HIDDEN = "hidden files"
CIRCLE = "links in a circle"


class Found:
    """The result of a walk: candidates by name, and what is left out."""

    def __init__(self):
        self.files: dict[str, SourceFile] = {}
        self.links: dict[str, tuple[int, int]] = {}  # name -> (device, inode) of files that a link led to
        self.nodes: dict[str, tuple[int, int]] = {}  # the same of files that none did
        self.broken: dict[str, str] = {}  # name of a link -> its target
        self.tfds: set[str] = set()  # folders of TFDS data sets
        self.left_out: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def take(self, file: SourceFile, facts: os.stat_result, linked: bool) -> None:
        """A directory entry: a file, folder, link or other."""
        if not stat.S_ISREG(facts.st_mode):
            self.leave_out("pipes, sockets or devices")
            return
        self.files[file.name] = file
        if linked:
            self.links[file.name] = _node(facts)
        else:
            self.nodes[file.name] = _node(facts)

    def leave_out(self, reason: str, size: int = 0) -> None:
        self.left_out[reason][0] += 1
        self.left_out[reason][1] += size


def split_glob(root: Path, shown: str) -> tuple[Path, tuple[str, ...]]:
    parts = root.parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    base = Path(*parts[:first])
    if not base.is_dir():
        raise StageError(f"{shown} is a glob that matches no file; there is no folder {base}.")
    return base, parts[first:]


def walk(base: Path, pattern: tuple[str, ...]) -> Found:
    """Walks everything below a folder that matches; a folder that cannot be listed is an error."""
    found = Found()
    asked = any(part.startswith(".") for part in pattern)  # the glob asks for hidden files
    waiting = [(base, "", frozenset([_node(os.stat(base))]), False)]
    while waiting:
        folder, before, above, linked = waiting.pop()
        with os.scandir(folder) as entries:
            listed = list(entries)
        for entry in listed:
            name = before + entry.name
            parts = tuple(name.split("/"))
            leads, matches = _leads_to(parts, pattern), _matches(parts, pattern)
            if not (leads or matches):
                continue
            if is_hidden(entry.name) and not asked:
                size = entry.stat(follow_symlinks=False).st_size if entry.is_file() else 0
                found.leave_out(HIDDEN if entry.is_file() else f"hidden folders ({entry.name})", size)
                continue
            link = linked or entry.is_symlink()
            facts = _entry_stat(entry, name, found)
            if facts is None:
                continue
            if stat.S_ISDIR(facts.st_mode):
                if _node(facts) in above:
                    found.leave_out(CIRCLE)
                elif leads:
                    waiting.append((Path(entry.path), f"{name}/", above | {_node(facts)}, link))
            elif matches:
                found.take(SourceFile(entry.path, name, facts.st_size, facts.st_mtime_ns), facts, link)
    return found


def _entry_stat(entry: os.DirEntry, name: str, found: Found) -> os.stat_result | None:
    """The candidate; None for other entries, which are noted in `found`."""
    try:
        return entry.stat()
    except FileNotFoundError:
        if entry.is_symlink():
            found.broken[name] = os.readlink(entry.path)
        return None  # otherwise it was deleted while the folder was listed
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        found.leave_out(CIRCLE)
        return None


def _node(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a path matches a glob; `**` matches any number of folders, at the end everything below."""
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        return len(pattern) == 1 or any(_matches(parts[skip:], pattern[1:]) for skip in range(len(parts)))
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _leads_to(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether something in a folder of this path may match."""
    for number, part in enumerate(parts):
        if number >= len(pattern):
            return False
        if pattern[number] == "**":
            return True
        if not fnmatchcase(part, pattern[number]):
            return False
    return len(pattern) > len(parts)


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
