"""Tables of chunks: several .npy files as one table, and the first row of each document."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from retro_jax.core.files import load_array
from retro_jax.data.manifests import REPAIR


class ShardedRows:
    """The rows of several .npy files as one read-only table [N, ...], mapped into memory, never read as a whole.

    Index it with a row, a slice or an integer array of any shape; the result is an ordinary array.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        self._parts = [load_array(path, REPAIR, mapped=True) for path in paths]
        self._ends = np.cumsum([len(part) for part in self._parts])
        self.shape = (int(self._ends[-1]), *self._parts[0].shape[1:])
        self.dtype = self._parts[0].dtype
        self.part_rows = tuple(map(len, self._parts))

    def __reduce__(self):
        """Pickles as its paths."""
        return ShardedRows, (self.paths,)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                return self[np.arange(start, stop, step)]
            return self._range(start, max(start, stop))
        rows = np.asarray(rows)
        if rows.dtype == bool or not np.issubdtype(rows.dtype, np.integer):
            raise TypeError(f"Rows are selected by integers or a slice, but {rows.dtype} was given.")
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"Row {rows.min() if rows.min() < 0 else rows.max()} is outside 0 to {len(self) - 1}.")
        wanted = rows.reshape(-1).astype(np.int64)
        found = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        part_of = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(part_of):
            here = part_of == number
            found[here] = self._parts[number][wanted[here] - (self._ends[number] - len(self._parts[number]))]
        return found.reshape((*rows.shape, *self.shape[1:]))

    def _range(self, start: int, stop: int) -> np.ndarray:
        pieces, first = [np.empty((0, *self.shape[1:]), self.dtype)], 0
        for part in self._parts:
            pieces.append(part[max(0, start - first) : max(0, stop - first)])
            first += len(part)
        return np.concatenate(pieces)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self._range(0, len(self)).astype(dtype or self.dtype, copy=False)


def first_rows(document_ids: Int[np.ndarray, "N"]) -> Int[np.ndarray, "D"]:
    """The first row of each document; the rows of one document are contiguous."""
    return np.flatnonzero(np.diff(document_ids, prepend=~document_ids[:1]))
