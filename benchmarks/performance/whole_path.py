"""From text files to the neighbors of every chunk: `retro build` against the public PyTorch RETRO's preprocessing.

    make .venv-peer/.ready                                                     # the peer's environment
    .venv/bin/python benchmarks/performance/whole_path.py --megabytes=5 --rounds=2
    .venv/bin/python benchmarks/performance/whole_path.py --megabytes=0.3 --vocabulary=2000 --rounds=1     # a few minutes

Half of the text is of the wiki package and half of legal, one file a document; both sides read the same files, cut them
into chunks of 64 of their own tokens and find 10 neighbors a chunk with the same BERT and the same threads. The sides
take turns, each turn a new process, so each compiles again (imports are not counted). Ours runs
twice: in bfloat16, and in float32 as the peer does. The recall of each side's neighbors
is measured afterwards against every distance of its own embeddings, under its own rule of which documents count. With
5 MB and 2 cores a turn of all three takes about ten minutes.
"""

import argparse
import datetime
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from embedding import say
from machine import machine, state
from worker import Worker, summary

from data_pipeline.encoder.bert import encoder_directory
from data_pipeline.search.recall import ROUNDING, sample_rows
from data_pipeline.sources.readers import read_source
from retro_jax.config import DataConfig, SourceConfig

HERE = Path(__file__).resolve().parent
PACKAGES = ("wiki", "legal")
OURS = ("ours, bfloat16", "ours, float32")
PEER = "retro-pytorch"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=5.0, help="of text")
    parser.add_argument("--vocabulary", type=int, default=16_000, help="SentencePiece entries that our side trains")
    parser.add_argument("--chunk", type=int, default=64, help="tokens")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sample", type=int, default=1000, help="chunks whose neighbors are checked")
    parser.add_argument("--peer-python", type=Path, default=Path(".venv-peer/bin/python"))
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/whole_path.json"))
    options = parser.parse_args(argv)
    sides = {name: (Path(sys.executable), "our_whole_path.py") for name in OURS}
    if options.peer_python.exists():
        sides[PEER] = (options.peer_python, "peer/whole_path.py")
    else:
        say(f"No peer: {options.peer_python} is missing (`make .venv-peer/.ready` installs it). Our side runs alone.")
    encoder = encoder_directory(DataConfig()).resolve()
    answers, loads, before = {name: [] for name in sides}, [], state("text to neighbors")
    with tempfile.TemporaryDirectory() as temporary:
        text = Path(temporary) / "text"
        documents, size = write_documents(text, options.megabytes * 1e6)
        say(f"{documents:,} documents, {size / 1e6:.2f} MB")
        for turn in range(options.rounds):
            loads.append(os.getloadavg()[0])
            for name, (python, script) in sides.items():
                settings = {"threads": options.threads, "allocator": "default", "text": str(text), "k": options.k}
                settings |= {"encoder": str(encoder), "chunk": options.chunk, "vocabulary": options.vocabulary}
                settings |= {"precision": name.partition(", ")[2]}
                answers[name].append(run(python, HERE / script, settings, options))
                answer = answers[name][-1]
                parts = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in answer["seconds"].items())
                say(
                    f"turn {turn + 1}, {name}: {answer['step']:.1f} s ({parts}) for {answer['chunks']:,} chunks, recall "
                    f"{answer['recall']:.3f} (load before the turn {loads[-1]:.1f})"
                )
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "state": before,
        **{"packages": PACKAGES, "documents": documents, "bytes": size, "threads": options.threads},
        **{"chunk": options.chunk, "k": options.k, "vocabulary": options.vocabulary, "sample": options.sample},
        "sides": {name: figures(found, size) for name, found in answers.items()},
        "ratios": ratios(answers),
        "load_before_turns": loads,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def write_documents(folder: Path, size: float) -> tuple[int, int]:
    """One file a document, of each package up to its share of `size` bytes; how many, and their bytes."""
    folder.mkdir()
    count, total = 0, 0
    for package in PACKAGES:
        taken = 0
        for document in read_source(package, SourceConfig(package=package)):
            content = document.text.encode()
            if taken + len(content) <= size / len(PACKAGES):
                (folder / f"{package}-{count:06d}.txt").write_bytes(content)
                count, taken = count + 1, taken + len(content)
        total += taken
    return count, total


def run(python: Path, script: Path, settings: dict, options: argparse.Namespace) -> dict:
    """One turn of a side, in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        worker = Worker(python, script, settings | {"folder": temporary}, str(HERE))
        answer = worker.run()
        worker.close()
        found = recall(Path(temporary), answer["keys"], options.k, options.sample)
        return {**answer, **found, "versions": worker.facts["versions"]}


def recall(folder: Path, keys: int, k: int, sample: int) -> dict:
    """Of a sample's k nearest chunks in other documents, the share that a side has found; and what it left empty."""
    vectors, documents, neighbors = (np.load(folder / f"{name}.npy") for name in ("vectors", "documents", "neighbors"))
    rows = sample_rows(len(vectors), sample)
    wide, there, hits = vectors.astype(np.float64), 0, 0
    for row in rows:
        distances = np.square(wide[:keys] - wide[row]).sum(1)
        distances[documents[:keys] == documents[row]] = np.inf
        bound = np.partition(distances, k - 1)[k - 1]
        found = np.unique(neighbors[row][neighbors[row] >= 0])
        # Distances as small as the rounding of float32 vectors are the same; any of several equals will do.
        hits += int((distances[found] <= bound + ROUNDING * np.square(wide[row]).sum()).sum())
        there += k
    return {"recall": hits / there, "empty": float((neighbors < 0).mean())}


def figures(answers: list[dict], size: int) -> dict:
    seconds = summary([answer["step"] for answer in answers])
    last = answers[-1]
    compiling = [answer["compile_seconds"] for answer in answers if "compile_seconds" in answer]
    return {
        **({"compile_seconds": summary(compiling)} if compiling else {}),
        "versions": last["versions"],
        "seconds": seconds,
        "stages": {stage: summary([answer["seconds"][stage] for answer in answers]) for stage in last["seconds"]},
        "holds": last["holds"],
        "chunks": last["chunks"],
        "chunks_a_second": last["chunks"] / seconds["median"],
        "megabytes_a_second": size / 1e6 / seconds["median"],
        "recall": last["recall"],
        "empty": last["empty"],
        "peak_rss_bytes": max(answer["peak_rss_bytes"] for answer in answers),
    }


def ratios(answers: dict[str, list[dict]]) -> dict:
    """Seconds of ours by the peer's for the same text, turn by turn; below 1 ours is faster."""
    return {
        f"{ours} / {PEER}": summary([a["step"] / b["step"] for a, b in zip(answers[ours], answers[PEER], strict=True)])
        for ours in OURS
        if PEER in answers
    }


if __name__ == "__main__":
    main(sys.argv[1:])
