"""Reads raw documents from sources: text files, JSON lines, Parquet, Arrow, TFDS data sets and pinned packages.

Reading is a generator of `Raw`. It keeps the text unchanged (line ends too), drops a leading
byte-order mark, and gives a reason for each document that it leaves out, so that every document is counted. A source is read in
units, each a pure function of its files, so that a build continues where it stopped and may read many at once.
"""

import hashlib
import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.formats.files import SourceFile, check_unchanged, digest_files, forbidden
from data_pipeline.formats.json_records import holder, too_large
from data_pipeline.formats.known import FORMATS, Wanted, format_of
from data_pipeline.formats.sniff import decode, encoding_by_nulls
from data_pipeline.formats.tfds_text import data_set_folder, split_lengths, split_records
from data_pipeline.packages import catalogue as packages
from data_pipeline.packages.texts import RENDER
from data_pipeline.sources.listing import Listing, list_data_set, list_files
from data_pipeline.stages.run import StageError
from retro_jax.config import DataConfig, SourceConfig
from retro_jax.core.paths import is_url, local_path

TFDS = "tfds"  # a folder of its own making; the other formats are files (formats/known.py)
UNIT_BYTES, UNIT_FILES, UNIT_ROWS = 64 << 20, 1000, 100_000  # small files are read together up to this much
MANY_NULLS = 16  # in a record, from which on it may be UTF-16


@dataclass(frozen=True)
class Raw:
    """A document of a source, before selection."""

    subset: str
    name: str  # where it is from: for people
    key: str  # what it is within its subset: the document's id comes from this, and does not change when the source is re-ordered
    text: str
    license: str
    dropped: str = ""  # the reason why reading leaves it out
    title: str = ""  # where the source has one


@dataclass(frozen=True)
class Unit:
    """A part of a source that is read at once: some files, or rows [start, stop) of a split of a TFDS data set."""

    files: tuple[SourceFile, ...] = ()
    split: str = ""
    start: int = 0
    stop: int = 0


def read_source(name: str, source: SourceConfig, limit: int = DataConfig.max_document_memory) -> Iterator[Raw]:
    """Yields the documents of one source of the config, in the order of its files.

    Args:
      limit: bytes of one document (of a line, in JSON lines).

    Raises:
      StageError: a missing file, not UTF-8 (file and byte), broken JSON (file and line), a missing key, a broken
        archive, a document over the limit, a store that does not answer.
    """
    for unit in source_units(name, source):
        yield from read_unit(name, source, unit, limit)


def list_source(name: str, source: SourceConfig) -> Listing | None:
    """The listing of a source's files; None for a package.

    Raises:
      StageError: neither or both of package and path, an unknown format, or what `list_files` finds.
    """
    _check_source(name, source)
    if source.package:
        return None
    where = f"config.data.sources.{name}.path"
    if folder := _tfds(name, source):
        return list_data_set(folder, where)
    return list_files(source.path, where, source.format)


def source_units(name: str, source: SourceConfig, listing: Listing | None = None) -> list[Unit]:
    """The units of a source, in order, from the listing given or a new one."""
    _check_source(name, source)
    if source.package:
        return [Unit()]
    if folder := _tfds(name, source):
        lengths = split_lengths(folder, source.split, f"config.data.sources.{name}")
        return [
            Unit(split=split, start=start, stop=min(start + UNIT_ROWS, length))
            for split, length in lengths.items()
            for start in range(0, length, UNIT_ROWS)
        ]
    units, some, size = [], [], 0
    for file in (listing or list_source(name, source)).files:
        if some and (size + file.bytes > UNIT_BYTES or len(some) == UNIT_FILES):
            units.append(Unit(tuple(some)))
            some, size = [], 0
        some.append(file)
        size += file.bytes
    return [*units, Unit(tuple(some))]


def read_unit(name: str, source: SourceConfig, unit: Unit, limit: int) -> Iterator[Raw]:
    """Yields the documents of one unit; raises as `read_source` does."""
    if source.package:
        package = packages.package(source.package)
        for title, text, dropped in RENDER[source.package](packages.fetch(package)):
            yield Raw(name, title, title, text, package.license, dropped)
        return
    if unit.split:
        records = split_records(_tfds(name, source), unit.split, unit.start, unit.stop)
        yield from _documents(name, source, unit.split, records, limit)
    keys = (source.text_key, source.subset_key, source.id_key, source.title_key)
    columns = tuple(dict.fromkeys(key.partition(".")[0] for key in keys if key))
    wanted = Wanted(limit, columns, f"config.data.sources.{name}.text_key (subset_key, id_key, title_key)")
    for file in unit.files:
        form = FORMATS[source.format or format_of(file.name)]
        if form.one_document:
            for _, _, text in form.read(file, wanted):
                yield Raw(name, file.name, file.name, text, source.license)
        else:
            yield from _documents(name, source, file.name, form.read(file, wanted), limit)
        check_unchanged(file)


def source_digest(name: str, source: SourceConfig, listing: Listing | None = None) -> str:
    """SHA-256 of a source's content: its package's pinned checksum, or the names and contents of its files."""
    listing = listing or list_source(name, source)
    parts = [digest_files(list(listing.files)) if listing else packages.package(source.package).sha256]
    if source.evaluation_titles:
        where = f"config.data.sources.{name}.evaluation_titles"
        parts.append(digest_files(list(list_files(source.evaluation_titles, where, any_ending=True).files)))
    return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _check_source(name: str, source: SourceConfig) -> None:
    if bool(source.package) == bool(source.path):
        raise StageError(
            f"config.data.sources.{name} needs either a package or a path, but has package={source.package!r} and "
            f"path={source.path!r}."
        )
    if source.format not in ("", *FORMATS, TFDS):
        known = f"{', '.join(FORMATS)} or {TFDS}"
        raise StageError(f"config.data.sources.{name}.format must be {known}, but is {source.format!r}.")


def source_files(name: str, source: SourceConfig) -> list[SourceFile]:
    """The files of `list_source`; none of a package."""
    listing = list_source(name, source)
    return list(listing.files) if listing else []


def _tfds(name: str, source: SourceConfig) -> Path | None:
    """The folder of a TFDS data set, where the source is one."""
    if source.format not in ("", "tfds"):
        return None
    where = f"config.data.sources.{name}.path"
    if is_url(source.path):
        if source.format:
            raise StageError(
                f"{where}={source.path!r} is a URL, but TFDS data sets are read from this machine. Copy the folder here, or "
                "export it to Parquet."
            )
        return None
    try:
        folder = data_set_folder(local_path(source.path, where), where)
    except PermissionError as error:
        raise forbidden(f"{where}={source.path!r}", error) from None
    except OSError:
        return None  # list_files reports missing paths
    except ValueError as error:
        raise StageError(str(error)) from None
    if source.format and folder is None:
        raise StageError(
            f"{where}={source.path!r} holds no TFDS data set: a folder with features.json, dataset_info.json and files "
            "*.array_record-00000-of-00001, or one that holds such a folder named as a version (1.0.0)."
        )
    return folder


def _documents(name: str, source: SourceConfig, shown: str, records, limit: int) -> Iterator[Raw]:
    """The documents of (number, where, record); their key is their id or their text, for rows move in a shuffled file."""
    option = f"config.data.sources.{name}"
    for number, where, record in records:
        subset = title = ""
        if source.subset_key:
            subset = _string(record, source.subset_key, where, f"{option}.subset_key")
            if not subset:
                raise StageError(f"{where} has an empty name under {source.subset_key!r}. Give it one.")
        if source.title_key:
            title = _string(record, source.title_key, where, f"{option}.title_key") or ""
        text = record if isinstance(record, str) else _string(record, source.text_key, where, f"{option}.text_key")
        content = _encoded(text or "", where)
        _encoded(subset + title, where)
        many = content.count(b"\0") >= MANY_NULLS
        if many and (
            encoding := encoding_by_nulls(text.encode("latin1", "replace"))
        ):  # a byte a letter, as it was read
            raise StageError(
                f"{where} holds {encoding.upper()} that was read as UTF-8: NUL bytes stand between its letters. Make the file "
                "again from text that was decoded as what it is."
            )
        if len(content) > limit:
            raise too_large(where, limit)
        key = hashlib.sha256(content).hexdigest()
        if source.id_key:
            key = _identity(record, source.id_key, where, f"{option}.id_key")
        dropped = "null" if text is None else ""
        yield Raw(subset or name, f"{shown}:{number}", key, text or "", source.license, dropped, title)


def _identity(record, dotted: str, where: str, option: str) -> str:
    """The id of a record, a string or a whole number; StageError if it is missing, empty or anything else."""
    value = _value(record, dotted, where, option)
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole and (not value or not isinstance(value, str)):
        raise StageError(
            f"{where} has no id under {dotted!r}, but {value!r:.40}. Give it one, or leave {option} empty."
        )
    _encoded(str(value), where)
    return str(value)


def _encoded(text: str, where: str) -> bytes:
    """Encodes as UTF-8; StageError if that is impossible."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise StageError(
            f"{where} holds half of a surrogate pair (\\u{ord(text[error.start]):04x}), which is no text in any "
            "encoding. Correct this line, or make the file again."
        ) from None


def _string(record, dotted: str, where: str, option: str) -> str | None:
    """record[a][b] for "a.b", None for null; StageError with the record's keys if it is missing or not a string."""
    value = _value(record, dotted, where, option)
    if value is not None and not isinstance(value, str):
        raise StageError(f"{where} has no text under {dotted!r}, but {value!r:.40}. Set {option} to a key with text.")
    return value


def _value(record, dotted: str, where: str, option: str):
    value = record
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            there = ", ".join(sorted(value)) if isinstance(value, Mapping) else f"no keys (it is {value!r:.40})"
            path, _, line = where.rpartition(", line ")
            inside = holder(value, path) if line == "1" and isinstance(value, Mapping) else ""
            remedy = f"Set {option} to the right one.{' Or: ' if inside else ''}{inside}"
            raise StageError(f"{where} has no key {dotted!r}; it has: {there}. {remedy}")
        value = value[part]
    if isinstance(value, bytes):
        value = decode(value, where)
    return value
