"""The coarse partition of a large index: which index shards hold a key, and which of them a query visits.

    router/centers.npy  float32 [S, E], one center an index shard, learned by k-means on a sample of the keys
    router/prices.npy   float64 [S], added to the squared distance from a center, so that shards hold as many keys each

A key lies in the shard of its nearest center, and in a second one by SOAR's rule (Sun et al. 2023, arXiv 2404.00774): the
nearest center whose difference from the key is far from parallel to that from the first center, because a query that
misses the first shard then does not miss the second too. A query visits the shards whose center is at most a margin
farther than its nearest one.

Vectors are rounded to a grid so coarse that float64 sums over their products are exact. So an assignment and a visit
never depend on a batch, on the number of threads or on the machine.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from data_pipeline.stages.run import REPAIR
from retro_jax.core.files import load_array

FOLDER = "router"
FILES = (f"{FOLDER}/centers.npy", f"{FOLDER}/prices.npy")
COPIES = 2  # shards that hold a key; of two shards one, because both would hold all keys
PARALLEL = 1.0  # SOAR's lambda
SAMPLE_A_SHARD = 256  # keys that a center is learned from
TURNS, FREE, SETTLED = 30, 6, 12  # of the training; of these the first without prices, the last with fixed centers
HEAVY = 2.0  # times the mean number of keys, above which the center of the fewest keys starts again beside one
PRICE_STEP = 0.2  # of the mean squared distance of a shard's keys to its center
GRID_BITS = 17  # of the largest coordinate of a center
CELLS_AT_ONCE = 1 << 24  # of a matrix keys x shards, 128 MiB


class Router:
    """Centers and prices of S index shards.

    Args:
      step: of the grid; 0: from the largest coordinate of a center.

    Attributes:
      shards: S.
      copies: shards that hold a key.
    """

    def __init__(self, centers: Float[np.ndarray, "K E"], prices: Float64[np.ndarray, "K"], step: float = 0.0):
        self.shards, self.copies = len(centers), copies(len(centers))
        self.step = step or 2.0 ** (np.ceil(np.log2(np.abs(centers).max() or 1.0)) - GRID_BITS)
        self._centers = self.on_grid(centers)
        self._prices = np.rint(prices / self.step**2)
        self._products = self._centers @ self._centers.T

    @classmethod
    def load(cls, index: Path) -> "Router":
        """The router of an index stage."""
        return cls(*(load_array(Path(index) / name, REPAIR) for name in FILES))

    def save(self, index: Path) -> None:
        (Path(index) / FOLDER).mkdir()
        centers, prices = (self._centers * self.step).astype(np.float32), self._prices * self.step**2
        for name, array in zip(FILES, (centers, prices), strict=True):
            np.save(Path(index) / name, array)

    def on_grid(self, vectors: Float[np.ndarray, "N E"]) -> Float64[np.ndarray, "N E"]:
        return np.rint(np.asarray(vectors, np.float64) / self.step)

    def distances(self, queries: Float[np.ndarray, "N E"]) -> Float64[np.ndarray, "N K"]:
        """Squared distances from each center, with its price."""
        vectors = self.on_grid(queries)
        return self._distances(np.square(vectors).sum(1), vectors @ self._centers.T) * self.step**2

    def _distances(self, squares: Float64[np.ndarray, "N"], products: Float64[np.ndarray, "N K"]):
        return squares[:, None] - 2.0 * products + np.diagonal(self._products) + self._prices

    def owners(self, keys: Float[np.ndarray, "N E"]) -> Int64[np.ndarray, "N copies"]:
        """The shards that hold each key, the nearest first."""
        parts = [self.owners_on_grid(self.on_grid(keys[rows]))[0] for rows in blocks(len(keys), self.shards)]
        return np.concatenate([np.empty((0, self.copies), np.int64), *parts])

    def owners_on_grid(self, vectors: Float64[np.ndarray, "N E"]):
        """The owners of vectors on the grid, and their squared distances from the first one's center."""
        squares, products, rows = np.square(vectors).sum(1), vectors @ self._centers.T, np.arange(len(vectors))
        distances = self._distances(squares, products)
        first = distances.argmin(1)
        to_first = squares - 2.0 * products[rows, first] + self._products[first, first]
        if self.copies == 1:
            return first[:, None], to_first
        # (key - center) . (key - first center), for every center
        along = (squares - products[rows, first])[:, None] - products + self._products[first]
        distances += PARALLEL * np.square(along) / np.maximum(to_first, 1.0)[:, None]
        distances[rows, first] = np.inf
        return np.stack([first, distances.argmin(1)], axis=1), to_first


def blocks(rows: int, shards: int) -> Iterator[slice]:
    """Slices of the rows whose distances from all centers fit into CELLS_AT_ONCE."""
    size = max(1, CELLS_AT_ONCE // shards)
    return (slice(start, start + size) for start in range(0, rows, size))


def copies(shards: int) -> int:
    """How many of `shards` index shards hold a key."""
    return max(1, min(COPIES, shards - 1))


def learn(keys: Float[np.ndarray, "N E"], shards: int) -> Router:
    """Learns the centers of `shards` shards by k-means, and prices that balance the numbers of keys that they hold.

    Args:
      keys: a sample, at least one a shard, in an order that spreads over the text.

    Raises:
      ValueError: fewer keys than shards.
    """
    check_shards(shards, len(keys))
    centers = np.asarray(keys[np.linspace(0, len(keys) - 1, shards).astype(np.int64)], np.float64)
    prices = np.zeros(shards)
    router = Router(centers, prices)
    vectors = router.on_grid(keys).astype(np.float32)  # whole numbers of fewer than 24 bits
    for turn in range(TURNS):
        sums, primary, held, spread = np.zeros(centers.shape), *np.zeros((3, shards))
        example = np.zeros(shards, np.int64)  # a key of each shard
        for rows in blocks(len(keys), shards):
            block = vectors[rows].astype(np.float64)
            owners, squared = router.owners_on_grid(block)
            sums += (owners[:, :1] == np.arange(shards)).astype(np.float64).T @ block * router.step
            primary += np.bincount(owners[:, 0], minlength=shards)
            held += np.bincount(owners.ravel(), minlength=shards)
            example[owners[:, 0]] = rows.start + np.arange(len(block))
            spread += np.bincount(owners[:, 0], squared, minlength=shards) * router.step**2
        if turn < TURNS - SETTLED:
            centers = np.where(primary[:, None] > 0, sums / np.maximum(primary, 1)[:, None], centers)
        if turn < FREE:
            heavy = np.flatnonzero(primary > HEAVY * primary.mean())
            centers[primary.argsort(kind="stable")[: len(heavy)]] = keys[example[heavy]]
        else:
            own, mean = spread / np.maximum(primary, 1), spread.sum() / len(keys)
            crowd = np.log((held + 1) / (held.mean() + 1))
            # A narrow cluster moves as one by a step that suits others; an empty shard has none.
            pace = PRICE_STEP / (1 + 0.3 * (turn - FREE)) * np.where(crowd > 0, own, mean)
            prices = prices + pace * np.clip(crowd, -1, 1)
            prices -= prices.min()
        router = Router(centers, prices, router.step)
    return Router(centers, prices)


def check_shards(shards: int, keys: int) -> None:
    """Raises ValueError for more shards than keys to learn them from."""
    if not 1 <= shards <= keys:
        raise ValueError(
            f"An index shard holds at least one key, and the router learns a center for each from the keys, but "
            f"config.data.index_shards={shards} and there are {keys:,} keys; take fewer, or 0 for automatic."
        )


def nearest(distances: Float64[np.ndarray, "N K"], margin: float, visits: int = 0) -> Bool[np.ndarray, "N K"]:
    """Which shards a query visits: those at most `margin` farther than its nearest, or as many as `visits` says."""
    if not visits:
        return distances - distances.min(1, keepdims=True) <= margin
    chosen = np.zeros(distances.shape, bool)
    np.put_along_axis(chosen, distances.argsort(axis=1, kind="stable")[:, :visits], True, axis=1)
    return chosen
