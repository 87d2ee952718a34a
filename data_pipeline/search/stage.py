"""Stage 5, index: the index over the database's embeddings (paper 2.3).

Below config.data.exact_below chunks, or without SCaNN, the search is exact and the stage has no files
but its manifest. Above it SCaNN (`scann_search.py`). The metric is squared L2 on both sides.

    index-00000/...   SCaNN's files over the keys of one index shard

A large index has several shards, each built and searched alone; results are merged by (distance, id). With SCaNN a query
visits the shards near it (`routed_index.py`). An exact search reads every shard, so its shards are ranges of rows. The
manifest says which search it is and why, what each shard's settings are, how many shards a query visits, and the
recall@k: the share of the true k nearest that is found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from data_pipeline.chunks import ChunkTable
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.search.exact import MergedSearcher, PlacedSearcher, Searcher
from data_pipeline.search.recall import QuerySample
from data_pipeline.search.routed_index import routed_shards
from data_pipeline.search.router import COPIES, check_shards, copies
from data_pipeline.search.routes import STAGE, Route, RoutedSearcher
from data_pipeline.search.scann import (
    FILES,
    METRIC,
    IndexSettings,
    ScannSearcher,
    build_scann,
    choose_kind,
    choose_settings,
    open_keys,
    scann_installed,
    tune,
)
from data_pipeline.search.subset import IDS, Subset
from data_pipeline.stages.engine import Shard
from data_pipeline.stages.run import REPAIR, Manifest, StageError, read_manifest, require_fingerprint, run_stage
from retro_jax.config import DataConfig
from retro_jax.core.files import load_array, read_json

BYTES_A_NUMBER = 9.5  # of an open index shard, for each number of its keys
KEYS_A_SHARD = (
    1 << 21
)  # with the copies of a routed index; of 384 numbers: about 9 GB of memory to build and 8 to search


def build_index(
    directory: Path, config: DataConfig, embeddings: Path, chunks: Path | None = None, like: Path | None = None
) -> Manifest:
    """Builds the index over the database and measures its recall.

    Args:
      embeddings, chunks: directories of these stages; chunks are read where config.data.database_fraction is below 1.
      like: an index of other keys; if it is routed, these keys go to shards by its router.

    Raises:
      StageError: an empty database, or incomplete embeddings.
      ValueError: settings outside their range.
    """
    directory, vectors = Path(directory), EmbeddingTable(embeddings)
    if config.neighbors_stored < 1:  # checked here, because it is the k of the recall
        raise ValueError(f"config.data.neighbors_stored must be 1 or more, but is {config.neighbors_stored}.")
    if not 0 <= config.recall_target <= 1:
        raise ValueError(f"config.data.recall_target={config.recall_target} must lie in [0, 1]; 0.95 is the default.")
    if vectors.database_chunks == 0:
        raise StageError(
            f"{embeddings} has no chunk of a training document, so the database is empty. Lower "
            f"config.data.validation_fraction or give more text in config.data.sources."
        )
    subset = Subset(config.database_fraction, None if chunks is None else ChunkTable(chunks))
    keys = len(subset.ids(0, vectors.database_chunks))
    subset.check_documents(vectors.database_chunks)
    shards = count_shards(keys, config.index_shards)
    if config.index_shards_visited > shards:
        raise ValueError(
            f"A query visits at most all index shards, but config.data.index_shards_visited={config.index_shards_visited} "
            f"and there are {shards}; take fewer, or 0 for as many as reach config.data.recall_target."
        )
    fewest = keys * copies(shards) // shards
    kind, why = choose_kind(keys, fewest, config, installed=scann_installed())
    if kind == "scann":
        choose_settings(fewest, config)  # mistakes are reported before anything is built
    counts = {"kind": kind, "why": why, "database_chunks": keys}
    router = None if like is None or open_route(like) is None else like
    if router is not None or (kind == "scann" and shards > 1):
        return _build_routed(directory, config, vectors, subset, shards, counts, router)
    ranges = key_ranges(vectors.database_chunks, config.index_shards if kind == "exact" else 1)
    names = [f"index-{number:05d}" for number in range(len(ranges))]
    files = (*(FILES if kind == "scann" else ()), *subset.files)
    shards = [
        Shard(name, [f"{name}/{file}" for file in files], partial(_make, name, kind, config, vectors, subset, *rows))
        for name, rows in zip(names, ranges, strict=True)
    ]
    facts = {"kind": kind, "ranges": ranges, **stage_config(config)}
    return run_stage(
        directory,
        STAGE,
        facts,
        {"embeddings": vectors.fingerprint},
        shards,
        counts=counts,
        last=Shard("recall", [], partial(_measure, directory, config, vectors, subset, ranges)),
    )


def _build_routed(
    directory: Path,
    config: DataConfig,
    vectors: EmbeddingTable,
    subset: Subset,
    shards: int,
    counts: dict,
    like: Path | None,
) -> Manifest:
    """Builds a routed index, with the router, margin and number of shards of `like` where that is given."""
    inputs = {"embeddings": vectors.fingerprint}
    if like is not None:
        manifest = read_manifest(like, STAGE, verify=False)
        inputs["router"], shards = manifest.fingerprint, manifest.config["shards"]
        config = replace(config, index_shards_visited=manifest.config.get("shards_visited", 0))
    else:
        check_shards(shards, counts["database_chunks"])
    made = routed_shards(directory, config, vectors, subset, shards, counts["kind"], like)
    facts = {"kind": counts["kind"], "shards": shards, "copies": copies(shards), **stage_config(config)}
    return run_stage(directory, STAGE, facts, inputs, counts=counts, **made)


def stage_config(config: DataConfig) -> dict:
    """The settings that the stage depends on, some derived from the number of keys; part of its plan."""
    visits = {"shards_visited": config.index_shards_visited} if config.index_shards_visited else {}
    return {
        **visits,
        **{"metric": METRIC, "recall_k": config.neighbors_stored},
        **{"leaves": config.index_leaves, "leaves_searched": config.index_leaves_searched},
        **{"reorder": config.index_reorder, "index_shards": config.index_shards},
        **{"recall_target": config.recall_target, "recall_sample": config.recall_sample},
        "database_fraction": config.database_fraction,
    }


def count_shards(keys: int, wanted: int) -> int:
    """How many shards a routed index of so many keys has: `wanted`, or for 0 one up to KEYS_A_SHARD keys.

    Raises:
      ValueError: more shards than keys.
    """
    shards = wanted or (1 if keys <= KEYS_A_SHARD else -(-COPIES * keys // KEYS_A_SHARD))
    check_shards(shards, max(1, keys))
    return shards


def key_ranges(rows: int, shards: int) -> list[list[int]]:
    """Rows [0, rows) in `shards` contiguous ranges of nearly one size; 0: as many as KEYS_A_SHARD wants."""
    shards = shards or -(-rows // KEYS_A_SHARD)
    check_shards(shards, rows)
    edges = [rows * number // shards for number in range(shards + 1)]
    return [[first, end] for first, end in zip(edges[:-1], edges[1:], strict=True)]


def _make(
    name: str, kind: str, config: DataConfig, vectors: EmbeddingTable, subset: Subset, start: int, stop: int, temporary
) -> dict:
    """Builds one index shard from its own keys."""
    folder = temporary / name
    folder.mkdir()
    ids, keys = subset.keys(vectors, start, stop)
    facts = {"keys": len(keys)}
    if kind == "exact":
        subset.save(folder, ids)
        return {"shards": {name: facts | asdict(IndexSettings("exact"))}}
    settings = choose_settings(len(keys), config)
    build_scann(folder, keys, settings)
    subset.save(folder, ids)
    sample = QuerySample(vectors, config.neighbors_stored, config.recall_sample)
    sample.compare(ids, keys)
    settings, recall = tune(ScannSearcher(folder, keys, settings), ids, sample, config)
    return {"shards": {name: {**facts, **asdict(settings), "recall": recall}}}


def _measure(
    directory: Path, config: DataConfig, vectors: EmbeddingTable, subset: Subset, ranges: Sequence, temporary
) -> dict:
    """The recall of all index shards together, opened one after another."""
    sample = QuerySample(vectors, config.neighbors_stored, config.recall_sample)
    found = None
    for number, (start, stop) in enumerate(ranges):
        name = f"index-{number:05d}"
        remedy = "Run `retro build` again with the same config and --workdir."
        facts = read_json(directory / ".parts" / f"{name}.json", remedy, keys=["counts"])["counts"]["shards"][name]
        ids, keys = subset.keys(vectors, start, stop)
        sample.compare(ids, keys)
        searcher = PlacedSearcher(open_keys(directory / name, keys, facts), ids)
        found = sample.search(searcher, found)
    return {"recall": sample.report(found)}


def open_searcher(directory: Path, embeddings: Path) -> Searcher:
    """The search over a finished index, all of its shards in memory.

    Raises:
      StageError: an index of other embeddings, or a SCaNN index where SCaNN is not installed.
    """
    shards, route = index_shards(directory, embeddings), open_route(directory)
    parts = [open_shard(*shard) for shard in shards]
    if route is not None:
        return RoutedSearcher(route, parts, read_manifest(directory, STAGE, verify=False).counts["database_chunks"])
    return MergedSearcher(parts) if len(parts) > 1 else parts[0]


def open_route(directory: Path) -> Route | None:
    """How queries find their shards; None where a query visits all of them."""
    return Route(directory) if "routing" in read_manifest(directory, STAGE, verify=False).counts else None


def index_shards(directory: Path, embeddings: Path) -> list[tuple]:
    """Arguments of `open_shard` for each shard of a finished index (small: they may travel to other processes).

    Raises:
      StageError: an index of other embeddings.
    """
    manifest = read_manifest(directory, STAGE)
    vectors = EmbeddingTable(embeddings)
    require_fingerprint(
        f"embeddings {embeddings} for the index {directory}",
        vectors.fingerprint,
        manifest.inputs["embeddings"],
        "Point to the embeddings that the index was built over, or move the index away and run `retro build` again.",
    )
    # A routed shard lists its rows itself. Indexes of earlier versions have ranges with SCaNN too.
    whole = [[0, vectors.database_chunks]] * len(manifest.counts["shards"])
    found = zip(sorted(manifest.counts["shards"].items()), manifest.config.get("ranges", whole), strict=True)
    return [(Path(directory) / name, vectors, facts, start, stop) for (name, facts), (start, stop) in found]


def shard_bytes(vectors: EmbeddingTable, facts: Mapping) -> int:
    """Estimates the memory of an open index shard: its keys here and in SCaNN, and their codes."""
    return int(BYTES_A_NUMBER * facts["keys"] * vectors.width)


def open_shard(folder: Path, vectors: EmbeddingTable, facts: Mapping, start: int, stop: int) -> Searcher:
    """The search over one index shard; its ids are rows of the database."""
    if (folder / IDS).exists():
        ids = load_array(folder / IDS, REPAIR)
        return PlacedSearcher(open_keys(folder, vectors[ids], facts), ids)
    searcher = open_keys(folder, vectors[start:stop], facts)
    return searcher if start == 0 else PlacedSearcher(searcher, np.arange(start, stop))
