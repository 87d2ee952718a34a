"""Kills a build at random moments, locally and on a local Ray cluster, and compares the bytes of all stages.

    make database-faults     # 30 kills; appends to runs/benchmarks/faults.jsonl, continues there, writes docs/measured/database_faults.md
    PYTHONPATH=tests/fixtures .venv-ray/bin/python benchmarks/databases/faults.py --kills=2 --kinds=local --output=faults.jsonl --page=faults.md

A fault is one of: the building process gets SIGKILL ("local"), a worker process of the cluster does ("worker"), or a node
is taken away ("node"), at a moment drawn evenly from the time an undisturbed build takes; a worker process as soon after
it as one is at work. After a local kill the same command runs again; on a cluster the build continues by itself. One line a
fault: kind, moment, the stage that was running, whether a process died in it, whether every byte is that of the
undisturbed build.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import made_up_encoder
import made_up_text

from data_pipeline.stages.known import STAGES

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("local", "worker", "node")
SHARDS = ("--config.data.shard_chunks=1000", "--config.data.index_shards=2", "--config.data.exact_below=1000")


def command(text: Path, workdir: Path, *more: str) -> list[str]:
    found = [sys.executable, "-m", "launch.build", f"--config=configs/own_text.py:{text}", f"--workdir={workdir}"]
    sizes = ["--config.model.vocabulary=340", "--config.data.recall_sample=50", "--config.data.rerank=bm25"]
    return [*found, *sizes, *SHARDS, f"--config.data.encoder={text.parent / 'encoder'}", *more]


def digest(data: Path) -> dict[str, str]:
    """SHA-256 of every file of a build except its times, by name."""
    paths = (path for path in sorted(data.rglob("*")) if path.is_file() and path.name != "seconds.json")
    return {str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def running_stage(data: Path) -> str:
    """The first stage that is not finished; "none" where all are."""
    return next((stage for stage in STAGES if not (data / stage / "manifest.json").exists()), "none")


def start(arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen) -> int:
    error = process.communicate()[1]
    if process.returncode > 0:
        raise SystemExit(f"A build ended with {process.returncode}:\n{error.decode()[-2000:]}")
    return process.returncode


class Cluster:
    """Starts a Ray head without CPUs and three nodes of one CPU."""

    def __init__(self):
        from ray.cluster_utils import Cluster as Nodes

        os.environ["PYTHONPATH"] = str(ROOT)
        self._memory = {"object_store_memory": 80_000_000}
        self._nodes = Nodes(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **self._memory}
        )
        self._workers = [self._nodes.add_node(num_cpus=1, **self._memory) for _ in range(3)]
        self.address = self._nodes.address

    def kill_worker(self, source: random.Random) -> bool:
        """Whether a process that was working for the build died."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if (entry / "cmdline").read_text().startswith(("ray::run", "ray::Holder")):
                    parent = re.search(r"^PPid:\s+(\d+)", (entry / "status").read_text(), re.MULTILINE)[1]
                    if self.address in Path(f"/proc/{parent}/cmdline").read_text():  # a node of this cluster
                        found.append(int(entry.name))
            except OSError:
                continue
        if found:
            os.kill(source.choice(sorted(found)), signal.SIGKILL)
        return bool(found)

    def take_node(self) -> bool:
        self._nodes.remove_node(self._workers.pop(), allow_graceful=False)
        self._workers.append(self._nodes.add_node(num_cpus=1, **self._memory))
        return True

    def close(self) -> None:
        self._nodes.shutdown()


def fault(kind: str, number: int, text: Path, work: Path, wanted: dict, seconds: float, cluster) -> dict:
    """Builds with one fault and compares."""
    source, workdir = random.Random(f"{kind} {number}"), work / f"{kind}-{number}"
    more = () if kind == "local" else ("--engine=ray", f"--address={cluster.address}")
    moment, started = source.uniform(0, seconds), time.monotonic()
    process = start(command(text, workdir, *more))
    while process.poll() is None and time.monotonic() - started < moment:
        time.sleep(0.01)
    stage, struck = running_stage(workdir / "data"), process.poll() is None
    if struck and kind == "local":
        process.kill()
    elif struck and kind == "node":
        struck = cluster.take_node()
    elif struck:
        while not (struck := cluster.kill_worker(source)) and process.poll() is None:
            time.sleep(0.01)
        stage = running_stage(workdir / "data")
    if finish(process) == -signal.SIGKILL:
        finish(start(command(text, workdir)))
    same = digest(workdir / "data") == wanted
    shutil.rmtree(workdir)
    facts = {"kind": kind, "number": number, "moment": round(moment, 2), "stage": stage}
    return {**facts, "struck": struck, "same_bytes": same, "seconds": round(time.monotonic() - started, 1)}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kills", type=int, default=30, help="number of kills, taking turns over the kinds; idle moments do not count"
    )
    parser.add_argument("--kinds", default="local,local,worker,node", help="kinds taken in turns: local, worker, node")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/faults.jsonl"))
    parser.add_argument("--page", type=Path, default=Path("docs/measured/database_faults.md"))
    options = parser.parse_args(argv)
    kinds = options.kinds.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"--kinds holds {sorted(unknown)[0]!r}; choose from {', '.join(KINDS)}.")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in options.output.read_text().splitlines()] if options.output.exists() else []
    with tempfile.TemporaryDirectory() as temporary:
        work, text = Path(temporary), Path(temporary) / "text"
        made_up_encoder.write(work / "encoder")
        made_up_text.write_folder(text, documents=60)
        seconds = {"local": timed(command(text, work / "whole"))}
        wanted, cluster = digest(work / "whole" / "data"), None
        try:
            if set(kinds) != {"local"}:
                cluster = Cluster()
                flags = ("--engine=ray", f"--address={cluster.address}")
                seconds["worker"] = seconds["node"] = timed(command(text, work / "ray", *flags))
                if digest(work / "ray" / "data") != wanted:
                    raise SystemExit("An undisturbed build on the cluster has other bytes than one in this process.")
            number = len(done)
            while sum(line["struck"] for line in done) < options.kills:
                kind = kinds[number % len(kinds)]
                done.append(fault(kind, number, text, work, wanted, seconds[kind], cluster))
                if not done[-1]["struck"]:  # it was over before: builds have become faster than the first
                    seconds[kind] = min(seconds[kind], done[-1]["seconds"])
                number += 1
                with open(options.output, "a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
                print(done[-1], flush=True)
        finally:
            if cluster is not None:
                cluster.close()
    options.page.write_text(page(done))
    return 0 if all(line["same_bytes"] for line in done) else 1


WORDS = {
    "local": "the building process",
    "worker": "a process of a Ray node, at work for the build",
    "node": "a whole Ray node",
}


def page(lines: list[dict]) -> str:
    """The report of all faults that struck something."""
    struck = [line for line in lines if line["struck"]]
    same = sum(line["same_bytes"] for line in struck)
    rows = []
    for kind in KINDS:
        mine = [line for line in struck if line["kind"] == kind]
        stages = [stage for stage in STAGES if any(line["stage"] == stage for line in mine)]
        equal = sum(line["same_bytes"] for line in mine)
        rows.append(f"| {WORDS[kind]} | {len(mine)} | {equal} | {', '.join(stages) or '-'} |")
    return "\n".join(
        [
            "# Kills at random moments of a build",
            "",
            "Made by `make database-faults` (benchmarks/databases/faults.py): 60 made-up documents, a made-up encoder, two index shards,",
            "BM25; every byte of every stage compared with an undisturbed build in one process. The Ray cluster is a head and",
            f"three nodes on one machine. {len(struck)} faults struck, {same} ended with the same bytes; moments at which nothing "
            f"was at work: {len(lines) - len(struck)}.",
            "",
            "| killed | times | same bytes after | stages it struck in |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def timed(arguments: list[str]) -> float:
    started = time.monotonic()
    finish(start(arguments))
    return time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
