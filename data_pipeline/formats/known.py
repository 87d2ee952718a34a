"""The known formats: one entry for each, chosen by the ending of a file's name.

A new format is one entry of FORMATS, from any module: FORMATS["xml"] = Format((".xml",), read_xml). Endings count in capitals too, and behind those of a compressible format stands
one of COMPRESSIONS if the file is compressed.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.formats.compression import COMPRESSIONS, convert_command, open_plain
from data_pipeline.formats.files import SourceFile
from data_pipeline.formats.json_records import json_records, too_large
from data_pipeline.formats.records import arrow_rows, parquet_rows
from data_pipeline.formats.sniff import check_text, decode

NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})")
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Wanted:
    """The arguments of a format's `read`."""

    limit: int  # bytes of one document
    columns: Sequence[str]  # of a table
    option: str  # the config keys that name them, for messages
    optional: Sequence[str] = ()  # of a table, read where it has them


@dataclass(frozen=True)
class Format:
    """A file format. `read` yields (number, place, record); a record is a map, or the text itself."""

    endings: tuple[str, ...]
    read: Callable[[SourceFile, Wanted], Iterator[tuple[int, str, Mapping | str]]]
    compressible: bool = False
    one_document: bool = False  # a file is a document, identified by its path


def _whole_text(file: SourceFile, wanted: Wanted) -> Iterator[tuple[int, str, str]]:
    if file.bytes > wanted.limit and file.name.lower().endswith(FORMATS["text"].endings):
        raise too_large(file.url, wanted.limit)
    with open_plain(file) as stream:
        content = stream.read(wanted.limit + 1)
    if len(content) > wanted.limit:
        raise too_large(file.url, wanted.limit)
    convert = convert_command(file)
    check_text(content, file.url, convert)
    yield 0, file.url, decode(content, file.url, 0, convert)


FORMATS = {
    "text": Format((".txt",), _whole_text, compressible=True, one_document=True),
    "jsonl": Format((".jsonl", ".ndjson", ".json"), lambda file, wanted: json_records(file, wanted.limit), True),
    "parquet": Format(
        (".parquet",), lambda file, wanted: parquet_rows(file, list(wanted.columns), wanted.option, wanted.optional)
    ),
    "arrow": Format(
        (".arrow",), lambda file, wanted: arrow_rows(file, list(wanted.columns), wanted.option, wanted.optional)
    ),
}


def endings_of(name: str = "") -> tuple[str, ...]:
    """The endings of one format, or of all."""
    found = []
    for form in [FORMATS[name]] if name else FORMATS.values():
        found += [end + packed for packed in ("", *(COMPRESSIONS if form.compressible else ())) for end in form.endings]
    return tuple(found)


def known_endings() -> str:
    """Lists the endings for messages."""
    packed = ", ".join(end for form in FORMATS.values() if form.compressible for end in form.endings)
    plain = ", ".join(end for form in FORMATS.values() if not form.compressible for end in form.endings)
    return f"{packed} (each also compressed: {', '.join(COMPRESSIONS)}), {plain}"


def format_of(name: str) -> str:
    """The format of a file by its name, "" for an unknown ending."""
    return next((form for form in FORMATS if name.lower().endswith(endings_of(form))), "")


def is_packed(name: str) -> bool:
    """Whether the name says that the file is compressed, so that its text is larger than the file."""
    return name.lower().endswith((*COMPRESSIONS, *FORMATS["parquet"].endings))


def ending(name: str) -> str:
    """The ending under which a listing counts a file: a known one, or the last (with the one before a compression); "" without one."""
    last = NUMBERED.sub("", name.rpartition("/")[2].lower())
    known = [end for end in (*endings_of(), *ARCHIVES) if last.endswith(end)]
    if known:
        return max(known, key=len)
    stem, dot, suffix = last.rpartition(".")
    if not dot or not stem:
        return ""
    if f".{suffix}" in COMPRESSIONS and "." in stem:
        return f".{stem.rpartition('.')[2]}.{suffix}"
    return f".{suffix}"
