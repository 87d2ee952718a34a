"""JSON records: one value per line, or one array of objects or strings; plain or compressed.

Yields (number, place, record) with a bounded part of the file in memory, as `data_pipeline/formats/records.py` does.
"""

import codecs
import io
import json
import re
import shlex
from collections.abc import Iterator, Mapping

from data_pipeline.formats.compression import convert_command, open_plain
from data_pipeline.formats.files import BLOCK, SourceFile
from data_pipeline.formats.sniff import HEAD, MARK, check_text, decode, not_utf8
from data_pipeline.stages.run import StageError

SPACE = re.compile(r"[ \t\n\r]*")
NEAR_END = 16  # characters: an error this near to the end of the buffer may be of a value that continues


def too_large(where: str, limit: int) -> StageError:
    """The error for a document over config.data.max_document_memory."""
    return StageError(
        f"{where} is a document of more than config.data.max_document_memory={limit:,} bytes, which is what is held in "
        "memory of one. Split it into documents, or raise the limit."
    )


def json_records(file: SourceFile, limit: int) -> Iterator[tuple[int, str, Mapping | str]]:
    """Yields (number of line or element, where, record); an element of an array may be a string."""
    with open_plain(file) as stream:
        head = stream.peek(HEAD)
        check_text(head, file.url, convert_command(file))
        if head.removeprefix(MARK.encode()).lstrip()[:1] == b"[":
            yield from _Array(file, stream, limit)
        else:
            yield from _lines(file, stream, limit)


def _lines(file: SourceFile, stream: io.BufferedReader, limit: int) -> Iterator[tuple[int, str, Mapping]]:
    offset, convert = 0, convert_command(file)
    for number, line in enumerate(iter(lambda: stream.readline(limit + 1), b""), start=1):
        where = f"{file.url}, line {number:,}"
        if len(line) > limit:
            raise too_large(where, limit)
        text = decode(line, file.url, offset, convert)
        if not text.strip():
            offset += len(line)
            continue
        try:
            record = json.loads(text.rstrip("\r\n"))
        except (json.JSONDecodeError, RecursionError) as error:
            rest = stream.read(limit) if not offset else b""
            raise _no_json(file, where, text, rest, error, last=not line.endswith(b"\n")) from None
        offset += len(line)
        yield number, where, record


def _no_json(file: SourceFile, where: str, text: str, rest: bytes, error: Exception, last: bool) -> StageError:
    if not isinstance(error, json.JSONDecodeError):
        return StageError(f"{where} is not JSON: it nests too deeply. Make it flatter.")
    said = f"{where} is not JSON: {error.msg} at column {error.colno}."
    if re.match(r"\s*<(!doctype|html|\?xml)", text, re.IGNORECASE):
        return StageError(
            f"{said} It is a page or a message of a server ({text.strip()[:40]!r}), not data. Fetch it again."
        )
    if rest and (remedy := _over_lines(file, text, rest)):
        return StageError(f"{where} begins a JSON value that spans several lines. {remedy}")
    if last and _unfinished(error, text):
        return StageError(f"{said} It is the last line and has no end, so the file is cut off. Fetch or make it again.")
    return StageError(f"{said} Each line must be one JSON object. Correct this one, or make the file again.")


def _unfinished(error: json.JSONDecodeError, text: str) -> bool:
    """Whether more text could resolve the error."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip()) - NEAR_END


def _over_lines(file: SourceFile, text: str, rest: bytes) -> str:
    """The command that turns pretty-printed objects into JSON lines; "" if the file is no such object."""
    try:
        whole = text + rest.decode()
        record, end = json.JSONDecoder().raw_decode(whole, SPACE.match(whole).end())
    except (ValueError, RecursionError):
        return ""
    if not isinstance(record, dict):
        return ""
    return holder(record, file.url) or f"Put each on a line of its own: jq -c . {shlex.quote(file.url)} > lines.jsonl"


def holder(record: Mapping, path: str) -> str:
    """The command that extracts an array of documents from one object; "" if there is none."""
    for key, value in record.items():
        alone = len(record) == 1  # an array of strings beside other keys is more likely one of tags
        if isinstance(value, list) and value and isinstance(value[0], dict | str if alone else dict):
            what = "objects" if isinstance(value[0], dict) else "strings"
            return (
                f"It is one object that holds an array of {len(value):,} {what} under {key!r}. If these are the documents, "
                f"write them alone: jq -c {shlex.quote(f'.[{json.dumps(key)}][]')} {shlex.quote(path)} > documents.jsonl"
            )
    return ""


class _Array:
    """Iterates over the elements of a file that is one array, read a block at a time."""

    def __init__(self, file: SourceFile, stream: io.BufferedReader, limit: int):
        self._file, self._stream, self._limit = file, stream, limit
        self._decoder, self._scan = codecs.getincrementaldecoder("utf-8")(), json.JSONDecoder().raw_decode
        self._buffer, self._at, self._bytes, self._ended = "", 0, 0, False
        self._number = 0

    def __iter__(self) -> Iterator[tuple[int, str, Mapping | str]]:
        if self._next() == MARK:
            self._at += 1
        self._take("[")
        if self._next() != "]":
            while True:
                self._number += 1
                yield self._number, self._where, self._value()
                if self._next() != ",":
                    break
                self._take(",")
        self._take("]")
        if self._next():
            raise StageError(
                f"{self._file.url} holds more after the end of its array of {self._number:,} elements. It must be one "
                "array, or a JSON object a line."
            )

    @property
    def _where(self) -> str:
        return f"{self._file.url}, element {self._number:,}"

    def _more(self) -> None:
        block = self._stream.read(
            max(BLOCK, len(self._buffer) - self._at)
        )  # so that a long element is scanned few times
        self._ended = not block
        pending = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(block, self._ended)
        except UnicodeDecodeError as error:
            offset = self._bytes - pending
            raise not_utf8(error, error.object, self._file.url, offset, convert_command(self._file)) from None
        self._bytes += len(block)
        self._buffer, self._at = self._buffer[self._at :] + text, 0

    def _next(self) -> str:
        """The next non-space character, "" at the end."""
        while True:
            self._at = SPACE.match(self._buffer, self._at).end()
            if self._at < len(self._buffer) or self._ended:
                return self._buffer[self._at : self._at + 1]
            self._more()

    def _take(self, wanted: str) -> None:
        found = self._next()
        if not found:
            raise self._cut_off()
        if found != wanted:
            wanted = "',' or ']'" if wanted == "]" else repr(wanted)
            raise StageError(
                f"{self._where} is followed by {found!r} where {wanted} belongs. Correct it, or make the file again."
            )
        self._at += 1

    def _value(self):
        if not self._next():
            raise self._cut_off()
        while True:
            try:
                value, end = self._scan(self._buffer, self._at)
                if end < len(self._buffer) or self._ended:
                    self._at = end
                    return self._checked(value)
            except json.JSONDecodeError as error:
                open_end = _unfinished(error, self._buffer)
                if self._ended and open_end:
                    raise self._cut_off() from None
                if not open_end:
                    raise StageError(
                        f"{self._where} is not JSON: {error.msg}, {error.pos - self._at:,} characters into it. Correct it, "
                        "or make the file again."
                    ) from None
            except RecursionError:
                raise StageError(f"{self._where} nests too deeply. Make it flatter.") from None
            if len(self._buffer) - self._at > self._limit:
                raise too_large(self._where, self._limit)
            self._more()

    def _checked(self, value):
        if isinstance(value, str) and value.lstrip()[:1] == "{":
            try:
                twice = isinstance(json.loads(value), dict)
            except (ValueError, RecursionError):
                twice = False
            if twice:
                raise StageError(
                    f"{self._where} is a string that holds a JSON object: it was encoded twice. Write the objects themselves: "
                    f"jq -c '.[] | fromjson' {shlex.quote(self._file.url)} > lines.jsonl"
                )
        return value

    def _cut_off(self) -> StageError:
        return StageError(
            f"{self._file.url} is cut off within element {max(1, self._number):,} of its array. Fetch or make it again."
        )
