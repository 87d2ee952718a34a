"""Reads the records of an evaluation set's files as texts to score, with the build's own readers.

Whole documents (`documents`) are read as a build reads its sources, with all their keys and formats. Any other protocol
defines the forms of its public files, and reads one record after another.
"""

import codecs
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from data_pipeline.formats.compression import COMPRESSIONS, open_plain
from data_pipeline.formats.files import SourceFile, check_unchanged
from data_pipeline.formats.known import FORMATS, Wanted, ending
from data_pipeline.sources.listing import NO_ENDING, Listing, list_files
from data_pipeline.sources.readers import Unit, list_source, read_unit, source_units
from data_pipeline.stages.run import StageError
from retro_jax.config import SourceConfig
from retro_jax.evaluate.protocols import Excluded, Protocol, get
from retro_jax.evaluate.protocols.csv_rows import csv_rows

DOCUMENTS = "documents"  # the protocol that scores whole texts
QUESTIONS = "questions"  # data_pipeline/evaluation/questions reads them
OF_DOCUMENTS = ("package", "format", "subset_key", "id_key", "title_key", "split")  # keys that other protocols fix


@dataclass(frozen=True)
class Entry:
    """A document of a set."""

    subset: str
    name: str  # for reports
    place: str  # in the set's files; its id is made from this
    license: str
    text: str
    scored: tuple[tuple[int, int], ...] = ()  # byte ranges; (): all of it
    words: int = 0
    dropped: str = ""  # why it is left out


def check_protocol(name: str, source: SourceConfig) -> None:
    """Raises ValueError for an unknown protocol, or for keys of the source that the protocol does not read."""
    if source.protocol == QUESTIONS:
        raise StageError(
            f"config.data.sources.{name}.protocol={QUESTIONS!r}: questions are not text to score. Leave the source out of the "
            f"config and join them: retro join --set={name} --path=FILES --protocol={QUESTIONS}."
        )
    get(source.protocol)
    if source.protocol == DOCUMENTS:
        return
    given = [key for key in OF_DOCUMENTS if getattr(source, key)] + ["text_key"] * (source.text_key != "text")
    if given:
        raise StageError(
            f"config.data.sources.{name}.{given[0]}={getattr(source, given[0])!r} is of the protocol {DOCUMENTS}; "
            f"{source.protocol!r} reads its own form of record. Remove the key, or take --protocol={DOCUMENTS}."
        )


def list_set(name: str, source: SourceConfig) -> Listing | None:
    """The files of a set that are read, and those that are left out; None for a package.

    Raises:
      StageError: no file that the protocol reads.
    """
    check_protocol(name, source)
    if source.protocol == DOCUMENTS:
        return list_source(name, source)
    where, protocol = f"config.data.sources.{name}.path", get(source.protocol)
    listing = list_files(source.path, where, any_ending=True)
    files, left_out, known = [], dict(listing.left_out), [_reads(protocol, file.name) for file in listing.files]
    for file, is_read in zip(listing.files, known, strict=True):
        if is_read:
            files.append(file)
        else:
            reason = ending(file.name) or NO_ENDING
            count, size = left_out.get(reason, (0, 0))
            left_out[reason] = (count + 1, size + file.bytes)
    if not files:
        raise StageError(
            f"{where}={source.path!r} has no file that the protocol {protocol.name!r} reads: they end in "
            f"{', '.join(protocol.forms)} (each also compressed: {', '.join(COMPRESSIONS)}). Give others, or another --protocol."
        )
    return Listing(tuple(files), left_out, listing.notes)


def check_records(name: str, source: SourceConfig, limit: int) -> None:
    """Lists the files of a set and reads its first record; raises as `read_entries` does."""
    units = source_units(name, source, list_set(name, source))
    if not source.package and "://" not in source.path:
        next(read_entries(name, source, units[0], limit), None)


def _plain_name(name: str) -> str:
    """A file's name without the ending of its compression."""
    return next((name[: -len(packed)] for packed in COMPRESSIONS if name.lower().endswith(packed)), name)


def _reads(protocol: Protocol, name: str) -> bool:
    return _plain_name(name).lower().endswith(tuple(protocol.forms))


def read_entries(name: str, source: SourceConfig, unit: Unit, limit: int) -> Iterator[Entry]:
    """Yields the documents of one unit of a source, in the order of its files.

    Args:
      limit: bytes of one document.

    Raises:
      StageError: a record that is not of the format, with file and line.
    """
    if source.protocol == DOCUMENTS:
        for raw in read_unit(name, source, unit, limit):
            yield Entry(raw.subset, raw.title or raw.name, raw.name, raw.license, raw.text, dropped=raw.dropped)
        return
    protocol = get(source.protocol)
    for file in unit.files:
        for number, found in _texts(protocol, file, limit):
            place = f"{file.name}:{number}"
            if isinstance(found, Excluded):
                yield Entry(name, place, place, source.license, "", dropped=found.reason)
            else:
                facts = (found.text, found.scored, found.words)
                yield Entry(found.subset or name, found.name or place, place, source.license, *facts)
        check_unchanged(file)


def _texts(protocol: Protocol, file: SourceFile, limit: int):
    """Yields the texts of the records of one file; errors name the file, and the line where it is known."""
    where = [file.url]

    def records() -> Iterator[Mapping | str]:
        for at, record in _records(protocol, file, limit):
            where[0] = at
            yield record

    try:
        yield from protocol.texts(records())
    except StageError:
        raise
    except ValueError as error:
        raise StageError(f"{where[0]}: {error} The protocol is {protocol.name!r}.") from None


def _records(protocol: Protocol, file: SourceFile, limit: int) -> Iterator[tuple[str, Mapping | str]]:
    """Yields (where, record) of a file in the form that the protocol says."""
    form = protocol.form_of(_plain_name(file.name))
    wanted = Wanted(limit, protocol.columns, f"the protocol {protocol.name!r}", protocol.optional)
    if form in ("text", "json", "table"):
        reader = {"text": "text", "json": "jsonl"}.get(form) or ("arrow" if file.name.endswith(".arrow") else "parquet")
        for _, where, record in FORMATS[reader].read(file, wanted):
            yield where, record
        return
    lines = _lines(file, limit)
    if form == "csv":
        for number, row in enumerate(csv_rows(lines), start=1):
            yield f"{file.url}, row {number:,}", row
        return
    for number, line in enumerate(lines, start=1):
        yield f"{file.url}, line {number:,}", line


def _lines(file: SourceFile, limit: int) -> Iterator[str]:
    """Lines of UTF-8 with their endings; a byte-order mark is left out."""
    with open_plain(file) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(limit + 1), b""), start=1):
            if len(line) > limit:
                raise StageError(
                    f"{file.url}, line {number:,} has more than config.data.max_document_memory={limit:,} bytes. Raise it."
                )
            try:
                yield (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode()
            except UnicodeDecodeError as error:
                raise StageError(
                    f"{file.url}, line {number:,} is not UTF-8 (byte {error.start} of the line). Convert the file: "
                    f"iconv -f LATIN1 -t UTF-8."
                ) from None
