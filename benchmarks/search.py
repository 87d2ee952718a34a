"""Index build seconds, queries a second and recall@k of SCaNN beside exact search, on embeddings of real text.

    .venv/bin/python benchmarks/search.py --data=runs/quickstart/data     # vectors of a finished build
    .venv/bin/python benchmarks/search.py --keys=8000                     # else made from the wiki package, first

Queries are chunks of the same text that are not in the database, so none finds itself. The two searches take turns in
one process. Embedding 8,000 chunks takes a minute on 2 cores.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from embedding import texts
from worker import summary

from data_pipeline.bert import FrozenEncoder, encoder_directory
from data_pipeline.embeddings import COMPUTE_DTYPE, EmbeddingTable
from data_pipeline.index import ScannSearcher, build_scann, choose_kind, choose_settings, scann_installed
from data_pipeline.search import ExactSearcher, reference_distances
from retro_jax.config import DataConfig


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data directory of a finished build; default: the wiki package")
    parser.add_argument("--keys", type=int, default=8000, help="vectors in the database, if there are as many")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--leaves-searched", type=int, default=0, help="0: leaves^0.75, as in a build")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/search.json"))
    options = parser.parse_args(argv)
    if not scann_installed():
        raise SystemExit("SCaNN is not installed: install the extra `build` on Linux x86-64.")
    vectors = load(options.data, options.keys + options.queries)
    # Rows are spread over all documents, and so are the queries taken out of them.
    held_out = np.unique(np.linspace(0, len(vectors) - 1, min(options.queries, len(vectors) // 4)).astype(np.int64))
    queries, keys = vectors[held_out], np.delete(vectors, held_out, axis=0)
    config = DataConfig(exact_below=0, index_leaves_searched=options.leaves_searched)
    kind, why = choose_kind(len(keys), len(keys), config, installed=True)
    if kind != "scann":
        raise SystemExit(f"There is no index to compare with: {why}. Take more keys.")
    settings = choose_settings(len(keys), config)
    with tempfile.TemporaryDirectory() as temporary:
        started = time.perf_counter()
        build_scann(Path(temporary), keys, settings)
        build_seconds = time.perf_counter() - started
        index_bytes = sum(path.stat().st_size for path in Path(temporary).iterdir())
        sides = {"scann": ScannSearcher(Path(temporary), keys, settings), "exact": ExactSearcher(keys)}
    truth = reference_distances(queries, keys, np.full(len(queries), -1), options.k)[:, -1:]
    seconds, recall = {name: [] for name in sides}, {}
    for turn in range(options.rounds + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            _, distances = side.search(queries, options.k)
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
            recall[name] = float((distances <= truth + 1e-5).mean())
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "keys": len(keys),
        "width": keys.shape[1],
        "queries": len(queries),
        "k": options.k,
        "settings": {
            "leaves": settings.leaves,
            "leaves_searched": settings.leaves_searched,
            "reorder": settings.reorder,
        },
        "build_seconds": build_seconds,
        "index_bytes": index_bytes,
        "queries_a_second": {name: len(queries) / summary(times)["median"] for name, times in seconds.items()},
        "recall": recall,
        "scann / exact, seconds": summary([a / b for a, b in zip(seconds["scann"], seconds["exact"], strict=True)]),
        "load": os.getloadavg()[0],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def load(data: Path | None, count: int) -> np.ndarray:
    """Vectors of up to `count` chunks, spread over a build's embeddings or made now."""
    if data is not None:
        table = EmbeddingTable(data / "embeddings")
        return table[np.unique(np.linspace(0, len(table) - 1, min(count, len(table))).astype(np.int64))]
    encoder = FrozenEncoder(encoder_directory(DataConfig()), compute_dtype=COMPUTE_DTYPE)
    return encoder.embed(texts(None, count), description="embedding")


if __name__ == "__main__":
    main(sys.argv[1:])
