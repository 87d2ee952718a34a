"""Builds, tunes and searches one index shard with SCaNN. The only file that imports it.

A tree of about sqrt(N) leaves, asymmetric hashing inside the leaves searched, and exact scores for the candidates that
are left. The metric is squared L2 on both sides.
"""

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from data_pipeline.search.exact import (
    ExactSearcher,
    PlacedSearcher,
    Searcher,
    check_queries,
    merge,
    paired_distances,
)
from data_pipeline.search.recall import QuerySample
from data_pipeline.stages.run import StageError
from retro_jax.config import DataConfig
from retro_jax.core.dimensions import PADDING

METRIC = "squared_l2"
FEWEST = 1000  # keys, below which a tree and code books have too little to learn from
DIMENSIONS_PER_CODE = 2
CODES_A_VECTOR = 16  # hashed keys take as many bytes as one key of float32: 4 bits for every two numbers
CANDIDATES = (20, 10, 5, 3, 50, 100)  # scored exactly, times the neighbors wanted
TRAINING_SAMPLE = 100_000  # keys that leaves and code books are learned from
FILES = (
    "ah_codebook.pb",
    "datapoint_to_token.npy",
    "dataset.npy",
    "hashed_dataset.npy",
    "scann_assets.pbtxt",
    "scann_config.pb",
    "serialized_partitioner.pb",
)


@dataclass(frozen=True)
class IndexSettings:
    """How the database is searched. For an exact search the numbers are 0."""

    kind: str  # "exact" | "scann"
    leaves: int = 0
    leaves_searched: int = 0
    reorder: int = 0  # candidates a query that are scored exactly
    metric: str = METRIC


def choose_kind(keys: int, fewest: int, config: DataConfig, *, installed: bool) -> tuple[str, str]:
    """ "exact" or "scann", for a database of `keys` whose smallest index shard has `fewest`; and why."""
    if keys < config.exact_below:
        return "exact", f"{keys} keys are fewer than config.data.exact_below={config.exact_below}"
    if fewest < FEWEST:
        where = f"{keys} keys" if fewest == keys else f"{fewest} keys of an index shard"
        return "exact", f"{where} are fewer than the {FEWEST} that SCaNN needs to learn from"
    if not installed:
        return "exact", "SCaNN is not installed (it has packages for Linux on x86-64)"
    return "scann", f"{keys} keys"


def choose_settings(keys: int, config: DataConfig) -> IndexSettings:
    """The settings to build an index shard of `keys`; `tune` finds those for searching.

    Raises:
      ValueError: leaves or candidates outside their range.
    """
    leaves = config.index_leaves or round(math.sqrt(keys))
    # Recall is lost in the tree, not in the hashing: on text a tenth of 50 leaves finds 74% of the ten nearest,
    # a third 94%. The share falls as the tree grows.
    searched = config.index_leaves_searched or min(leaves, max(10, math.ceil(leaves**0.75)))
    if not 1 <= leaves <= keys // 4:
        raise ValueError(
            f"A leaf should hold several of the {keys:,} keys, but config.data.index_leaves={leaves}; take at most "
            f"{keys // 4}, or 0 for about the square root."
        )
    if not 1 <= searched <= leaves:
        raise ValueError(
            f"config.data.index_leaves_searched={searched} must be from 1 to the number of leaves, {leaves}; "
            f"0 takes the fewest that reach config.data.recall_target."
        )
    if config.index_reorder and config.index_reorder < config.neighbors_stored:
        raise ValueError(
            f"config.data.index_reorder={config.index_reorder} candidates cannot give "
            f"config.data.neighbors_stored={config.neighbors_stored} neighbors; take some ten times as many, or 0 to "
            f"leave it to config.data.recall_target."
        )
    return IndexSettings("scann", leaves, searched, config.index_reorder or CANDIDATES[0] * config.neighbors_stored)


def scann_installed() -> bool:
    return importlib.util.find_spec("scann") is not None


def tune(searcher: "ScannSearcher", ids, sample: QuerySample, config: DataConfig) -> tuple[IndexSettings, float]:
    """The cheapest settings whose recall on the sample reaches the target, and that recall.

    Each number of candidates is tried with the fewest leaves that reach the target. Leaves that the user has chosen
    stay, with 20 times the neighbors as candidates; candidates that the user has chosen stay too. Nothing here depends on a clock: every build chooses the same. All leaves are an exact
    search, which always does.
    """
    begin = searcher.settings
    recalls: dict[IndexSettings, float] = {}

    def reaches(settings: IndexSettings) -> bool:
        if settings not in recalls:
            searcher.settings = settings
            recalls[settings] = sample.recall(PlacedSearcher(searcher, ids))
        return recalls[settings] >= config.recall_target

    if config.index_leaves_searched:
        best = begin
        reaches(best)
    else:
        best = _fewest_leaves(begin, begin.leaves, reaches)
        # The cost of a query in vectors: the candidates, and a leaf's keys as codes.
        a_leaf = len(searcher) / begin.leaves / CODES_A_VECTOR
        for factor in () if config.index_reorder else CANDIDATES[1:]:
            other = replace(begin, reorder=factor * config.neighbors_stored)
            cheaper = math.ceil(best.leaves_searched + (best.reorder - other.reorder) / a_leaf) - 1
            most = replace(other, leaves_searched=min(cheaper, begin.leaves - 1))
            if most.leaves_searched >= 1 and reaches(most):
                best = _fewest_leaves(other, most.leaves_searched, reaches)
    searcher.settings = best
    return best, recalls[best]


def _fewest_leaves(settings: IndexSettings, most: int, reaches: Callable[[IndexSettings], bool]) -> IndexSettings:
    """The settings with the fewest leaves up to `most` for which `reaches` is true, assuming that it is monotone.

    Doubles the leaves first, since searching few is fast.
    """
    few, enough = 0, 1
    while enough < most and not reaches(replace(settings, leaves_searched=enough)):
        few, enough = enough, min(most, 2 * enough)
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if reaches(replace(settings, leaves_searched=middle)) else (middle, enough)
    found = replace(settings, leaves_searched=enough)
    reaches(found)
    return found


def _scann():
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError as error:
        raise StageError(
            f"This index is a SCaNN index, but SCaNN cannot be imported ({error}). Install the extra `build` on Linux "
            f"x86-64, or build another with a large config.data.exact_below in a new --workdir."
        ) from error
    return scann_ops_pybind


def build_scann(directory: Path, keys: Float32[np.ndarray, "N E"], settings: IndexSettings) -> None:
    builder = _scann().builder(keys, settings.reorder, settings.metric)
    # Centers drawn at random differ from build to build; k-means++ has a fixed seed, and with it every byte is the
    # same, whatever the number of threads.
    builder = builder.tree(
        settings.leaves, settings.leaves_searched, training_sample_size=TRAINING_SAMPLE, random_init=False
    )
    builder = builder.score_ah(DIMENSIONS_PER_CODE, training_sample_size=TRAINING_SAMPLE).reorder(settings.reorder)
    builder.build().serialize(str(directory), relative_path=True)
    if (found := sorted(path.name for path in directory.iterdir())) != sorted(FILES):
        raise StageError(
            f"This version of SCaNN writes {found}, but {sorted(FILES)} are known. Install the locked one."
        )


class ScannSearcher:
    """A serialized SCaNN index; distances of its results are recomputed from the keys."""

    def __init__(self, directory: Path, keys: Float32[np.ndarray, "N E"], settings: IndexSettings):
        # SCaNN would unpickle this file; we never write it, and never run code from data.
        if (directory / "scann_docids.pkl").exists():
            raise StageError(f"{directory}/scann_docids.pkl is not part of a retro_jax index. Move it away.")
        self._index = _scann().load_searcher(str(directory), assets_backcompat_shim=False)
        self._keys, self.settings, self._exact = keys, settings, ExactSearcher(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def search(
        self, queries: Float32[np.ndarray, "N E"], k: int
    ) -> tuple[Int64[np.ndarray, "N K"], Float32[np.ndarray, "N K"]]:
        """See `Searcher.search`. A large k uses more candidates and leaves."""
        queries = check_queries(queries, self._keys.shape[1], k)
        settings = self.settings
        wanted = max(settings.reorder, 2 * k)
        leaves = max(settings.leaves_searched, math.ceil(4 * k * settings.leaves / len(self)))
        if leaves >= settings.leaves or len(queries) == 0:
            return self._exact.search(queries, k)
        # SCaNN scores small and large batches by different routes, whose results differ for some queries. Batches of
        # one always take the same route, so a result never depends on the other queries of a batch.
        found, nearness = self._index.search_batched_parallel(
            queries, final_num_neighbors=k, pre_reorder_num_neighbors=wanted, leaves_to_search=leaves, batch_size=1
        )
        # If the leaves hold too few keys, SCaNN fills the row with id 0 at distance NaN, which means no result.
        rows, places = np.nonzero(np.isfinite(nearness))
        columns = found[rows, places].astype(np.int64)
        ids = np.full((len(queries), k), PADDING, np.int64)
        distances = np.full((len(queries), k), np.inf, np.float32)
        merge(ids, distances, rows, columns, paired_distances(queries, rows, self._keys, columns))
        if len(short := np.flatnonzero(ids[:, -1] == PADDING)):
            ids[short], distances[short] = self._exact.search(queries[short], k)
        return ids, distances


def open_keys(folder: Path, keys: Float32[np.ndarray, "N E"], facts: Mapping) -> Searcher:
    """The search over the keys of one index shard; ids are their places.

    Args:
      facts: of the shard in the manifest; its settings are among them.
    """
    settings = IndexSettings(**{key: facts[key] for key in IndexSettings.__dataclass_fields__})
    return ScannSearcher(folder, keys, settings) if settings.kind == "scann" else ExactSearcher(keys)
