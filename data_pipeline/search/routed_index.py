"""Makes the index shards of a routed index: learn a router, assign the keys, build each shard, measure the visits.

    router/...                  centers and prices (`router.py`)
    assigned-00000.rows.npy     int64, rows of the database in a range, sorted by shard, by copy (0: nearest center), by row
    assigned-00000.ends.npy     int64 [S copies], where each shard's copies end in them
    index-00000/ids.npy         int64, rows whose keys the shard holds, rising; beside it SCaNN's files
    index-00000/sample.*.npy    the shard's answers to a sample of queries, and true distances of the keys nearest to its center

Of the misses that config.data.recall_target allows, half are a shard's own. Then the margin is the smallest at which the
answers of the visited shards together reach the target on the sample.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.search.exact import PlacedSearcher
from data_pipeline.search.recall import QuerySample, sample_rows
from data_pipeline.search.router import FILES, FOLDER, SAMPLE_A_SHARD, Router, learn, nearest
from data_pipeline.search.routes import STAGE, merge_at
from data_pipeline.search.scann import (
    FEWEST,
    IndexSettings,
    ScannSearcher,
    build_scann,
    choose_settings,
    open_keys,
    tune,
)
from data_pipeline.search.subset import IDS, Subset
from data_pipeline.stages.engine import Shard
from data_pipeline.stages.run import REPAIR, read_manifest
from retro_jax.config import DataConfig
from retro_jax.core.dimensions import PADDING
from retro_jax.core.files import load_array

ROWS_ASSIGNED = 1 << 20  # by one unit of work
SAMPLE = ("truth", "ids", "distances")
SHARDS_MISSES = 0.5  # of the misses allowed, those of the shards' own searches; the router has the others


def routed_shards(
    directory: Path,
    config: DataConfig,
    vectors: EmbeddingTable,
    subset: Subset,
    shards: int,
    kind: str,
    like: Path | None,
) -> dict:
    """Arguments of `run_stage` for a routed index.

    Args:
      kind: "scann", or "exact" for shards that are searched exactly.
      like: a routed index whose router and margin are taken; None: they are learned.
    """
    names = [f"index-{number:05d}" for number in range(shards)]
    rows = vectors.database_chunks
    edges = [*range(0, rows, ROWS_ASSIGNED), rows]
    router = partial(_learn, vectors, subset, shards) if like is None else partial(_copy, like)
    assigned = []
    for number, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        name = f"assigned-{number:05d}"
        make = partial(_assign, name, directory, vectors, subset, start, stop)
        assigned.append(Shard(name, [f"{name}.rows.npy", f"{name}.ends.npy"], make))
    parts = [shard.name for shard in assigned]
    margin = None if like is None else read_manifest(like, STAGE, verify=False).counts["routing"]["margin"]
    return {
        "before": [[Shard(FOLDER, FILES, router)], assigned],
        "shards": [
            Shard(name, None, partial(_make, name, directory, number, parts, kind, config, vectors))
            for number, name in enumerate(names)
        ],
        "last": Shard("recall", [], partial(_measure, directory, config, vectors, names, margin)),
    }


def _learn(vectors: EmbeddingTable, subset: Subset, shards: int, temporary: Path) -> dict:
    ids = subset.ids(0, vectors.database_chunks)
    learn(vectors[ids[sample_rows(len(ids), SAMPLE_A_SHARD * shards)]], shards).save(temporary)
    return {}


def _copy(like: Path, temporary: Path) -> dict:
    (temporary / FOLDER).mkdir()
    for name in FILES:
        shutil.copyfile(like / name, temporary / name)
    return {}


def _assign(
    name: str, directory: Path, vectors: EmbeddingTable, subset: Subset, start: int, stop: int, temporary: Path
) -> dict:
    """Sorts the keys of a range of rows by the shards that hold them."""
    router, ids = Router.load(directory), subset.ids(start, stop)
    owners = [router.owners(vectors[ids[first : first + (1 << 16)]]) for first in range(0, len(ids), 1 << 16)]
    owners = np.concatenate([np.empty((0, router.copies), np.int64), *owners])
    cells = (owners * router.copies + np.arange(router.copies)).T.reshape(-1)  # all first copies before the second ones
    order = cells.argsort(kind="stable")
    np.save(temporary / f"{name}.rows.npy", np.tile(ids, router.copies)[order])
    ends = np.bincount(cells, minlength=router.shards * router.copies).cumsum()
    np.save(temporary / f"{name}.ends.npy", ends)
    return {}


def assigned_rows(
    directory: Path, parts: Sequence[str], shard: int, copies: int
) -> tuple[Int64[np.ndarray, "K"], Bool[np.ndarray, "K"]]:
    """The rows whose keys a shard holds, rising, and whether its center is the nearest one of each."""
    rows, first = [np.empty(0, np.int64)], [np.empty(0, bool)]
    for part in parts:
        ends = load_array(directory / f"{part}.ends.npy", REPAIR)
        edges = np.append(0, ends)[shard * copies : (shard + 1) * copies + 1]
        rows.append(load_array(directory / f"{part}.rows.npy", REPAIR, mapped=True)[edges[0] : edges[-1]])
        first.append(np.arange(edges[0], edges[-1]) < edges[1])
    rows, first = np.concatenate(rows), np.concatenate(first)
    order = rows.argsort()
    return rows[order], first[order]


def _make(
    name: str,
    directory: Path,
    number: int,
    parts: Sequence[str],
    kind: str,
    config: DataConfig,
    vectors: EmbeddingTable,
    temporary: Path,
) -> dict:
    """Builds one shard from the keys assigned to it, and lets it answer the sample."""
    folder = temporary / name
    folder.mkdir()
    copies = Router.load(directory).copies
    ids, first = assigned_rows(directory, parts, number, copies)
    keys, k = vectors[ids], config.neighbors_stored
    settings, facts = IndexSettings("exact"), {"keys": len(ids)}
    if kind == "scann" and len(ids) >= FEWEST:
        settings = choose_settings(len(ids), config)
        build_scann(folder, keys, settings)
        # Queries of its own keys, but of all where a key has no copy in another shard: others find less of their neighbors here.
        at, queried = (np.arange(len(ids)), keys) if copies > 1 else (ids, vectors)
        own = QuerySample(queried, k, config.recall_sample)
        own.compare(at, keys)
        target = replace(config, recall_target=1 - SHARDS_MISSES * (1 - config.recall_target))
        settings, facts["recall"] = tune(ScannSearcher(folder, keys, settings), at, own, target)
    facts |= asdict(settings)
    np.save(folder / IDS, ids)
    sample = QuerySample(vectors, k, config.recall_sample)
    if first.any():  # of a key's copies one is compared
        sample.compare(ids[first], keys[first])
    answers = sample.search(PlacedSearcher(open_keys(folder, keys, facts), ids))
    for column, array in zip(SAMPLE, (sample.truth, *answers), strict=True):
        np.save(folder / f"sample.{column}.npy", array)
    return {"shards": {name: facts}}


def _measure(
    directory: Path, config: DataConfig, vectors: EmbeddingTable, names: Sequence[str], margin: float | None, temporary
) -> dict:
    """The margin, the shards that the sample visits with it, and the recall of their answers."""
    sample = QuerySample(vectors, config.neighbors_stored, config.recall_sample)
    answers, keys = [], []
    for name in names:
        truth, *found = (load_array(directory / name / f"sample.{column}.npy", REPAIR) for column in SAMPLE)
        sample.add(truth)
        answers.append(found)
        keys.append(len(load_array(directory / name / IDS, REPAIR, mapped=True)))
    distances = Router.load(directory).distances(sample.queries)
    if margin is None:
        margin = _smallest_margin(sample, answers, distances, config.recall_target)
    visited = nearest(distances, margin, config.index_shards_visited)
    ids, measured = np.full_like(answers[0][0], PADDING), np.full_like(answers[0][1], np.inf)
    for number, rows in enumerate(map(np.flatnonzero, visited.T)):
        found, their = answers[number]
        merge_at(ids, measured, rows, found[rows], their[rows])
    visits = visited.sum(1)
    routing = {"margin": margin, "visits": float(visits.mean()), "most_visits": int(visits.max())}
    routing["keys_read"] = float((visited @ np.array(keys)).mean())
    return {"recall": sample.report((ids, measured)), "routing": routing}


def _smallest_margin(
    sample: QuerySample, answers: Sequence, distances: Float64[np.ndarray, "N K"], target: float
) -> float:
    """The smallest margin at which the visited shards find the target's share of the true neighbors.

    If all of them together find less, the smallest at which they find all that they do.
    """
    extra = distances - distances.min(1, keepdims=True)
    rows, ids, costs = [], [], []
    for number, found in enumerate(answers):
        within, k, there = sample.hits(found)
        at, columns = np.nonzero(within)
        rows.append(at)
        ids.append(found[0][at, columns])
        costs.append(extra[at, number])
    rows, ids, costs = (np.concatenate(column) for column in (rows, ids, costs))
    order = np.lexsort((costs, ids, rows))  # a key is found in the first shard visited that has it
    rows, ids, costs = rows[order], ids[order], costs[order]
    fresh = np.append(True, (rows[1:] != rows[:-1]) | (ids[1:] != ids[:-1]))[: len(rows)]
    rows, costs = rows[fresh], costs[fresh]
    order = np.lexsort((costs, rows))
    rows, costs = rows[order], costs[order]
    counted = np.arange(len(rows)) - np.searchsorted(rows, rows) < k
    costs = np.sort(costs[counted])
    wanted = min(math.ceil(target * there), len(costs))
    return float(costs[wanted - 1]) if wanted else 0.0
