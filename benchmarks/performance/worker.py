"""One side of a comparison: a process that keeps its step in memory and runs it when told.

Two workers live side by side and only one computes at a time, so both meet the same machine, minute by minute. This
file imports nothing outside the standard library: the peer's environment has none of our packages.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# What glibc may be told: keep freed memory instead of returning it to the kernel, in one arena. A step allocates and
# frees the same gigabyte of activations each time, and without this each step repeats the page faults.
ALLOCATORS = {
    "default": {},
    "tuned": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_ARENA_MAX": "1"},
}


def serve(build: Callable[[Mapping], tuple[dict, Callable[..., dict]]]) -> None:
    """Builds from the JSON in argv[1] and runs a step for every line read, answering each with one line of JSON.

    Args:
      build: takes the settings; returns facts about the side (parameters, versions) and its step, a function of the
        keywords given to `Worker.run` that returns the seconds of its parts and what else there is to tell.
    """
    settings = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")  # a library that prints would break the lines
    os.dup2(2, 1)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings["threads"]])
    started = time.perf_counter()
    facts, step = build(settings)
    print(json.dumps({**facts, "build_seconds": time.perf_counter() - started}), file=answers, flush=True)
    for line in sys.stdin:
        before = resource.getrusage(resource.RUSAGE_SELF)
        answer = step(**json.loads(line))
        after = resource.getrusage(resource.RUSAGE_SELF)
        answer["page_faults"] = after.ru_minflt - before.ru_minflt
        answer["peak_rss_bytes"] = after.ru_maxrss * 1024
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """A started side; `run(...)` makes it take one step and returns that step's answer. `path` is its PYTHONPATH."""

    def __init__(self, python: Path, script: Path, settings: Mapping, path: str):
        threads = str(settings["threads"])
        environment = {
            **os.environ,
            **ALLOCATORS[settings["allocator"]],
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "RAYON_NUM_THREADS": threads,
            "JAX_PLATFORMS": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self._command = [str(python), str(script), json.dumps(settings)]
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.facts = self._answer()

    def run(self, **what) -> dict:
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self._command)} ended with status {self._process.wait()}; see its messages.")
        return json.loads(line)


def summary(values: Sequence[float]) -> dict:
    """Minimum, median and all of some seconds."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return {"min": ordered[0], "median": median, "all": [round(value, 4) for value in values]}
