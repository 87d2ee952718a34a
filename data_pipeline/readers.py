"""Text of every source as raw documents: text files, JSON lines, Parquet, Arrow, TFDS data sets and pinned packages.

A reader is a generator of `Raw`; it keeps the text as it stands in the file (line ends and all), drops a leading
byte-order mark, and says of a document it leaves out why, so that every document is counted. A source is read in
units, each a pure function of its files, so that a build goes on where it stopped and may read many at once.
"""

import hashlib
import numbers
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from data_pipeline import packages
from data_pipeline.files import SourceFile, digest_files, list_files, open_file
from data_pipeline.manifests import StageError
from data_pipeline.package_texts import RENDER
from data_pipeline.records import JSONL, decode, json_lines, table_rows, too_large
from retro_jax.config import DataConfig, SourceConfig

ENDINGS = {"text": (".txt",), "jsonl": JSONL, "parquet": (".parquet",), "arrow": (".arrow",)}
ALL = tuple(ending for endings in ENDINGS.values() for ending in endings)
FORMATS = (*ENDINGS, "tfds")
TFDS_MARK = "features.json"  # a folder that holds it is a TFDS data set
UNIT_BYTES, UNIT_FILES, UNIT_ROWS = 64 << 20, 1000, 100_000  # small files are read together up to this much


@dataclass(frozen=True)
class Raw:
    """A document as its source has it, before any selection."""

    subset: str
    name: str  # where it is from: for people
    key: str  # what it is within its subset: the document's id comes from this, and does not change when the source is re-ordered
    text: str
    license: str
    dropped: str = ""  # why the reader itself leaves it out
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
      StageError: nothing there, not UTF-8 (file and byte), broken JSON (file and line), a missing key, a broken
        archive, a document over the limit, a store that does not answer.
    """
    for unit in source_units(name, source):
        yield from read_unit(name, source, unit, limit)


def source_units(name: str, source: SourceConfig) -> list[Unit]:
    """The units of a source, in order."""
    _check_source(name, source)
    if source.package:
        return [Unit()]
    if _format(name, source) == "tfds":
        from data_pipeline.joined import split_lengths

        lengths = split_lengths(source.path, source.split, f"config.data.sources.{name}")
        return [
            Unit(split=split, start=start, stop=min(start + UNIT_ROWS, length))
            for split, length in lengths.items()
            for start in range(0, length, UNIT_ROWS)
        ]
    units, some, size = [], [], 0
    for file in source_files(name, source):
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
        from data_pipeline.joined import split_records

        records = split_records(source.path, unit.split, unit.start, unit.stop)
        yield from _documents(name, source, unit.split, records, limit)
    for file in unit.files:
        kind = _format(name, source, file.name)
        if kind == "text":
            if file.bytes > limit:
                raise too_large(file.url, limit)
            with open_file(file) as stream:
                yield Raw(name, file.name, file.name, decode(stream.read(), file.url, 0), source.license)
        elif kind == "jsonl":
            yield from _documents(name, source, file.name, json_lines(file, limit), limit)
        else:
            keys = (source.text_key, source.subset_key, source.id_key, source.title_key)
            columns = list(dict.fromkeys(key.partition(".")[0] for key in keys if key))
            option = f"config.data.sources.{name}.text_key (subset_key, id_key, title_key)"
            yield from _documents(name, source, file.name, table_rows(file, columns, option), limit)


def source_digest(name: str, source: SourceConfig) -> str:
    """SHA-256 of what the source holds: its package's pinned checksum, or the names and contents of its files."""
    _check_source(name, source)
    parts = [packages.package(source.package).sha256 if source.package else digest_files(source_files(name, source))]
    if source.evaluation_titles:
        where = f"config.data.sources.{name}.evaluation_titles"
        parts.append(digest_files(list_files(source.evaluation_titles, ("",), where)))
    return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _check_source(name: str, source: SourceConfig) -> None:
    if bool(source.package) == bool(source.path):
        raise StageError(
            f"config.data.sources.{name} needs either a package or a path, but has package={source.package!r} and "
            f"path={source.path!r}."
        )
    if source.format not in ("", *FORMATS):
        known = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise StageError(f"config.data.sources.{name}.format must be {known}, but is {source.format!r}.")


def source_files(name: str, source: SourceConfig) -> list[SourceFile]:
    """The source's files with their names relative to what was pointed at, in the order of these names.

    Raises:
      StageError: no file is there, or the format is unknown.
    """
    _check_source(name, source)
    kind = _format(name, source)
    endings = ("",) if kind == "tfds" else ENDINGS[source.format] if source.format else ALL
    return list_files(source.path, endings, f"config.data.sources.{name}")


def _format(name: str, source: SourceConfig, file: str = "") -> str:
    """Of the source, or of one of its files: as the config says, else by the name."""
    if source.format:
        return source.format
    if not file:
        here = os.path.join(os.path.expanduser(source.path), TFDS_MARK)
        return "tfds" if "://" not in source.path and os.path.exists(here) else "text"
    if file.endswith(".json"):
        return "jsonl"
    return next((kind for kind, endings in ENDINGS.items() if file.endswith(endings)), "text")


def _documents(name: str, source: SourceConfig, shown: str, records, limit: int) -> Iterator[Raw]:
    """The documents of (number, where, record); their key is their id or their text, for rows move in a shuffled file."""
    for number, where, record in records:
        subset = title = ""
        if source.subset_key:
            subset = _string(record, source.subset_key, where, f"config.data.sources.{name}.subset_key")
            if not subset:
                raise StageError(f"{where} has an empty name under {source.subset_key!r}; mend or remove it.")
        if source.title_key:
            title = _string(record, source.title_key, where, f"config.data.sources.{name}.title_key") or ""
        text = _string(record, source.text_key, where, f"config.data.sources.{name}.text_key")
        content = _encoded(text or "", where)
        _encoded(subset + title, where)
        if len(content) > limit:
            raise too_large(where, limit)
        key = hashlib.sha256(content).hexdigest()
        if source.id_key:
            key = _identity(record, source.id_key, where, f"config.data.sources.{name}.id_key")
        dropped = "null" if text is None else ""
        yield Raw(subset or name, f"{shown}:{number}", key, text or "", source.license, dropped, title)


def _identity(record, dotted: str, where: str, option: str) -> str:
    """The id of a record, a string or a whole number; StageError if it is missing, empty or anything else."""
    value = _value(record, dotted, where, option)
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole and (not value or not isinstance(value, str)):
        raise StageError(f"{where} has no id under {dotted!r}, but {value!r:.40}. Mend it, or leave {option} empty.")
    _encoded(str(value), where)
    return str(value)


def _encoded(text: str, where: str) -> bytes:
    """UTF-8; StageError where there is none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise StageError(
            f"{where} holds half of a surrogate pair (\\u{ord(text[error.start]):04x}), which is no text in any "
            "encoding. Mend or remove this line."
        ) from None


def _string(record, dotted: str, where: str, option: str) -> str | None:
    """record[a][b] for "a.b", None for null; StageError with the keys that are there if it is missing or no string."""
    value = _value(record, dotted, where, option)
    if value is not None and not isinstance(value, str):
        raise StageError(f"{where} has no text under {dotted!r}, but {value!r:.40}. Set {option} to a key with text.")
    return value


def _value(record, dotted: str, where: str, option: str):
    value = record
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            there = ", ".join(sorted(value)) if isinstance(value, Mapping) else f"no keys (it is {value!r:.40})"
            raise StageError(f"{where} has no key {dotted!r}; there is: {there}. Set {option} to the right one.")
        value = value[part]
    if isinstance(value, bytes):
        value = decode(value, where, 0)
    return value
