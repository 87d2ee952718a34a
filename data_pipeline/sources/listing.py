"""Lists the files of a source: those that are read, and those that are left out with the reason.

A path is a file, a folder or a glob, on this machine or in an object store. Of a folder and of a glob the files with a
known ending are read; hidden ones (.git, .ipynb_checkpoints, ._x, __MACOSX), metadata and caches of data sets, links in a
circle and anything but regular files are not. A broken link, or a folder that cannot be listed, is an error: a
damaged source must not become a smaller one.
"""

import glob
import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from data_pipeline.formats.files import SourceFile, attempt, file_system, forbidden, store_files
from data_pipeline.formats.hugging_face import METADATA, cache_names, caches
from data_pipeline.formats.known import ARCHIVES, FORMATS, NUMBERED, ending, endings_of, known_endings
from data_pipeline.sources.walk import HIDDEN, Found, is_hidden, split_glob, walk
from data_pipeline.stages.run import StageError
from retro_jax.core.paths import is_url, local_path

NO_ENDING = "without an ending"
TFDS = (".array_record", ".tfrecord")


@dataclass(frozen=True)
class Listing:
    """Files of a source in the order of their names; by ending what is read; by reason what is left out."""

    files: tuple[SourceFile, ...]
    left_out: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # (how many, bytes)
    notes: tuple[str, ...] = ()

    def counts(self) -> dict:
        """For the manifest: {"read": {".txt": [files, bytes]}, "left_out": {".csv": [files, bytes]}}."""
        read: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for file in self.files:
            count = read[ending(file.name) or NO_ENDING]
            count[0] += 1
            count[1] += file.bytes
        empty = sum(not file.bytes for file in self.files)
        left_out = {reason: list(count) for reason, count in sorted(self.left_out.items())}
        return {"read": dict(sorted(read.items())), "left_out": left_out, **({"empty": empty} if empty else {})}


def describe_counts(counts: Mapping) -> str:
    """`Listing.counts` in a line."""
    size = sum(count[1] for count in counts["read"].values())
    text = f"{_summed(counts['read'])} ({size / 1e6:,.1f} MB)"
    if counts.get("empty"):
        text += f", {counts['empty']:,} of them empty"
    return f"{text}; left out: {_summed(counts['left_out'])}" if counts["left_out"] else text


def _summed(counts: Mapping) -> str:
    return ", ".join(f"{count[0]:,} {reason}" for reason, count in counts.items()) or "nothing"


def list_files(path: str, where: str, form: str = "", *, any_ending: bool = False) -> Listing:
    """The files of a file, folder or glob.

    Args:
      where: the config key that holds the path, for messages.
      form: a name of FORMATS, with whose endings a folder's files are read (a file or a glob's files have any); "": all.
      any_ending: of a folder too.

    Raises:
      StageError: nothing exists there, or nothing readable; a file of an unknown ending without `form`; damage.
    """
    shown = f"{where}={str(path)!r}"
    if is_url(str(path)):
        single, chosen, found = _in_store(str(path), shown)
    else:
        single, chosen, found = _on_disk(path, where, shown)
    for name in found.files:
        _check_name(name, shown)
    if single and not (form or any_ending):
        (file,) = found.files.values()
        _check_ending(file, where)
    if not single and not any_ending:
        _choose(found, None if form and chosen else endings_of(form), chosen)
    _check_broken(found, None if any_ending or form else endings_of())
    if not found.files:
        raise _nothing(shown, found, chosen, form)
    files = sorted(found.files.values(), key=lambda file: file.name)
    left_out = {reason: (count, size) for reason, (count, size) in found.left_out.items()}
    notes = [
        f"{folder} is a TFDS data set and is not read here; make it a source of its own"
        for folder in sorted(found.tfds)
    ]
    return Listing(tuple(files), left_out, (*notes, *_missing_numbers(found.files)))


def list_data_set(folder: Path, where: str) -> Listing:
    """The shards and metadata of a TFDS data set; other files of its folder are left out."""
    listing = list_files(folder, where, any_ending=True)
    files, left_out = [], dict(listing.left_out)
    for file in listing.files:
        if file.name in METADATA or ending(file.name) in TFDS:
            files.append(file)
        else:
            count, size = left_out.get(ending(file.name) or NO_ENDING, (0, 0))
            left_out[ending(file.name) or NO_ENDING] = (count + 1, size + file.bytes)
    return Listing(tuple(files), left_out)


def _in_store(url: str, shown: str) -> tuple[bool, bool, Found]:
    fs, root = file_system(url)
    try:
        base, listed = attempt(lambda: store_files(fs, root), shown)
    except FileNotFoundError:
        raise StageError(f"{shown} does not exist; give a file, a folder or a glob.") from None
    single, found = list(listed) == [root], Found()
    for path, info in listed.items():
        name = PurePosixPath(path).relative_to(base).as_posix()
        if not single and is_hidden(name):
            found.leave_out(HIDDEN, info["size"] or 0)
        else:
            found.files[name] = SourceFile(fs.unstrip_protocol(path), name, info["size"])
    return single, glob.has_magic(root) and not single, found


def _on_disk(path, where: str, shown: str) -> tuple[bool, bool, Found]:
    try:
        root = Path(os.path.abspath(local_path(path, where)))
    except ValueError as error:
        raise StageError(str(error)) from None
    found, facts = Found(), _stat(root, shown)
    if facts is None:
        base, pattern = split_glob(root, shown)
        return False, True, attempt(lambda: walk(base, pattern), shown)
    if stat.S_ISDIR(facts.st_mode):
        return False, False, attempt(lambda: walk(root, ("**",)), shown)
    if not stat.S_ISREG(facts.st_mode):
        raise StageError(
            f"{shown} is not a file but a pipe, socket or device. Write its content to a file, and give that."
        )
    found.files[root.name] = SourceFile(str(root), root.name, facts.st_size, facts.st_mtime_ns)
    return True, False, found


def _stat(root: Path, shown: str) -> os.stat_result | None:
    """None for a glob. An existing folder or file is not a glob, even with such characters in its name."""
    try:
        return os.stat(root)
    except (FileNotFoundError, NotADirectoryError):
        if root.is_symlink():
            raise StageError(
                f"{shown} is a link to {os.readlink(root)}, which does not exist. Correct the link."
            ) from None
        if glob.has_magic(str(root)):
            return None
        written = os.path.expandvars(str(root))
        hint = f" ($NAME is not expanded here: did you mean {written}?)" if written != str(root) else ""
        raise StageError(f"{shown} does not exist; give a file, a folder or a glob.{hint}") from None
    except PermissionError as error:
        raise forbidden(shown, error) from None
    except OSError as error:
        raise StageError(f"{shown} cannot be opened: {error.strerror}. Give another path.") from None


def _choose(found: Found, endings: tuple[str, ...] | None, chosen: bool) -> None:
    """Keeps the files to read in `found.files`, in place. Endings None: all. A glob may show a part of a folder."""
    cached = cache_names(found.files) if chosen else caches(found.files)
    for name, file in sorted(found.files.items()):
        plain = PurePosixPath(name).name
        reason = ""
        if plain in METADATA:
            reason = "metadata of data sets"
        elif name in cached:
            reason = "caches of the datasets library"
        elif endings is not None and not plain.lower().endswith(endings):
            reason = ending(plain) or NO_ENDING
        if reason:
            del found.files[name]
            found.leave_out(reason, file.bytes)
            if reason in TFDS:
                found.tfds.add(str(PurePosixPath(name).parent))
    taken = {found.nodes[name] for name in found.files if name in found.nodes}
    for name, file in sorted(found.files.items()):
        if (node := found.links.get(name)) is None:
            continue
        if node in taken:  # by the file itself, or by another link
            del found.files[name]
            found.leave_out("links to files of the same source", file.bytes)
        taken.add(node)


def _check_name(name: str, shown: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise StageError(
            f"{shown} holds a file whose name is not UTF-8: {os.fsencode(name)!r}. Rename it; names are part of documents."
        ) from None


def _check_ending(file: SourceFile, where: str) -> None:
    name = PurePosixPath(file.name).name
    if name.lower().endswith(endings_of()):
        return
    key = where.removesuffix(".path") + ".format"
    if name.lower().endswith(ARCHIVES):
        raise StageError(
            f"{where}={file.url!r} is an archive ({ending(name)}). Unpack it, and give the folder with its files."
        )
    what = f"the unknown ending {ending(name)}" if ending(name) else "no ending"
    raise StageError(
        f"{where}={file.url!r} has {what}. Known are {known_endings()}. If it is one of these by its content, say which with "
        f"{key} ({', '.join(FORMATS)}); else convert it, for example to JSON lines."
    )


def _check_broken(found: Found, endings: tuple[str, ...] | None) -> None:
    for name, target in sorted(found.broken.items()):
        if endings is None or name.lower().endswith(endings):
            raise StageError(
                f"{name} of the source is a link to {target}, which does not exist. Correct the link, or remove it from the "
                "source."
            )
        found.leave_out(ending(name) or NO_ENDING)


def _nothing(shown: str, found: Found, chosen: bool, form: str) -> StageError:
    what = "a glob that matches no file" if chosen else "a folder without any file"
    left = _summed({reason: count for reason, count in sorted(found.left_out.items())})
    if not found.left_out:
        return StageError(f"{shown} is {what}; check it with `ls`.")
    archives = [reason for reason in found.left_out if reason in ARCHIVES]
    remedy = " Unpack the archives." if archives else ""
    if found.tfds:
        remedy += f" A TFDS data set is in its folder {sorted(found.tfds)[0]}: give that folder."
    elif not form:
        remedy += (
            f" For other files give a glob and say what they are, for example .../*{_first(found)} with .format=text."
        )
    endings = ", ".join(endings_of(form)) if form else known_endings()
    return StageError(f"{shown} is {what} that is read. It holds {left}; read are {endings}.{remedy}")


def _first(found: Found) -> str:
    return next((reason for reason in sorted(found.left_out) if reason.startswith(".")), ".md")


def _missing_numbers(names: Mapping[str, SourceFile]) -> Iterator[str]:
    """Notes on files numbered "N of M" of which some are missing, by choice or by loss."""
    there: dict[tuple[str, int], set[int]] = defaultdict(set)
    for name in names:
        if match := NUMBERED.search(name):
            there[name[: match.start()] + "-*" + name[match.end() :], int(match[2])].add(int(match[1]))
    for (pattern, count), numbers in sorted(there.items()):
        if missing := sorted(set(range(count)) - numbers):
            first = ", ".join(f"{number:05d}" for number in missing[:3])
            yield f"{pattern} has {len(numbers):,} of {count:,} files; missing: {first}{', ...' if len(missing) > 3 else ''}"
