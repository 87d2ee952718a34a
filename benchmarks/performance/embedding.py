"""Measures chunks a second of the frozen encoder against the same model in PyTorch and in sentence-transformers.

    .venv/bin/python benchmarks/performance/embedding.py                                   # text of the wiki package
    .venv/bin/python benchmarks/performance/embedding.py --data=runs/quickstart/data       # chunks of a finished build
    make .venv-peer/.ready                                                     # the peers, for the comparison

One process a side, all started and warmed up (compilation is not counted here, but reported), then they take turns
(A B C A B C). Against plain PyTorch the time is from word pieces to vectors, the same pieces on both sides, sorted by
length as each likes it best; against sentence-transformers it is from text to vectors, each with its own tokenizing and
sorting, and the two must give the same vectors: every cosine over 0.999, or the run ends with an error. GFLOP/s count
the products of the real pieces, not of padding, and are shown beside the rate of a plain matmul of the same width
in the same process. 512 chunks are a small set, 8,192 half a shard of a build. On 2 cores it takes some forty minutes.
"""

import argparse
import datetime
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import machine, state
from worker import Worker, summary

from data_pipeline.encoder.bert import FrozenEncoder, encoder_directory
from retro_jax.config import DataConfig, SourceConfig

HERE = Path(__file__).resolve().parent
SHARD = 8192  # chunks, half of what a build embeds at a time; fewer rows of the batches are empty than with 512
SAME = 0.999  # the cosine over which two vectors of a text are the same output
CHARACTERS = 250  # about those of a chunk of 64 tokens, if no build is given


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data directory of a finished build; default: the wiki package")
    parser.add_argument("--encoder", default="", help="Hugging Face directory; default: all-MiniLM-L6-v2")
    parser.add_argument("--chunks", type=int, nargs="+", default=[512, SHARD], help="embedded a turn")
    parser.add_argument("--rounds", type=int, nargs="+", default=[5, 2], help="turns of each number of chunks")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--allocator", choices=("default", "tuned"), default="default")
    parser.add_argument("--peer-python", type=Path, default=Path(".venv-peer/bin/python"))
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/embedding.json"))
    options = parser.parse_args(argv)
    if len(options.chunks) != len(options.rounds):
        parser.error(
            f"--rounds has {len(options.rounds)} values and --chunks {len(options.chunks)}; give one for each."
        )
    if not options.peer_python.exists():
        say(f"No peers: {options.peer_python} is missing (`make .venv-peer/.ready` installs it). Our sides run alone.")
    directory = encoder_directory(DataConfig(encoder=options.encoder))
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "threads": options.threads,
        "allocator": options.allocator,
        "sizes": {},
    }
    for count, rounds in zip(options.chunks, options.rounds, strict=True):
        result["sizes"][str(count)] = compare(directory, texts(options.data, count), rounds, options)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["sizes"], indent=1))
    for size in result["sizes"].values():
        if worst := {pair: cosine["min"] for pair, cosine in size["cosines"].items() if cosine["min"] <= SAME}:
            raise SystemExit(f"These do not give the same vectors; their smallest cosines: {worst}")


def compare(directory: Path, chunks: list[str], rounds: int, options: argparse.Namespace) -> dict:
    """All sides in turns on these chunks."""
    encoder = FrozenEncoder(directory)
    # The peers do not split longer ones into windows.
    ids = [row[: encoder.longest] for row in encoder.token_ids(chunks)]
    before = state(f"embedding of {len(ids):,} chunks")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lengths = np.array([len(row) for row in ids], np.int32)
        np.savez(folder / "ids.npz", flat=np.concatenate(ids).astype(np.int32), lengths=lengths)
        (folder / "texts.json").write_text(json.dumps(chunks))
        workers = start(options, directory, folder)
        sides = asked(workers)
        answers, loads = {name: [] for name in sides}, []
        for turn in range(rounds):
            loads.append(os.getloadavg()[0])
            for name, (worker, of) in sides.items():
                answers[name].append(worker.run(of=of))
            line = ", ".join(f"{name} {len(ids) / answers[name][-1]['step']:.0f}" for name in sides)
            say(f"turn {turn + 1}, chunks/s: {line} (load before {loads[-1]:.1f})")
        for worker in workers.values():
            worker.close()
        same = cosines({name: np.load(path_of(folder, name)) for name in workers if not name.startswith("torch")})
    return {
        "state": before,
        "chunks": len(ids),
        "pieces_a_chunk": float(lengths.mean()),
        "padding": float(encoder.computed_pieces(ids) / lengths.sum() - 1),
        "sides": {
            name: figures(worker.facts, answers[name], ids, encoder.shape) for name, (worker, _) in sides.items()
        },
        "ratios": ratios(answers),
        "cosines": same,
        "load_before_turns": loads,
    }


def texts(data: Path | None, count: int) -> list[str]:
    """Texts of chunks, spread evenly over a build's table or cut from the wiki package."""
    if data is not None:
        from data_pipeline.chunks import ChunkTable
        from data_pipeline.tokens import Tokenizer

        table, tokenizer = ChunkTable(data / "chunks"), Tokenizer(data / "tokenizer")
        rows = np.unique(np.linspace(0, len(table) - 1, min(count, len(table))).astype(np.int64))
        return [tokenizer.decode(row[row >= 0]) for row in table.tokens[rows]]
    from data_pipeline.sources.readers import read_source

    pieces = []
    for document in read_source("wiki", SourceConfig(package="wiki")):
        pieces += [document.text[start : start + CHARACTERS] for start in range(0, len(document.text), CHARACTERS)]
        if len(pieces) >= count:
            break
    return pieces[:count]


def start(options: argparse.Namespace, directory: Path, folder: Path) -> dict[str, Worker]:
    """Starts and warms up a process for each library and precision; ours and sentence-transformers' save their vectors."""
    shared = {
        "threads": options.threads,
        "allocator": options.allocator,
        "ids": str(folder / "ids.npz"),
        "texts": str(folder / "texts.json"),
        "encoder": str(directory),
    }
    scripts = {"jax": (Path(sys.executable), "jax_embedding.py")}
    if options.peer_python.exists():
        scripts["torch"] = (options.peer_python, "peer/embedding.py")
        scripts["sentence-transformers"] = (options.peer_python, "peer/sentences.py")
    workers = {}
    for precision in ("float32", "bfloat16"):
        for library, (python, script) in scripts.items():
            name = f"{library} {precision}"
            settings = {**shared, "precision": precision, "vectors": str(path_of(folder, name))}
            say(f"starting {name}")
            workers[name] = Worker(python, HERE / script, settings, str(HERE))
    return workers


def path_of(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '-')}.npy"


def asked(workers: dict[str, Worker]) -> dict[str, tuple[Worker, str]]:
    """The sides: which process computes what. Ours runs both tasks, so that each is compared with its peer."""
    sides = {}
    for name, worker in workers.items():
        library, _, precision = name.partition(" ")
        if library != "sentence-transformers":
            sides[name] = (worker, "pieces")
        if library != "torch":
            sides[f"{library} {precision}, from text"] = (worker, "text")
    return sides


def cosines(vectors: dict[str, np.ndarray]) -> dict:
    """Smallest and mean cosine of each side to sentence-transformers in float32."""
    reference = "sentence-transformers float32" if "sentence-transformers float32" in vectors else "jax float32"
    wide = {name: rows.astype(np.float64) for name, rows in vectors.items()}
    wide = {name: rows / np.linalg.norm(rows, axis=1, keepdims=True) for name, rows in wide.items()}
    found = {}
    for name in wide:
        if name != reference:
            cosine = (wide[name] * wide[reference]).sum(1)
            found[f"{name} to {reference}"] = {"min": float(cosine.min()), "mean": float(cosine.mean())}
    return found


def figures(facts: dict, answers: list[dict], ids, shape) -> dict:
    seconds = summary([answer["step"] for answer in answers])
    lengths = np.array([len(row) for row in ids], np.float64)
    products = 2 * shape.layers * shape.width * (4 * shape.width + 2 * shape.feed_forward)
    flops = products * lengths.sum() + 4 * shape.layers * shape.width * np.square(lengths).sum()
    rate = flops / seconds["median"] / 1e9
    return {
        **facts,
        "chunks_a_second": {key: len(ids) / seconds[key] for key in ("median", "min")},  # "min": of the seconds
        "gflops": rate,
        **({"share_of_matmul": rate / facts["matmul_gflops"]} if "matmul_gflops" in facts else {}),
        "seconds": seconds,
    }


def ratios(answers: dict[str, list[dict]]) -> dict:
    """Seconds of the first side by those of the second, turn by turn; below 1 the first is faster."""
    pairs = [("jax bfloat16", "jax float32"), ("jax float32", "torch float32"), ("jax bfloat16", "torch bfloat16")]
    pairs += [
        (f"jax {precision}, from text", f"sentence-transformers {precision}, from text")
        for precision in ("float32", "bfloat16")
    ]
    return {
        f"{ours} / {theirs}": summary(
            [a["step"] / b["step"] for a, b in zip(answers[ours], answers[theirs], strict=True)]
        )
        for ours, theirs in pairs
        if theirs in answers
    }


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
