"""Exact nearest vectors by squared L2 distance, the paper's d(C, N) = ||BERT(C) - BERT(N)||^2 (2.3)."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from retro_jax.core.dimensions import PADDING

QUERIES_AT_ONCE = 1024
KEYS_AT_ONCE = 8192
PAIRS_AT_ONCE = 1024  # pairs whose differences are computed at once, to fit the processor's cache
CROWD = 4  # times k candidates a query, above which finding the k-th of a block pays off


class Searcher(Protocol):
    """The interface of an index."""

    def __len__(self) -> int:
        """The number of keys."""
        ...

    def search(
        self, queries: Float32[np.ndarray, "N E"], k: int
    ) -> tuple[Int64[np.ndarray, "N K"], Float32[np.ndarray, "N K"]]:
        """Ids and squared distances of the k nearest keys, nearest first, ties by id.

        A row depends on its query alone, not on the queries beside it. Rows are full unless k exceeds the number of
        keys; missing entries have id -1 and distance +inf.
        """
        ...


class ExactSearcher:
    """Compares with every key."""

    def __init__(self, keys: Float32[np.ndarray, "N E"]):
        self._keys = np.ascontiguousarray(keys, np.float32)
        self._norms = np.einsum("ne,ne->n", self._keys, self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def search(
        self, queries: Float32[np.ndarray, "N E"], k: int
    ) -> tuple[Int64[np.ndarray, "N K"], Float32[np.ndarray, "N K"]]:
        """See `Searcher.search`."""
        queries = check_queries(queries, self._keys.shape[1], k)
        ids = np.full((len(queries), k), PADDING, np.int64)
        distances = np.full((len(queries), k), np.inf, np.float32)
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            block = slice(start, start + QUERIES_AT_ONCE)
            self._search_block(queries[block], ids[block], distances[block])
        return ids, distances

    def _search_block(self, queries, ids, distances) -> None:
        """Fills `ids` and `distances` in place, going over the keys once.

        A matmul finds the candidates, but its last bits depend on its blocking. So it only proposes:
        everything within its rounding error of the k-th best is kept and measured by `paired_distances`.
        """
        k = ids.shape[1]
        query_norms = np.einsum("ne,ne->n", queries, queries)
        rounding = 4 * queries.shape[1] * np.finfo(np.float32).eps * (query_norms + self._norms.max(initial=0.0))
        doubled = -2.0 * queries  # exact, and less to write than the keys
        for start in range(0, len(self), KEYS_AT_ONCE):
            keys = self._keys[start : start + KEYS_AT_ONCE]
            estimate = doubled @ keys.T  # of the distances without the queries' norms
            estimate += self._norms[start : start + KEYS_AT_ONCE]
            near = estimate <= (distances[:, -1] - query_norms + rounding)[:, None]
            if np.count_nonzero(near) > CROWD * near.shape[0] * k:  # the first keys, or keys sorted by falling distance
                last = min(k, len(keys)) - 1
                near &= estimate <= (np.partition(estimate, last, axis=1)[:, last] + rounding)[:, None]
            rows, columns = np.nonzero(near)
            measured = paired_distances(queries, rows, keys, columns)
            merge(ids, distances, rows, columns + start, measured)


class PlacedSearcher:
    """A search over some rows of the database that returns ids of the full database."""

    def __init__(self, searcher: Searcher, ids: Int64[np.ndarray, "K"]):
        self._searcher, self._ids = searcher, ids

    def __len__(self) -> int:
        return len(self._searcher)

    def search(
        self, queries: Float32[np.ndarray, "N E"], k: int
    ) -> tuple[Int64[np.ndarray, "N K"], Float32[np.ndarray, "N K"]]:
        """See `Searcher.search`."""
        found, distances = self._searcher.search(queries, k)
        if not len(self._ids):  # an index shard that no key of a small addition went to
            return found, distances
        there = found != PADDING
        return np.where(there, self._ids[np.where(there, found, 0)], PADDING), distances


class MergedSearcher:
    """Searches parts of the database and merges the results by (distance, id)."""

    def __init__(self, parts: Sequence[Searcher]):
        self._parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def search(
        self, queries: Float32[np.ndarray, "N E"], k: int
    ) -> tuple[Int64[np.ndarray, "N K"], Float32[np.ndarray, "N K"]]:
        """See `Searcher.search`."""
        ids, distances = self._parts[0].search(queries, k)
        for part in self._parts[1:]:
            merge_rows(ids, distances, *part.search(queries, k))
        return ids, distances


def search_kept(
    searcher: Searcher,
    queries: Float32[np.ndarray, "N E"],
    k: int,
    keep: Callable[[Int64[np.ndarray, "n"], Int64[np.ndarray, "n f"]], Bool[np.ndarray, "n f"]],
) -> tuple[Int64[np.ndarray, "N k"], Float32[np.ndarray, "N k"]]:
    """The k nearest keys for which `keep(rows, ids)` is true.

    Fetches twice k, then four times as many for the queries with fewer than k kept, until k are found or the
    full database was searched.
    """
    ids = np.full((len(queries), k), PADDING, np.int64)
    distances = np.full((len(queries), k), np.inf, np.float32)
    unfinished, fetch = np.arange(len(queries) if len(searcher) else 0), 2 * k
    while len(unfinished):
        fetch = min(fetch, len(searcher))
        found, measured = searcher.search(queries[unfinished], fetch)
        # A missing key, -1, must not index what `keep` looks up: it would be the last of the database.
        there = found != PADDING
        good = there & keep(unfinished, np.where(there, found, 0))
        rank = np.cumsum(good, axis=1) - 1
        finished = (rank[:, -1] >= k - 1) | (fetch == len(searcher))
        rows, columns = np.nonzero(good & (rank < k) & finished[:, None])
        places = unfinished[rows], rank[rows, columns]
        ids[places], distances[places] = found[rows, columns], measured[rows, columns]
        unfinished, fetch = unfinished[~finished], 4 * fetch
    return ids, distances


def check_queries(queries: Float32[np.ndarray, "N E"], width: int, k: int) -> Float32[np.ndarray, "N E"]:
    """The queries as contiguous float32. Raises ValueError where their width or k cannot be searched."""
    queries = np.ascontiguousarray(queries, np.float32)
    if queries.ndim != 2 or queries.shape[1] != width:
        raise ValueError(
            f"Queries have shape {queries.shape}, but keys have {width} numbers; embed both with one encoder."
        )
    if k < 1:
        raise ValueError(f"k counts neighbors and cannot be {k}; take 1 or more.")
    return queries


def paired_distances(
    queries: Float32[np.ndarray, "N E"],
    rows: Int64[np.ndarray, "P"],
    keys: Float32[np.ndarray, "K E"],
    columns: Int64[np.ndarray, "P"],
) -> Float32[np.ndarray, "P"]:
    """Squared distances of pairs (queries[rows], keys[columns]).

    Computed from differences, so equal vectors have exactly 0, and a pair's distance always has the same bits.
    """
    distances = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), PAIRS_AT_ONCE):
        block = slice(start, start + PAIRS_AT_ONCE)
        difference = np.take(keys, columns[block], axis=0)
        difference -= np.take(queries, rows[block], axis=0)
        distances[block] = np.einsum("pe,pe->p", difference, difference)
    return distances


def merge(ids, distances, rows, found, measured) -> None:
    """Merges pairs (row, id, distance) into rows of the current k best, in place, by (distance, id), each id once."""
    kept_rows, kept_columns = np.nonzero(ids != PADDING)
    rows = np.concatenate([kept_rows, rows])
    found = np.concatenate([ids[kept_rows, kept_columns], found])
    measured = np.concatenate([distances[kept_rows, kept_columns], measured])
    order = np.lexsort((found, measured, rows))
    rows, found, measured = rows[order], found[order], measured[order]
    # A key of two index shards is found twice, at one distance.
    fresh = np.append(True, (rows[1:] != rows[:-1]) | (found[1:] != found[:-1]))[: len(rows)]
    rows, found, measured = rows[fresh], found[fresh], measured[fresh]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    best = rank < ids.shape[1]
    ids[rows[best], rank[best]] = found[best]
    distances[rows[best], rank[best]] = measured[best]


def merge_rows(ids, distances, found, measured) -> None:
    """Merges rows of results (-1 is none) into rows of the current k best, in place, by (distance, id)."""
    rows, columns = np.nonzero(found != PADDING)
    merge(ids, distances, rows, found[rows, columns], measured[rows, columns])


def reference_distances(
    queries: Float32[np.ndarray, "N E"], keys: Float32[np.ndarray, "K E"], without: Int64[np.ndarray, "N"], k: int
) -> Float64[np.ndarray, "N K"]:
    """Squared distances of the k nearest keys, rising, in float64 from one expanded matmul, for measuring recall.

    Args:
      without: a key that does not count for each query (itself), or -1.
    """
    best = np.full((len(queries), k), np.inf)
    wide = queries.astype(np.float64)
    for start in range(0, len(keys), KEYS_AT_ONCE):
        block = keys[start : start + KEYS_AT_ONCE].astype(np.float64)
        squared = np.square(wide).sum(1)[:, None] - 2.0 * wide @ block.T + np.square(block).sum(1)
        here = (without >= start) & (without < start + len(block))
        squared[np.flatnonzero(here), without[here] - start] = np.inf
        best = np.sort(np.concatenate([best, squared], axis=1), axis=1)[:, :k]
    return best
