"""Which index shards a query visits, and the search over these shards."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from data_pipeline.search.exact import Searcher, merge_rows
from data_pipeline.search.router import Router, blocks, nearest
from data_pipeline.stages.run import read_manifest
from retro_jax.core.dimensions import PADDING

STAGE = "index"
SPARE = 4  # times k keys that the visited shards hold at least, as many as SCaNN reads of its leaves


class Route:
    """How queries find the shards of a finished index that they visit.

    Attributes:
      router: its centers.
      keys: Int64[np.ndarray, "S"], that each shard holds.
      visits: shards that a query of the sample visited, the mean.
    """

    def __init__(self, index: Path):
        manifest = read_manifest(index, STAGE, verify=False)
        facts = manifest.counts["routing"]
        self.index, self.router, self.visits = Path(index), Router.load(index), facts["visits"]
        self.keys = np.array([shard["keys"] for _, shard in sorted(manifest.counts["shards"].items())])
        self._margin, self._fixed = facts["margin"], manifest.config.get("shards_visited", 0)

    def __reduce__(self):
        """Pickles as its path."""
        return Route, (self.index,)

    def visited(self, queries: Float32[np.ndarray, "N E"], k: int) -> Bool[np.ndarray, "N K"]:
        """The shards that queries for k neighbors visit: those that the recall target needs, and as many as hold 4 k keys."""
        found = [self._visited(queries[rows], k) for rows in blocks(len(queries), self.router.shards)]
        return np.concatenate([np.empty((0, self.router.shards), bool), *found])

    def _visited(self, queries: Float32[np.ndarray, "N E"], k: int) -> Bool[np.ndarray, "N K"]:
        distances = self.router.distances(queries)
        found = nearest(distances, self._margin, self._fixed)
        few = np.flatnonzero(found @ self.keys < SPARE * k)
        order = distances[few].argsort(axis=1, kind="stable")
        held = self.keys[order]
        enough = np.empty(order.shape, bool)
        np.put_along_axis(enough, order, held.cumsum(1) - held < SPARE * k, axis=1)
        found[few] |= enough
        return found


class RoutedSearcher:
    """Searches the index shards that each query visits and merges the results by (distance, id).

    Args:
      keys: distinct ones in all shards.
    """

    def __init__(self, route: Route, parts: Sequence[Searcher], keys: int):
        self.route, self.parts, self._keys = route, parts, keys

    def __len__(self) -> int:
        return self._keys

    def search(
        self, queries: Float32[np.ndarray, "N E"], k: int
    ) -> tuple[Int64[np.ndarray, "N K"], Float32[np.ndarray, "N K"]]:
        """See `Searcher.search`."""
        visited = self.route.visited(queries, k)
        return search_visited(self.parts, visited, queries, k)


def search_visited(
    parts: Sequence[Searcher], visited: Bool[np.ndarray, "N K"], queries: Float32[np.ndarray, "N E"], k: int
) -> tuple[Int64[np.ndarray, "N K"], Float32[np.ndarray, "N K"]]:
    """The k nearest of the keys in the parts that each query visits."""
    ids = np.full((len(queries), k), PADDING, np.int64)
    distances = np.full((len(queries), k), np.inf, np.float32)
    for part, rows in zip(parts, map(np.flatnonzero, visited.T), strict=True):
        if len(rows):
            merge_at(ids, distances, rows, *part.search(queries[rows], k))
    return ids, distances


def merge_at(ids, distances, rows: Int64[np.ndarray, "n"], found, measured) -> None:
    """Merges results for some rows into the current k best, in place."""
    some = ids[rows], distances[rows]
    merge_rows(*some, found, measured)
    ids[rows], distances[rows] = some
