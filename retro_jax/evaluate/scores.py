"""Scores on disk: a directory for each condition of each set, a Parquet file for each block, a row for each document.

    WORKDIR/scores/SET/text-DIGEST/part-00000.parquet        number, id, name, subset, bytes, tokens, words; by chunk: bytes, overlap
    WORKDIR/scores/SET/CONDITION-DIGEST/part-00000.parquet   number, bits, hits; by chunk: bits
    .../plan.json                                            what they were computed from; DIGEST is its digest

A part is complete if it exists. A killed evaluation computes the missing parts alone, and an evaluation with other
conditions only those that are new. The only file that imports pyarrow.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retro_jax.core.files import DamagedFile, atomic_path, digest, read_json, write_json
from retro_jax.data.manifests import note

DIGITS = 16  # of a digest in a folder's name
Columns = Mapping[str, np.ndarray | Sequence[str] | Sequence[np.ndarray]]


@dataclass(frozen=True)
class Scores:
    """The parts of one condition, or of the text itself ("text").

    Attributes:
      directory: its own.
      parts: how many blocks the set has.
    """

    directory: Path
    parts: int

    def missing(self) -> list[int]:
        """Parts that must be computed. A damaged part is one of them, and a line on standard error names it."""
        return [part for part in range(self.parts) if not self._is_whole(part)]

    def _is_whole(self, part: int) -> bool:
        if not self._path(part).exists():
            return False
        try:
            self.read(part)
        except DamagedFile as error:
            note(str(error))
            return False
        return True

    def write(self, part: int, columns: Columns) -> None:
        """Writes a part; lists of arrays become one list a row."""
        write_table(self._path(part), columns)

    def read(self, part: int, names: Sequence[str] | None = None) -> dict:
        """Columns of a part as arrays; of a list column, its concatenated values. Text comes as a list.

        Raises:
          DamagedFile: the file cannot be read.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._path(part)
        try:
            # No partitions: pyarrow would take "SET=..." in a path for a column.
            table = pq.ParquetFile(path, page_checksum_verification=True).read(columns=names)
        except (OSError, pa.ArrowException) as error:
            first = str(error).splitlines()[0]
            raise DamagedFile(path, f"cannot be read ({first})", "The same command scores this part again.") from None
        return {name: _array(pa, table.column(name).combine_chunks()) for name in table.column_names}

    def each(self, names: Sequence[str] | None = None) -> Iterator[dict]:
        """Yields the parts in order; see `read`."""
        for part in range(self.parts):
            yield self.read(part, names)

    def _path(self, part: int) -> Path:
        return self.directory / f"part-{part:05d}.parquet"


def write_table(path: Path, columns: Columns) -> None:
    """Writes a Parquet file, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: _column(pa, values) for name, values in columns.items()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def _column(pa, values):
    if len(values) and isinstance(values[0], np.ndarray):
        lengths = [len(value) for value in values]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(values)))
    return pa.array(values)


def _array(pa, column):
    if pa.types.is_list(column.type):
        return column.values.slice(column.offsets[0].as_py(), len(column.flatten())).to_numpy(zero_copy_only=False)
    return column.to_pylist() if pa.types.is_string(column.type) else column.to_numpy(zero_copy_only=False)


def open_scores(workdir: Path, set_name: str, kind: str, plan: Mapping, parts: int) -> Scores:
    """The scores of a condition (or "text") that were or will be computed from `plan`.

    Another plan has another directory, so scores are never overwritten and outdated scores never read.
    """
    facts = {**plan, "set": set_name, "kind": kind, "parts": parts}
    name = f"{re.sub('[^A-Za-z0-9._-]+', '-', kind)[:60]}-{digest(facts)[:DIGITS]}"
    return Scores(Path(workdir) / "scores" / set_name / name, parts)


def write_plan(scores: Scores, plan: Mapping) -> None:
    """Writes the plan beside the scores, for people to read."""
    path = scores.directory / "plan.json"
    try:
        found = read_json(path, "")
    except DamagedFile:
        found = None
    if found != plan:
        write_json(path, dict(plan), seal=True)
