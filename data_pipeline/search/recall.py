"""Recall against exact distances on a sample of queries, in float64 and by another formula than the search's.

The database may have parts: their true distances and their results are merged, so that no part needs another's keys.
"""

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from data_pipeline.search.exact import Searcher, merge_rows, reference_distances
from retro_jax.core.dimensions import PADDING

ROUNDING = 1e-5  # of the float32 distances against the float64 ones, relative above 1: vectors need not have length 1


class QuerySample:
    """Up to `size` chunks spread evenly over database and held-out documents, as queries that do not count themselves.

    Attributes:
      rows: Int64[np.ndarray, "N"], their rows.
      truth: Float64[np.ndarray, "N k"], the distances of the nearest keys compared so far, rising.
    """

    def __init__(self, vectors, k: int, size: int):
        self.rows, self._k = sample_rows(len(vectors), size), k
        self.queries = vectors[self.rows]
        self.truth = np.full((len(self.rows), k), np.inf)

    def compare(self, ids: Int64[np.ndarray, "K"], keys: Float32[np.ndarray, "K E"]) -> None:
        """Adds the true distances of some keys; `ids` are their rows, rising."""
        place = np.minimum(np.searchsorted(ids, self.rows), len(ids) - 1)
        own = np.where(ids[place] == self.rows, place, PADDING)
        found = reference_distances(self.queries, keys, own, self._k)
        self.add(found)

    def add(self, truth: Float64[np.ndarray, "N k"]) -> None:
        """Adds the true distances of keys that were compared elsewhere."""
        self.truth = np.sort(np.concatenate([self.truth, truth], axis=1), axis=1)[:, : self._k]

    def search(self, searcher: Searcher, so_far=None):
        """(ids, distances) of the k + 1 nearest, merged with those of other parts."""
        found = searcher.search(self.queries, self._k + 1)
        if so_far is not None:
            merge_rows(*so_far, *found)
        return so_far or found

    def recall(self, searcher: Searcher) -> float:
        """The recall over the parts added so far, which `searcher` searches."""
        return self.report(self.search(searcher))["value"]

    def report(self, found) -> dict:
        """The recall@k of answers, {"k", "value", "queries"}.

        A hit is a neighbor no farther than the true k-th, so it does not matter which of several equals is found.
        """
        within, k, there = self.hits(found)
        within &= np.cumsum(within, axis=1) <= k
        return {"k": k, "value": round(float(within.sum() / there), 6), "queries": len(self.rows)}

    def hits(self, found) -> tuple[Bool[np.ndarray, "N K"], int, int]:
        """Which answers are no farther than the true k-th; k, and how many neighbors there are to be found."""
        ids, distances = found
        k = max(1, int(np.isfinite(self.truth).sum(1).min()))
        other = (ids != PADDING) & (ids != self.rows[:, None])
        farthest = self.truth[:, k - 1 : k]
        return (
            other & (distances <= farthest + ROUNDING * np.maximum(1.0, farthest)),
            k,
            max(1, int(np.isfinite(self.truth[:, :k]).sum())),
        )


def sample_rows(total: int, sample: int) -> Int64[np.ndarray, "N"]:
    """Up to `sample` row numbers, evenly spaced over `total`."""
    return np.unique(np.linspace(0, total - 1, min(sample, total)).astype(np.int64))
