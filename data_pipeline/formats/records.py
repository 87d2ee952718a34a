"""Table records: Parquet and Arrow files, row by row.

Yields (number, place, record) with a bounded part of the file in memory; `where` is for messages and names
file and row. A file that is broken is a StageError, never an early end. The only file that imports pyarrow.
"""

import io
from collections.abc import Iterator, Mapping, Sequence

from data_pipeline.formats.files import BLOCK, SourceFile, open_file
from data_pipeline.formats.sniff import check_kind
from data_pipeline.stages.run import StageError

END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream
ROWS = 64  # of a table that are Python objects at once


def parquet_rows(
    file: SourceFile, columns: list[str], option: str, optional: Sequence[str] = ()
) -> Iterator[tuple[int, str, Mapping]]:
    """Yields the rows of a Parquet file, counted from 1, with the given columns and the existing ones of `optional`."""
    import pyarrow as pa  # of the [build] extra
    import pyarrow.parquet

    with _reading(file, "Parquet table") as (stream, rows):
        table = pa.parquet.ParquetFile(stream, buffer_size=BLOCK, pre_buffer=False, page_checksum_verification=True)
        columns = _check_columns(file, table.schema_arrow.names, columns, option, optional)
        for batch in table.iter_batches(batch_size=ROWS, columns=columns):
            yield from rows(batch, columns)
        if rows.number != table.metadata.num_rows:
            raise EOFError(f"its metadata says {table.metadata.num_rows:,} rows, but there are {rows.number:,}")


def arrow_rows(
    file: SourceFile, columns: list[str], option: str, optional: Sequence[str] = ()
) -> Iterator[tuple[int, str, Mapping]]:
    """Yields the rows of an Arrow file (stream or file form), as `parquet_rows` does."""
    import pyarrow as pa

    with _reading(file, "Arrow table") as (stream, rows):
        whole = stream.read(6) == b"ARROW1"
        stream.seek(0)
        table = pa.ipc.open_file(stream) if whole else pa.ipc.open_stream(stream)
        columns = _check_columns(file, table.schema.names, columns, option, optional)
        for batch in (table.get_batch(n) for n in range(table.num_record_batches)) if whole else table:
            yield from rows(batch, columns)
        if not whole:
            if (end := stream.tell()) < file.bytes:  # the library reads zeros within a stream as its end
                raise EOFError(f"it ends at byte {end:,} of {file.bytes:,}; what follows would be lost")
            stream.seek(-len(END), io.SEEK_END)
            if stream.read() != END:  # the library reads a stream cut between two batches as complete
                raise EOFError("it has no end mark")


class _Rows:
    """Rows of batches as Python objects; `number` counts them."""

    def __init__(self, file: SourceFile):
        self._file, self.number = file, 0

    def __call__(self, batch, columns: list[str]) -> Iterator[tuple[int, str, Mapping]]:
        batch = batch.select(columns)
        batch.validate(full=True)  # a damaged batch may point outside its memory
        for start in range(0, batch.num_rows, ROWS):
            for record in batch.slice(start, ROWS).to_pylist():
                self.number += 1
                yield self.number, f"{self._file.url}, row {self.number:,}", record


class _reading:
    """`with _reading(file, kind) as (stream, rows)`: turns errors inside into a StageError that names file and row."""

    def __init__(self, file: SourceFile, kind: str):
        self._file, self._kind, self._rows = file, kind, _Rows(file)

    def __enter__(self):
        self._stream = open_file(self._file)
        check_kind(self._stream.peek(512), self._file.url, self._kind)
        return self._stream, self._rows

    def __exit__(self, kind, error, traceback) -> None:
        import pyarrow as pa

        self._stream.close()
        if isinstance(error, pa.ArrowException | OSError | EOFError | UnicodeDecodeError):
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise StageError(
                f"{self._file.url} is damaged or no {self._kind.split()[0]} file (after row {self._rows.number:,}: "
                f"{said:.160}). Fetch or make it again."
            ) from None


def _check_columns(file: SourceFile, names: list[str], columns: list[str], option: str, optional) -> list[str]:
    """The columns that are read; StageError where one that must be there is not."""
    for column in columns:
        if column not in names:
            there = ", ".join(sorted(names))
            raise StageError(
                f"{file.url} has no column {column!r}; it has: {there}. Set {option} to one that every file has."
            )
    return [*columns, *(column for column in optional if column in names and column not in columns)]
