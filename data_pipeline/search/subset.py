"""Nested subsets of the database: the first share of its documents by a hash of their ids (paper 4.1, figure 1 right).

The documents of a smaller share are part of a larger one's, and nothing is embedded again.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from data_pipeline.stages.run import StageError

IDS = "ids.npy"


def in_subset(documents: Int64[np.ndarray, "N"], fraction: float) -> Bool[np.ndarray, "N"]:
    """Whether each document is in the first `fraction` by hash order (SplitMix64 of the id)."""
    x = np.asarray(documents).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) / 2.0**64 < fraction


class Subset:
    """The rows of the database that are searched.

    Args:
      fraction: of the documents, in (0, 1]; 1 is all.
      table: the ChunkTable, read where the fraction is below 1.
    """

    def __init__(self, fraction: float, table=None):
        if not 0 < fraction <= 1:
            raise ValueError(f"config.data.database_fraction={fraction} must lie in (0, 1]; 1 is the full database.")
        if fraction < 1 and table is None:
            raise ValueError(f"config.data.database_fraction={fraction} needs the chunks; give their directory.")
        self.fraction, self._table = fraction, table
        self.files = (IDS,) if fraction < 1 else ()  # what `save` writes

    def ids(self, start: int, stop: int) -> Int64[np.ndarray, "K"]:
        """The rows of [start, stop) that are searched, rising."""
        ids = np.arange(start, stop)
        return ids if self.fraction == 1 else ids[in_subset(self._table.document_ids[start:stop], self.fraction)]

    def keys(self, vectors, start: int, stop: int) -> tuple[Int64[np.ndarray, "K"], Float32[np.ndarray, "K E"]]:
        """The ids and vectors of these rows; StageError if there are none."""
        ids = self.ids(start, stop)
        if not len(ids):
            raise StageError(
                f"config.data.database_fraction={self.fraction} leaves no document among chunks {start:,} to {stop:,}; "
                f"take a larger share."
            )
        return ids, vectors[start:stop] if self.fraction == 1 else vectors[ids]

    def check_documents(self, database_chunks: int) -> None:
        """Raises StageError for a share of a single document, whose chunks would have no neighbors."""
        if self.fraction == 1:
            return
        ids = self.ids(0, database_chunks)
        if len(ids) and len(set(self._table.document_ids[ids[[0, -1]]].tolist())) == 1:
            raise StageError(
                f"config.data.database_fraction={self.fraction} leaves one document to be searched, whose chunks have no "
                "neighbors: a neighbor is a chunk of another document. Take a larger share."
            )

    def save(self, folder: Path, ids: Int64[np.ndarray, "K"]) -> None:
        if self.fraction < 1:
            np.save(folder / IDS, ids)
