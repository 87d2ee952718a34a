"""Builds the database of configs/nine_subsets.py at 1, 3, 10, 30 and 100% of a share of its text and measures each build.

    .venv/bin/python benchmarks/databases/database.py --percent=100 runs/database docs/measured/database.md    # or: make database-report

Every build is one JSON file in the given folder; an existing one is not repeated, and an interrupted one continues
(its line then says so). The largest share comes first: the smaller ones use its tokenizer, so that they differ in their
text alone. At the end index and neighbors are rebuilt in parts of one size. Memory and processor
time are those of the building process, sampled five times a second, stage by stage.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from database_page import page

from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.search.exact import ExactSearcher
from data_pipeline.search.recall import QuerySample, sample_rows
from data_pipeline.search.stage import open_searcher
from data_pipeline.stages import known
from retro_jax.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
SHARES = (1.0, 0.01, 0.03, 0.1, 0.3)
STAGES = tuple(name for name, stage in known.STAGES.items() if stage.wanted(RunConfig()))
PARTS = ((0.1, 1), (1.0, 10))  # shares, and index shards that they are searched in
MADE_BEFORE = STAGES[: STAGES.index("index")]
QUERIES = 1000


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--percent", type=float, default=100.0, help="of the nine subsets that the largest build takes")
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    options = parser.parse_args(argv)
    rows = []
    for share in SHARES:
        path = options.folder / f"{options.percent * share:g}.json"
        if not path.exists():
            row = measure(options.folder, options.percent, share)
            path.write_text(json.dumps(row, indent=1) + "\n")
        rows.append(json.loads(path.read_text()))
        options.page.write_text(page(rows))
    parts = []
    for share, shards in PARTS:
        path = options.folder / f"{options.percent * share:g}-in-{shards}.json"
        if not path.exists():
            row = measure_parts(options.folder, options.percent, share, shards)
            path.write_text(json.dumps(row, indent=1) + "\n")
        parts.append(json.loads(path.read_text()))
        options.page.write_text(page(rows, parts))


def measure_parts(folder: Path, percent: float, share: float, shards: int) -> dict:
    """Rebuilds index and neighbors of a finished build in the given number of index shards, in a process that embeds nothing."""
    workdir = folder / f"{percent * share:g}-in-{shards}"
    continued = (workdir / "data" / "index").exists()
    (workdir / "data").mkdir(parents=True, exist_ok=True)
    for stage in MADE_BEFORE:
        link = workdir / "data" / stage
        if not link.is_symlink():
            link.symlink_to(Path("../..") / f"{percent * share:g}" / "data" / stage)
    peaks, processor = run_and_watch(
        [*command(folder, percent, share, workdir), f"--config.data.index_shards={shards}"]
    )
    index, neighbors = (
        json.loads((workdir / "data" / stage / "manifest.json").read_text()) for stage in ("index", "neighbors")
    )
    return {
        **{
            "percent": percent * share,
            "shards": shards,
            "continued": continued,
            "keys": index["counts"]["database_chunks"],
        },
        **{"recall": index["counts"]["recall"], "chunks": neighbors["counts"]["chunks"]},
        **{"peak_bytes": peaks, "cpu_seconds": processor},
    }


def command(folder: Path, percent: float, share: float, workdir: Path) -> list[str]:
    """The config of a build, with one kind of index for all shares if possible, and the tokenizer of the largest."""
    found = [sys.executable, "-m", "launch.build", f"--config={ROOT}/configs/nine_subsets.py:{percent * share:g}"]
    found += [f"--workdir={workdir}", "--config.data.exact_below=1000"]
    tokenizer = folder / f"{percent:g}" / "data" / "tokenizer" / "tokenizer.model"
    return found if share == 1 else [*found, f"--config.data.tokenizer={tokenizer}"]


def measure(folder: Path, percent: float, share: float) -> dict:
    """Runs or continues one build and returns its row."""
    workdir = folder / f"{percent * share:g}"
    started, load = time.time(), os.getloadavg()[0]
    continued = (workdir / "data").exists()
    peaks, processor = run_and_watch(command(folder, percent, share, workdir))
    data = workdir / "data"
    row = {"percent": percent * share, "share": share, "date": time.strftime("%Y-%m-%d"), "continued": continued}
    row |= {"cores": len(os.sched_getaffinity(0)), "load_before": load, "load_after": os.getloadavg()[0]}
    row |= {"wall_seconds": time.time() - started, "peak_bytes": peaks, "cpu_seconds": processor}
    row["stages"] = {
        stage: {
            "counts": (manifest := json.loads((data / stage / "manifest.json").read_text()))["counts"],
            "seconds": json.loads((data / stage / "seconds.json").read_text())["seconds"],
            "bytes": sum(file["bytes"] for file in manifest["files"]),
        }
        for stage in STAGES
    }
    return row | {"search": search_facts(data)}


def run_and_watch(command: list[str]) -> tuple[dict[str, int], dict[str, float]]:
    """Runs a build and measures each stage: peak resident bytes and processor seconds of its process."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    peaks, processor = dict.fromkeys(STAGES, 0), dict.fromkeys(STAGES, 0.0)
    stage, ticks = ["documents"], os.sysconf("SC_CLK_TCK")

    def watch():
        before = 0.0
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
                times = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                return
            if found := re.search(r"VmRSS:\s+(\d+) kB", status):
                peaks[stage[0]] = max(peaks[stage[0]], 1024 * int(found[1]))
            now = (int(times[11]) + int(times[12])) / ticks  # in user and in kernel mode, all threads
            processor[stage[0]], before = processor[stage[0]] + now - before, now
            time.sleep(0.2)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    for line in process.stderr:
        print(line, end="", file=sys.stderr, flush=True)
        if found := re.match(r"\[\d+/\d+\] (\w+)", line):
            stage[0] = found[1]
    watcher.join()
    if process.wait():
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}; run this command again, it continues.")
    return peaks, processor


def search_facts(data: Path) -> dict:
    """Recall@2 and @10 of the index against exact distances and queries a second of both, by turns, median of three."""
    vectors = EmbeddingTable(data / "embeddings", verify=False)
    searcher, keys = open_searcher(data / "index", data / "embeddings"), vectors.database()
    sides = {"index": searcher, "exact": ExactSearcher(keys)}
    queries = vectors[sample_rows(len(vectors), QUERIES)]
    seconds = {name: [] for name in sides}
    for _ in range(3):
        for name, side in sides.items():
            started = time.perf_counter()
            side.search(queries, 10)
            seconds[name].append(time.perf_counter() - started)
    recall = {}
    for k in (2, 10):
        sample = QuerySample(vectors, k, QUERIES)
        sample.compare(np.arange(len(keys)), keys)
        recall[str(k)] = sample.recall(searcher)
    rates = {name: len(queries) / float(np.median(times)) for name, times in seconds.items()}
    return {"queries": len(queries), "recall": recall, "queries_a_second": rates}


if __name__ == "__main__":
    main(sys.argv[1:])
