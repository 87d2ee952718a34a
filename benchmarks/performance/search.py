"""SCaNN as a build sets it against exact search, Faiss and hnswlib, on embeddings of real text, at one recall.

    .venv/bin/python benchmarks/performance/search.py --data=runs/database/100/data --keys=100000   # vectors of a finished build
    .venv/bin/python benchmarks/performance/search.py --keys=8000                     # else made from the wiki package, first
    make .venv-peer/.ready                                                # the peers; without them exact search alone

Queries are chunks of the same text that are not in the database, so none finds itself: one half sets the indexes, the
other is timed. Each index is set on the first half so that recall@k reaches the target; "SCaNN, as built" is what
`retro build` itself would choose, "SCaNN, at the target" and the peers are the fastest of the settings in `ladders`.
Two processes, ours and the peers', have the same threads and take turns, all indexes in one turn, a batch of all timed
queries first and then one query at a time. With 100,000 keys and 2 cores it takes about ten minutes.
"""

import argparse
import datetime
import json
import math
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from embedding import say, texts
from machine import machine, state
from worker import Worker, summary

from data_pipeline.encoder.bert import FrozenEncoder, encoder_directory
from data_pipeline.encoder.dtype import fastest_dtype
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.search.exact import paired_distances, reference_distances
from data_pipeline.search.recall import ROUNDING
from data_pipeline.search.scann import choose_kind, scann_installed
from retro_jax.config import DataConfig

HERE = Path(__file__).resolve().parent
OURS = ("SCaNN, as built", "SCaNN, at the target", "exact")
PEERS = ("Faiss exact", "Faiss IVF-PQ", "Faiss IVF-PQ fast scan", "Faiss HNSW", "hnswlib")
WAYS = ("batch", "one by one")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data directory of a finished build; default: the wiki package")
    parser.add_argument("--keys", type=int, default=8000, help="vectors in the database, if there are as many")
    parser.add_argument("--queries", type=int, default=4000, help="half to set the indexes, half timed")
    parser.add_argument("--single", type=int, default=200, help="queries asked one at a time in a turn")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--target", type=float, default=0.95, help="recall@k that every index is set to")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-python", type=Path, default=Path(".venv-peer/bin/python"))
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/search.json"))
    options = parser.parse_args(argv)
    if not scann_installed():
        raise SystemExit("SCaNN is not installed: install the extra `build` on Linux x86-64.")
    vectors = load(options.data, options.keys + options.queries)
    # Rows are spread over all documents, and so are the queries taken out of them.
    held_out = np.unique(np.linspace(0, len(vectors) - 1, min(options.queries, len(vectors) // 4)).astype(np.int64))
    queries, keys = vectors[held_out], np.delete(vectors, held_out, axis=0)
    kind, why = choose_kind(len(keys), len(keys), DataConfig(exact_below=0), installed=True)
    if kind != "scann":
        raise SystemExit(f"There is no index to compare with: {why}. Take more keys.")
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "state": state("search"),
        "data": "wiki package" if options.data is None else options.data.parent.name,
        "keys": len(keys),
        "width": keys.shape[1],
        "queries": len(queries[1::2]),
        "single": min(options.single, len(queries[1::2])),
        "k": options.k,
        "target": options.target,
        "threads": options.threads,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        arrays = {"keys": keys, "tuning": queries[::2], "timed": queries[1::2]}
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        result |= compare(folder, Recall(folder, arrays, options.k), options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def compare(folder: Path, recall: "Recall", options: argparse.Namespace) -> dict:
    """Builds, sets and times every index; what is in the result besides the sizes."""
    keys = len(recall.arrays["keys"])
    settings = {"threads": options.threads, "allocator": "default", "folder": str(folder)}
    settings |= {"k": options.k, "target": options.target, "lists": 4 * round(math.sqrt(keys))}
    workers = {"ours": Worker(Path(sys.executable), HERE / "our_search.py", settings, f"{HERE}")}
    sides = {name: workers["ours"] for name in OURS}
    if options.peer_python.exists():
        workers["peer"] = Worker(options.peer_python, HERE / "peer" / "search.py", settings, str(HERE))
        sides |= {name: workers["peer"] for name in PEERS}
    else:
        say(f"No peers: {options.peer_python} is missing (`make .venv-peer/.ready` installs it). Exact search alone.")
    facts = {name: prepare(name, side, recall, options, settings["lists"]) for name, side in sides.items()}
    answers, loads = {way: {name: [] for name in sides} for way in WAYS}, []
    for turn in range(options.rounds + 1):  # the first warms up
        loads.append(os.getloadavg()[0])
        for name, side in sides.items():
            for way in WAYS:
                # Two of the names share an index, and each is tuned.
                answer = side.run(do=way, index=held(name), setting=facts[name]["setting"], count=options.single)
                answers[way][name].append(answer["seconds"])
                if turn == 0 and way == "batch":
                    facts[name]["recall"] = recall.of("timed")
        line = ", ".join(f"{name} {answers['batch'][name][-1]:.3f}" for name in sides)
        say(f"turn {turn}, seconds a batch: {line} (load before {loads[-1]:.1f})")
    for name in OURS:  # of the peers nothing is seen but one call
        facts[name]["profile"] = sides[name].run(do="profile", index=held(name), setting=facts[name]["setting"])
    for worker in workers.values():
        worker.close()
    versions = {name: version for worker in workers.values() for name, version in worker.facts["versions"].items()}
    seconds = {way: {name: times[1:] for name, times in found.items()} for way, found in answers.items()}
    counts = {"batch": len(recall.arrays["timed"]), "one by one": options.single}
    for name in sides:
        facts[name]["seconds"] = {way: summary(seconds[way][name]) for way in WAYS}
        facts[name]["queries_a_second"] = {way: counts[way] / facts[name]["seconds"][way]["median"] for way in WAYS}
    return {"versions": versions, "indexes": facts, "ratios": ratios(seconds), "load_before_turns": loads}


def prepare(name: str, side: Worker, recall: "Recall", options: argparse.Namespace, lists: int) -> dict:
    """Builds an index and sets it; its seconds, bytes, setting and recall on the tuning queries."""
    if name == "SCaNN, at the target":
        facts = {"build_seconds": None, "bytes": None}  # as built, and set otherwise
    else:
        say(f"{name}: building")
        built = side.run(do="build", index=held(name))
        facts = {"build_seconds": built["seconds"], "bytes": built["bytes"]}
        say(f"{name}: built in {built['seconds']:.1f} s, {built['bytes'] / 2**20:.1f} MiB")
    if name == "SCaNN, as built":
        chosen = side.run(do="choose", index=held(name))
        facts |= {"setting": chosen["setting"], "tuning_recall": chosen["recall"]}
    else:
        facts |= fastest(name, side, recall, options, lists)
    say(f"{name}: {facts['setting']}, recall {facts['tuning_recall']:.3f} on the tuning queries")
    return facts


def fastest(name: str, side: Worker, recall: "Recall", options: argparse.Namespace, lists: int) -> dict:
    """Of each ladder the lowest rung that reaches the target; of those the fastest."""
    found = []
    for ladder in ladders(name, len(recall.arrays["keys"]), lists, options.k):
        for setting in ladder:
            side.run(do="batch", index=held(name), of="tuning", setting=setting)
            reached = recall.of("tuning")
            if reached >= options.target:
                seconds = side.run(do="batch", index=held(name), of="tuning", setting=setting)["seconds"]
                found.append((seconds, {"setting": setting, "tuning_recall": reached}))
                break
    if not found:
        raise RuntimeError(f"{name} does not reach a recall of {options.target} with any setting.")
    return min(found, key=lambda item: item[0])[1]


def ladders(name: str, keys: int, lists: int, k: int) -> list[list]:
    """Settings of an index, each list rising: what is searched by eighths, with few or many candidates scored."""
    match name:
        case "SCaNN, at the target":
            most = round(math.sqrt(keys)) - 1
            return [[{"leaves_searched": n, "reorder": f * k} for n in rising(1, most)] for f in (3, 5, 10, 20)]
        case "Faiss IVF-PQ" | "Faiss IVF-PQ fast scan":
            return [[{"nprobe": n, "k_factor": f} for n in rising(1, lists)] for f in (3, 5, 10, 20)]
        case "Faiss HNSW":
            return [[{"efSearch": n} for n in rising(k, 4096)]]
        case "hnswlib":
            return [[{"ef": n} for n in rising(k, 4096)]]
        case _:
            return [[None]]


def rising(start: int, stop: int) -> list[int]:
    """From start to stop, each an eighth more than the one before, or one more."""
    values = [start]
    while values[-1] < stop:
        values.append(min(stop, max(values[-1] + 1, math.ceil(values[-1] * 9 / 8))))
    return values


def held(name: str) -> str:
    """The index that a name stands for: SCaNN is one, set in two ways."""
    return name.partition(",")[0]


class Recall:
    """Judges the ids that a side has left, by distance: of several keys at one distance any will do."""

    def __init__(self, folder: Path, arrays: dict[str, np.ndarray], k: int):
        self.arrays, self._found = arrays, folder / "found.npy"
        say(f"measuring every distance of {len(arrays['keys']):,} keys")
        self._truth = {
            of: reference_distances(arrays[of], arrays["keys"], np.full(len(arrays[of]), -1), k)[:, -1:]
            for of in ("tuning", "timed")
        }

    def of(self, which: str) -> float:
        ids = np.load(self._found)
        rows, places = np.nonzero(ids >= 0)
        distances = np.full(ids.shape, np.inf)
        distances[rows, places] = paired_distances(
            self.arrays[which], rows, self.arrays["keys"], ids[rows, places].astype(np.int64)
        )
        return float((distances <= self._truth[which] + ROUNDING).mean())


def ratios(seconds: dict[str, dict[str, list[float]]]) -> dict:
    """Seconds of SCaNN by those of each other search, turn by turn; below 1 SCaNN is faster."""
    return {
        way: {
            f"{ours} / {theirs}": summary([a / b for a, b in zip(times[ours], times[theirs], strict=True)])
            for ours in OURS[:2]
            for theirs in times
            if theirs not in OURS[:2]
        }
        for way, times in seconds.items()
    }


def load(data: Path | None, count: int) -> np.ndarray:
    """Vectors of up to `count` chunks, spread over a build's embeddings or made now."""
    if data is not None:
        table = EmbeddingTable(data / "embeddings")
        return table[np.unique(np.linspace(0, len(table) - 1, min(count, len(table))).astype(np.int64))]
    encoder = FrozenEncoder(encoder_directory(DataConfig()), compute_dtype=fastest_dtype())
    return encoder.embed(texts(None, count), description="embedding")


if __name__ == "__main__":
    main(sys.argv[1:])
