"""Records of files that hold many documents: JSON lines (plain, gzip, zstandard), Parquet, Arrow, TFDS data sets.

Every function yields (where it stands, record) with a bounded part of the file in memory; `where` is for messages and
names file and line or row. A file that is broken is a StageError, never an early end.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping

from data_pipeline.files import BLOCK, SourceFile, open_file
from data_pipeline.manifests import StageError

JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")
END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream
ROWS = 64  # of a table that are Python objects at once
MARK = "\ufeff"  # a byte-order mark says how a file is encoded and is no part of its text


def decode(content: bytes, path, offset: int) -> str:
    try:
        return content.decode("utf-8").removeprefix(MARK)
    except UnicodeDecodeError as error:
        guess = "utf-16" if offset == 0 and content[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
        raise StageError(
            f"{path} is not UTF-8: byte {offset + error.start:,} is 0x{content[error.start]:02x}. Convert it, for "
            f"example: iconv -f {guess} -t utf-8 {path} > converted.txt"
        ) from None


def too_large(where: str, limit: int) -> StageError:
    return StageError(
        f"{where} is a document of more than config.data.max_document_memory={limit:,} bytes, which is what is held in "
        "memory of one. Split it into documents, or raise the limit."
    )


def json_lines(file: SourceFile, limit: int) -> Iterator[tuple[int, str, Mapping]]:
    """Yields (line number, where, record)."""
    offset = 0
    for number, line in enumerate(_lines(file, limit), start=1):
        where = f"{file.url}, line {number:,}"
        if len(line) > limit:
            raise too_large(where, limit)
        text = decode(line, file.url, offset)
        offset += len(line)
        if not text.strip():
            continue
        try:
            record = json.loads(text.rstrip("\r\n"))
        except (json.JSONDecodeError, RecursionError) as error:
            said = f"{error.msg} at column {error.colno}" if isinstance(error, ValueError) else "it nests too deeply"
            raise StageError(
                f"{where} is not JSON: {said}. Each line must be one JSON object; mend or remove this one."
            ) from None
        yield number, where, record


def _lines(file: SourceFile, limit: int) -> Iterator[bytes]:
    """Lines of a file that may be compressed, by its name; a line over the limit comes cut after limit + 1 bytes."""
    import zstandard  # of the [build] extra; what only reads finished stages does without

    try:
        with open_file(file) as raw:
            stream = raw
            if file.name.endswith(".gz"):
                stream = gzip.open(raw)
            elif file.name.endswith(".zst"):
                stream = io.BufferedReader(_Frames(raw, zstandard.ZstdDecompressor()), BLOCK)
            if stream is not raw and not file.bytes:
                raise EOFError("it is empty")  # gzip and zstandard libraries take this for a file of no lines
            while line := stream.readline(limit + 1):
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise StageError(f"{file.url} is truncated or no compressed file ({error}); fetch or make it again.") from None


class _Frames(io.RawIOBase):
    """zstandard frame by frame: the library's own reader ends a truncated stream without a word."""

    def __init__(self, stream, decompressor):
        super().__init__()
        self._stream, self._decompressor = stream, decompressor
        self._frame, self._packed, self._ready = None, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            self._packed = self._packed or self._stream.read(1 << 16)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._ready = memoryview(self._frame.decompress(self._packed))
            self._packed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


def table_rows(file: SourceFile, columns: list[str], option: str) -> Iterator[tuple[int, str, Mapping]]:
    """Rows of a Parquet or Arrow file (stream or file form), counted from 1, with those top-level columns alone."""
    import pyarrow as pa  # of the [build] extra
    import pyarrow.parquet

    number = 0
    try:
        with open_file(file) as stream:
            if file.name.endswith(".parquet"):
                table = pa.parquet.ParquetFile(stream, buffer_size=BLOCK, pre_buffer=False)
                names, batches = table.schema_arrow.names, None
            else:
                whole = stream.read(6) == b"ARROW1"
                stream.seek(0)
                table = pa.ipc.open_file(stream) if whole else pa.ipc.open_stream(stream)
                names = table.schema.names
                batches = (table.get_batch(i) for i in range(table.num_record_batches)) if whole else iter(table)
            for column in columns:
                if column not in names:
                    there = ", ".join(sorted(names))
                    raise StageError(
                        f"{file.url} has no column {column!r}; there is: {there}. Set {option} to one that every file has."
                    )
            for batch in batches or table.iter_batches(batch_size=ROWS, columns=columns):
                for start in range(0, batch.num_rows, ROWS):
                    for record in batch.slice(start, ROWS).select(columns).to_pylist():
                        number += 1
                        yield number, f"{file.url}, row {number:,}", record
            if batches is not None and not whole:
                stream.seek(-len(END), io.SEEK_END)
                if stream.read() != END:  # the library takes a stream cut between two batches for a whole one
                    raise EOFError("it has no end mark")
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        kind = "Parquet" if file.name.endswith(".parquet") else "Arrow"
        raise StageError(
            f"{file.url} is damaged or no {kind} file (after row {number:,}: {said:.160}); fetch or make it again."
        ) from None
