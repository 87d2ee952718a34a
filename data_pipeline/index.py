"""Stage 5, index: what finds the nearest chunks of the database (paper 2.3).

Under config.data.exact_below chunks, or where SCaNN is not installed, the search is exact and the stage has no files
but its manifest. Above it SCaNN: a tree of about sqrt(N) leaves, asymmetric hashing inside the leaves searched, and
exact scores for the candidates that are left. The metric is squared L2 on both sides.

The manifest says which search it is and why, and its recall@k: the share of the true k nearest that it finds.
"""

import importlib.util
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from data_pipeline.embeddings import EmbeddingTable
from data_pipeline.manifests import Manifest, Shard, StageError, read_manifest, require_fingerprint, run_stage
from data_pipeline.search import ExactSearcher, Searcher, check_queries, merge, paired_distances, reference_distances
from retro_jax.config import DataConfig
from retro_jax.dimensions import PADDING

STAGE = "index"
METRIC = "squared_l2"
FEWEST = 1000  # keys, under which a tree and code books have too little to learn from
DIMENSIONS_PER_CODE = 2
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


def choose_settings(keys: int, config: DataConfig, *, installed: bool) -> tuple[IndexSettings, str]:
    """The settings for a database of `keys` chunks, and why.

    Raises:
      ValueError: leaves that cannot be meant.
    """
    if keys < config.exact_below:
        return IndexSettings("exact"), f"{keys} keys are fewer than config.data.exact_below={config.exact_below}"
    if keys < FEWEST:
        return IndexSettings("exact"), f"{keys} keys are fewer than the {FEWEST} that SCaNN needs to learn from"
    if not installed:
        return IndexSettings("exact"), "SCaNN is not installed (it has packages for Linux on x86-64)"
    leaves = config.index_leaves or round(math.sqrt(keys))
    # What recall is lost is lost here, not in the hashing: on text a tenth of 50 leaves finds 74% of the ten nearest,
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
            f"0 takes leaves^0.75."
        )
    if config.index_reorder < config.neighbors_stored:
        raise ValueError(
            f"config.data.index_reorder={config.index_reorder} candidates cannot give "
            f"config.data.neighbors_stored={config.neighbors_stored} neighbors; take some ten times as many."
        )
    return IndexSettings("scann", leaves, searched, config.index_reorder), f"{keys} keys"


def scann_installed() -> bool:
    return importlib.util.find_spec("scann") is not None


def build_index(directory: Path, config: DataConfig, embeddings: Path) -> Manifest:
    """Builds the index over the database and measures its recall.

    Args:
      embeddings: directory of that stage.

    Raises:
      StageError: an empty database, or embeddings that are not whole.
      ValueError: see `choose_settings`.
    """
    vectors = EmbeddingTable(embeddings)
    if vectors.database_chunks == 0:
        raise StageError(
            f"{embeddings} has no chunk of a training document, so the database is empty. Lower "
            f"config.data.validation_fraction or give more text in config.data.sources."
        )
    settings, why = choose_settings(vectors.database_chunks, config, installed=scann_installed())

    def make(temporary: Path) -> dict:
        keys = vectors.database()
        if settings.kind == "scann":
            build_scann(temporary, keys, settings)
        searcher = _open(temporary, keys, settings)
        recall = measure_recall(searcher, vectors, keys, config.neighbors_stored, config.recall_sample)
        return {"recall": recall}

    files = FILES if settings.kind == "scann" else ()
    return run_stage(
        directory,
        STAGE,
        {**asdict(settings), "recall_sample": config.recall_sample, "recall_k": config.neighbors_stored},
        {"embeddings": vectors.fingerprint},
        [Shard("index", files, make)],
        counts={"kind": settings.kind, "why": why, "database_chunks": vectors.database_chunks},
    )


def open_searcher(directory: Path, embeddings: Path) -> Searcher:
    """The search over a finished index.

    Raises:
      StageError: an index of other embeddings, or a SCaNN index where SCaNN is not installed.
    """
    manifest = read_manifest(directory, STAGE)
    vectors = EmbeddingTable(embeddings)
    require_fingerprint(
        f"embeddings {embeddings} for the index {directory}",
        vectors.fingerprint,
        manifest.inputs["embeddings"],
        "Point to the embeddings that the index was built over, or move the index away and run `retro build` again.",
    )
    settings = IndexSettings(**{key: manifest.config[key] for key in IndexSettings.__dataclass_fields__})
    return _open(Path(directory), vectors.database(), settings)


def _open(directory: Path, keys, settings: IndexSettings) -> Searcher:
    return ScannSearcher(directory, keys, settings) if settings.kind == "scann" else ExactSearcher(keys)


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
    """A serialized SCaNN index; distances of what it finds are computed anew from the keys."""

    def __init__(self, directory: Path, keys: Float32[np.ndarray, "N E"], settings: IndexSettings):
        # SCaNN would unpickle this file if it were there; we never write it, and never run code out of data.
        if (directory / "scann_docids.pkl").exists():
            raise StageError(f"{directory}/scann_docids.pkl is not part of an index of ours. Move it away.")
        self._index = _scann().load_searcher(str(directory), assets_backcompat_shim=False)
        self._keys, self._settings, self._exact = keys, settings, ExactSearcher(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def search(
        self, queries: Float32[np.ndarray, "N E"], k: int
    ) -> tuple[Int64[np.ndarray, "N K"], Float32[np.ndarray, "N K"]]:
        """See `Searcher.search`. More candidates and leaves are looked at where k is large."""
        queries = check_queries(queries, self._keys.shape[1], k)
        settings = self._settings
        wanted = max(settings.reorder, 2 * k)
        leaves = max(settings.leaves_searched, math.ceil(4 * k * settings.leaves / len(self)))
        if leaves >= settings.leaves or len(queries) == 0:
            return self._exact.search(queries, k)
        # SCaNN scores small and large batches by different routes, whose results differ for some queries. Batches of
        # one always take the same, so a neighbor never depends on what it was asked together with.
        found, nearness = self._index.search_batched_parallel(
            queries, final_num_neighbors=k, pre_reorder_num_neighbors=wanted, leaves_to_search=leaves, batch_size=1
        )
        # Where the leaves hold too few, SCaNN fills up with id 0 at distance NaN: not chunk 0, but nothing.
        rows, places = np.nonzero(np.isfinite(nearness))
        columns = found[rows, places].astype(np.int64)
        ids = np.full((len(queries), k), PADDING, np.int64)
        distances = np.full((len(queries), k), np.inf, np.float32)
        merge(ids, distances, rows, columns, paired_distances(queries, rows, self._keys, columns))
        if len(short := np.flatnonzero(ids[:, -1] == PADDING)):
            ids[short], distances[short] = self._exact.search(queries[short], k)
        return ids, distances


def measure_recall(searcher: Searcher, vectors: EmbeddingTable, keys, k: int, sample: int) -> dict:
    """Recall@k over `sample` chunks spread evenly over database and held-out documents, themselves not counted.

    A hit is a neighbor no farther than the true k-th, so that it does not matter which of several equals is found.

    Returns:
      {"k", "value", "queries"}.
    """
    k = max(1, min(k, len(keys) - 1))
    rows = sample_rows(len(vectors), sample)
    queries = vectors[rows]
    own = np.where(rows < len(keys), rows, PADDING)
    ids, distances = searcher.search(queries, k + 1)
    other = (ids != PADDING) & (ids != own[:, None])
    other &= np.cumsum(other, axis=1) <= k
    truth = reference_distances(queries, keys, own, k)
    within = other & (distances <= truth[:, -1:] + 1e-5)
    return {"k": k, "value": round(float(within.sum() / np.isfinite(truth).sum()), 6), "queries": len(rows)}


def sample_rows(total: int, sample: int) -> Int64[np.ndarray, "N"]:
    """Up to `sample` row numbers, evenly spaced over `total`."""
    return np.unique(np.linspace(0, total - 1, min(sample, total)).astype(np.int64))
