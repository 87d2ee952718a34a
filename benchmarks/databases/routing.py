"""Measures the routed index on shares of a finished build and writes docs/measured/routing.md.

    .venv/bin/python benchmarks/databases/routing.py --data=runs/database/100/data runs/routing docs/measured/routing.md    # or: make routing

Every row is one JSON file in the given folder; an existing one is not measured again, so an interrupted run continues.
`--old=CHECKOUT` adds a build by the code of an older checkout, whose index shards were ranges that every query reads.
Times are processor seconds of all threads, so that other work on the machine counts little.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from routing_page import page

from data_pipeline.chunks import ChunkTable
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.search import router as routers
from data_pipeline.search.recall import sample_rows
from data_pipeline.search.stage import build_index, open_searcher
from data_pipeline.search.subset import in_subset
from data_pipeline.stages.run import read_manifest
from retro_jax.config import DataConfig

ROOT = Path(__file__).resolve().parents[2]
SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
QUERIES, K, TARGET = 2000, 10, 0.95
KEYS_ROUTED, KEYS_BUILT = 2400, 7200  # keys with their copies in a shard: of the router alone, and of a whole index
AT_FULL_SIZE = (10, 30, 100, 300)  # shards of all keys
STAGES = (("today", 1), ("ranges", 10), ("routed", 10), ("routed", 30))
CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
from data_pipeline.search.neighbors import build_neighbors
from data_pipeline.search.stage import build_index
from retro_jax.config import DataConfig
data, work, shards, stage = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
config = DataConfig(index_shards=shards, exact_below=1000)
if stage == "index":
    build_index(work / "index", config, data / "embeddings", data / "chunks")
else:
    build_neighbors(work / "neighbors", config, data / "chunks", data / "embeddings", work / "index")
# Not ru_maxrss, which a process begins with that of the one that started it.
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
(work / (stage + ".peak")).write_text(peak)
"""


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data directory with the stages chunks and embeddings")
    parser.add_argument("--text", default="nine subsets", help="what the build is of, for the page")
    parser.add_argument("--old", type=Path, help="a checkout from before the routed index")
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    table, vectors = ChunkTable(options.data / "chunks"), EmbeddingTable(options.data / "embeddings")
    rows = {"router": [], "index": [], "stage": []}

    def measured(kind: str, name: str, make: Callable[[], dict]) -> None:
        path = options.folder / f"{kind}-{name}.json"
        if not path.exists():
            print(f"routing: {path.stem}", file=sys.stderr, flush=True)
            facts = {"text": options.text, "date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count()}
            row = facts | {"load": os.getloadavg()[0]} | make()
            path.write_text(json.dumps(row, indent=1) + "\n")
        rows[kind].append(json.loads(path.read_text()))
        options.page.write_text(page(rows))

    for copies in (2, 1):
        for share in SHARES:
            shards = count(table, share, copies * 1.0 / KEYS_ROUTED)
            measured(
                "router",
                f"{share:g}-{copies}",
                lambda c=copies, f=share, s=shards: route(options.folder, table, vectors, f, s, c),
            )
        for shards in AT_FULL_SIZE:
            measured(
                "router",
                f"all-{shards}-{copies}",
                lambda c=copies, s=shards: route(options.folder, table, vectors, 1.0, s, c),
            )
    for share in SHARES:
        shards = count(table, share, 2.0 / KEYS_BUILT)
        for name, wanted in (("one", 1), ("routed", shards)):
            measured("index", f"{share:g}-{name}", lambda f=share, s=wanted: search(options, table, vectors, f, s))
    for name, shards in STAGES:
        if name != "ranges" or options.old:
            code = options.old if name == "ranges" else ROOT
            measured("stage", f"{name}-{shards}", lambda n=name, s=shards, c=code: stage(options, n, s, c))


def count(table: ChunkTable, share: float, per_key: float) -> int:
    """Shards of a share of the documents, none smaller than asked for."""
    keys = int(in_subset(table.document_ids[: table.database_chunks], share).sum())
    return max(1, math.floor(keys * per_key))


def keys_of(table: ChunkTable, share: float) -> np.ndarray:
    return np.flatnonzero(in_subset(table.document_ids[: table.database_chunks], share))


def route(folder: Path, table: ChunkTable, vectors: EmbeddingTable, share: float, shards: int, copies: int) -> dict:
    """What a router alone needs for the target: neighbors of other documents, each shard searched exactly."""
    ids = keys_of(table, share)
    keys, documents = vectors[ids].astype(np.float32), table.document_ids[ids]
    chosen = sample_rows(len(vectors), QUERIES)
    queries = vectors[chosen].astype(np.float32)
    path = folder / f"true-{share:g}.npy"  # the same for every number of shards
    if not path.exists():
        np.save(path, nearest_others(queries, table.document_ids[chosen], keys, documents))
    true = np.load(path)
    started = time.process_time()
    with copied(copies):
        router = routers.learn(keys[sample_rows(len(keys), routers.SAMPLE_A_SHARD * shards)], shards)
    learned = time.process_time()
    owners = router.owners(keys)
    assigned = time.process_time()
    held = np.bincount(owners.ravel(), minlength=shards)
    distances = router.distances(queries)
    extra = distances - distances.min(1, keepdims=True)
    costs = np.take_along_axis(extra, owners[true].reshape(len(queries), -1), axis=1)
    costs = costs.reshape(len(queries), K, router.copies).min(2)
    margin = np.sort(costs.ravel())[math.ceil(TARGET * costs.size) - 1]
    visited = extra <= margin
    ranks = distances.argsort(1, kind="stable").argsort(1, kind="stable")
    ranks = np.take_along_axis(ranks, owners[true].reshape(len(queries), -1), axis=1)
    ranks = np.sort(ranks.reshape(len(queries), K, router.copies).min(2).ravel())
    return {
        "share": share,
        "keys": len(keys),
        "shards": shards,
        "copies": router.copies,
        "visits": float(visited.sum(1).mean()),
        "most_visits": int(visited.sum(1).max()),
        "fixed_visits": int(ranks[math.ceil(TARGET * ranks.size) - 1]) + 1,
        "keys_read": float((visited @ held).mean()),
        "largest": float(held.max() / held.mean()),
        "recall": float((costs <= margin).mean()),
        "learn_seconds": learned - started,
        "assign_seconds": assigned - learned,
    }


@contextmanager
def copied(copies: int):
    """Routers made inside put a key into so many shards."""
    before, routers.COPIES = routers.COPIES, copies
    try:
        yield
    finally:
        routers.COPIES = before


def nearest_others(queries, query_documents, keys, documents) -> np.ndarray:
    """The K nearest keys of other documents, from one matmul (near ties do not matter here)."""
    found = []
    for start in range(0, len(queries), 200):
        block = slice(start, start + 200)
        squared = np.square(keys).sum(1) - 2 * queries[block] @ keys.T
        squared[query_documents[block, None] == documents] = np.inf
        found.append(np.argpartition(squared, K - 1, axis=1)[:, :K])
    return np.concatenate(found)


def search(options, table: ChunkTable, vectors: EmbeddingTable, share: float, shards: int) -> dict:
    """A whole index over a share: its build, its recall, and the processor seconds of a million queries."""
    directory = options.folder / f"index-{share:g}-{shards}"
    config = DataConfig(exact_below=1000, index_shards=shards, database_fraction=share, neighbors_stored=K)
    started = time.process_time()
    build_index(directory, config, options.data / "embeddings", options.data / "chunks")
    built = time.process_time() - started
    counts = read_manifest(directory, "index").counts
    searcher = open_searcher(directory, options.data / "embeddings")
    queries = vectors[sample_rows(len(vectors), QUERIES)].astype(np.float32)
    times = []
    for _ in range(3):
        started = time.process_time()
        searcher.search(queries, K)
        times.append(time.process_time() - started)
    return {
        "share": share,
        "keys": counts["database_chunks"],
        "shards": shards,
        "recall": counts["recall"]["value"],
        "visits": counts.get("routing", {}).get("visits", 1.0),
        "keys_read": counts.get("routing", {}).get("keys_read", counts["database_chunks"]),
        "build_seconds": built,
        "seconds_a_million": min(times) / len(queries) * 1e6,
    }


def stage(options, name: str, shards: int, code: Path) -> dict:
    """Index and neighbors of all chunks, each in a process of its own: processor seconds, seconds, peak memory."""
    work = options.folder / f"stage-{name}-{shards}"
    work.mkdir(exist_ok=True)
    row = {"name": name, "shards": shards}
    for one in ("index", "neighbors"):
        command = [sys.executable, "-c", CHILD, *map(str, (options.data.resolve(), work.resolve(), shards)), one]
        environment = {**os.environ, "PYTHONPATH": str(code.resolve()), "PYTHONSAFEPATH": "1"}
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=code, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{name} in {shards} index shards ended with {status}; run this command again.")
        row |= {f"{one}_seconds": usage.ru_utime + usage.ru_stime, f"{one}_wall": time.monotonic() - started}
        row[f"{one}_bytes"] = int((work / f"{one}.peak").read_text()) * 1024
    counts = json.loads((work / "index" / "manifest.json").read_text())["counts"]
    chunks = json.loads((work / "neighbors" / "manifest.json").read_text())["counts"]["chunks"]
    visits = counts.get("routing", {}).get("visits", float(shards))
    return row | {"recall": counts["recall"]["value"], "visits": visits, "chunks": chunks}


if __name__ == "__main__":
    main(sys.argv[1:])
