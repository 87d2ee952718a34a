"""Seconds of a training step against the public PyTorch RETRO, at the shape of the paper's smallest model.

    make benchmark                                     # everything: both environments, all pairs, docs/measured/performance.md
    .venv/bin/python benchmarks/performance/training_step.py --rounds=3 --pairs=bfloat16:tuned

Two processes, one of ours and one of the peer's, are started and warmed up, then take turns (A B A B); the one whose
turn it is has the machine. A pair is a precision and an allocator setting, the same on both sides. Memory: about 5 GiB
a side. On the machine of docs/measured/performance.md everything takes about 15 minutes.
"""

import argparse
import datetime
import json
import math
import os
import sys
from pathlib import Path

from machine import machine, state
from worker import Worker, summary

HERE = Path(__file__).resolve().parent
SHAPE = {
    "vocabulary": 32_000,
    "batch": 1,
    "sequence_length": 512,
    "chunk_length": 64,
    "neighbors": 2,
    "layers": 12,
    "width": 896,
    "heads": 16,
    "head_dim": 64,
    "retrieval_layers": [6, 9, 12],
    "encoder_layers": 2,
    "encoder_width": 896,
    "encoder_cross_attention_layers": [1],
}
PAIRS = ("float32:default", "float32:tuned", "bfloat16:default", "bfloat16:tuned")
TIMES = ("forward_backward", "step")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=PAIRS, help="PRECISION:ALLOCATOR")
    parser.add_argument("--rounds", type=int, default=9, help="measured turns of each side")
    parser.add_argument("--warmup", type=int, default=3, help="turns before, not counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-python", type=Path, default=Path(".venv-peer/bin/python"))
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/training_step.json"))
    options = parser.parse_args(argv)
    result = {
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "shape": SHAPE,
        "threads": options.threads,
        "warmup": options.warmup,
        "pairs": {},
    }
    for pair in options.pairs:
        precision, allocator = pair.split(":")
        settings = {"precision": precision, "allocator": allocator, "threads": options.threads, "shape": SHAPE}
        result["pairs"][pair] = compare(settings, options)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")


def compare(settings: dict, options: argparse.Namespace) -> dict:
    """Both sides in turns; seconds, ratios of ours to the peer's, and what each side says of itself."""
    pair = f"{settings['precision']}, {settings['allocator']} allocator"
    before = state(pair)
    say(f"{pair}: starting both sides")
    path = f"{HERE}:{HERE / 'peer' / 'stand_ins'}"
    sides = {
        "ours": Worker(Path(sys.executable), HERE / "jax_step.py", settings, path),
        "peer": Worker(options.peer_python, HERE / "peer" / "step.py", settings, path),
    }
    answers = {name: [] for name in sides}
    for turn in range(options.warmup + options.rounds):
        load = os.getloadavg()[0]
        for name, side in sides.items():
            answers[name].append(side.run())
        line = ", ".join(f"{name} {answers[name][-1]['step']:.2f} s" for name in sides)
        say(f"  {'warm-up' if turn < options.warmup else 'turn'} {turn + 1}: {line} (load {load:.1f})")
    for side in sides.values():
        side.close()
    measured = {name: rows[options.warmup :] for name, rows in answers.items()}
    result = {name: describe(side.facts, answers[name], measured[name]) for name, side in sides.items()}
    result["state"] = before
    result["ratio"] = {
        time: {
            "of_medians": result["ours"][time]["median"] / result["peer"][time]["median"],
            "of_minima": result["ours"][time]["min"] / result["peer"][time]["min"],
            "by_turn": summary([a[time] / b[time] for a, b in zip(measured["ours"], measured["peer"], strict=True)]),
        }
        for time in TIMES
    }
    return result


def describe(facts: dict, every: list[dict], measured: list[dict]) -> dict:
    losses = [row["loss"] for row in every]
    fresh = math.log(SHAPE["vocabulary"])
    if not (all(0 < loss < fresh + 1 for loss in losses)):
        raise RuntimeError(f"Losses must start near log(vocabulary) = {fresh:.2f} and fall, but they are {losses}.")
    return {
        **facts,
        **{time: summary([row[time] for row in measured]) for time in TIMES},
        "first_turn_seconds": every[0]["forward_backward"],
        "losses": losses,
        "page_faults": measured[-1]["page_faults"],
        "peak_rss_bytes": every[-1]["peak_rss_bytes"],
    }


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
