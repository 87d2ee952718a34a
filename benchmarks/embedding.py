"""Chunks embedded a second by the frozen encoder, against the same model in PyTorch where that is installed.

    .venv/bin/python benchmarks/embedding.py                                   # text of the wiki package
    .venv/bin/python benchmarks/embedding.py --data=runs/quickstart/data       # chunks of a finished build
    make .venv-peer/.ready                                                     # PyTorch, for the comparison

One process a side, all started and warmed up (compilation is not counted here, but reported), then they take turns
(A B C A B C). Both sides get the same word pieces, sorted by length as each likes it best; the time is from pieces to
vectors. GFLOP/s count the products of the real pieces, not of padding, and stand beside the rate of a plain matrix
product of the same width in the same process. On 2 cores it takes some five minutes.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
from worker import Worker, summary

from data_pipeline.bert import FrozenEncoder, encoder_directory
from retro_jax.config import DataConfig, SourceConfig

HERE = Path(__file__).resolve().parent
CHARACTERS = 250  # of a chunk of 64 tokens, near enough, where there is no build to take chunks from


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data directory of a finished build; default: the wiki package")
    parser.add_argument("--encoder", default="", help="Hugging Face directory; default: all-MiniLM-L6-v2")
    parser.add_argument("--chunks", type=int, default=1024, help="embedded a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--allocator", choices=("default", "tuned"), default="default")
    parser.add_argument("--peer-python", type=Path, default=Path(".venv-peer/bin/python"))
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/embedding.json"))
    options = parser.parse_args(argv)
    directory = encoder_directory(DataConfig(encoder=options.encoder))
    encoder = FrozenEncoder(directory)
    ids = encoder.token_ids(texts(options.data, options.chunks))
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "ids.npz"
        np.savez(path, flat=np.concatenate(ids).astype(np.int32), lengths=np.array([len(row) for row in ids], np.int32))
        sides = start(options, directory, path)
        answers = {name: [] for name in sides}
        for turn in range(options.rounds):
            for name, side in sides.items():
                answers[name].append(side.run())
            line = ", ".join(f"{name} {len(ids) / answers[name][-1]['step']:.0f}" for name in sides)
            print(f"turn {turn + 1}, chunks/s: {line} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)
        for side in sides.values():
            side.close()
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "chunks": len(ids),
        "pieces_a_chunk": float(np.mean([len(row) for row in ids])),
        "threads": options.threads,
        "allocator": options.allocator,
        "sides": {name: figures(sides[name].facts, answers[name], ids, encoder.shape) for name in sides},
    }
    result["ratios"] = ratios(answers)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"sides": result["sides"], "ratios": result["ratios"]}, indent=1))


def texts(data: Path | None, count: int) -> list[str]:
    """Texts of chunks, spread evenly over a build's table or cut from the wiki package."""
    if data is not None:
        from data_pipeline.chunks import ChunkTable
        from data_pipeline.tokens import Tokenizer

        table, tokenizer = ChunkTable(data / "chunks"), Tokenizer(data / "tokenizer")
        rows = np.unique(np.linspace(0, len(table) - 1, min(count, len(table))).astype(np.int64))
        return [tokenizer.decode(row[row >= 0]) for row in table.tokens[rows]]
    from data_pipeline.readers import read_source

    pieces = []
    for document in read_source("wiki", SourceConfig(package="wiki")):
        pieces += [document.text[start : start + CHARACTERS] for start in range(0, len(document.text), CHARACTERS)]
        if len(pieces) >= count:
            break
    return pieces[:count]


def start(options: argparse.Namespace, directory: Path, path: Path) -> dict[str, Worker]:
    shared = {"threads": options.threads, "allocator": options.allocator, "ids": str(path), "encoder": str(directory)}
    sides = {}
    for precision in ("float32", "bfloat16"):
        settings = {**shared, "precision": precision}
        sides[f"jax {precision}"] = Worker(Path(sys.executable), HERE / "jax_embedding.py", settings, str(HERE))
        if options.peer_python.exists():
            script = HERE / "peer" / "embedding.py"
            sides[f"torch {precision}"] = Worker(options.peer_python, script, settings, str(HERE))
    return sides


def figures(facts: dict, answers: list[dict], ids, shape) -> dict:
    seconds = summary([answer["step"] for answer in answers])
    lengths = np.array([len(row) for row in ids], np.float64)
    products = 2 * shape.layers * shape.width * (4 * shape.width + 2 * shape.feed_forward)
    flops = products * lengths.sum() + 4 * shape.layers * shape.width * np.square(lengths).sum()
    return {
        **facts,
        "chunks_a_second": {key: len(ids) / seconds[key] for key in ("median", "min")},  # "min": of the seconds
        "gflops": flops / seconds["median"] / 1e9,
        "share_of_matmul": flops / seconds["median"] / 1e9 / facts["matmul_gflops"],
        "seconds": seconds,
    }


def ratios(answers: dict[str, list[dict]]) -> dict:
    """Seconds of the first side by those of the second, turn by turn; below 1 the first is faster."""
    pairs = [("jax bfloat16", "jax float32"), ("jax float32", "torch float32"), ("jax bfloat16", "torch bfloat16")]
    return {
        f"{ours} / {theirs}": summary(
            [a["step"] / b["step"] for a, b in zip(answers[ours], answers[theirs], strict=True)]
        )
        for ours, theirs in pairs
        if theirs in answers
    }


if __name__ == "__main__":
    main(sys.argv[1:])
