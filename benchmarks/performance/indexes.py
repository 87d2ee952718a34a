"""Builds, tunes and times any index, for both sides of search.py.

Like worker.py it imports nothing of ours, because the peers' environment lacks our packages.
"""

import cProfile
import pstats
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from worker import serve

PROFILED = 6  # functions that a profile names


class Index(Protocol):
    """An index on disk (`bytes` of files) and in memory."""

    bytes: int

    def set(self, **setting) -> None:
        """Changes how it searches from now on."""

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Ids of the k nearest keys of each query, -1 where there is none."""


def serve_indexes(make: Callable[[str, np.ndarray, Path, dict], Index], versions: dict) -> None:
    """Answers `Worker.run(do=..., index=...)` until the input ends; ids found go to FOLDER/found.npy.

    Args:
      make: builds the index of that name over the keys and writes it into a folder; the settings come last.
    """

    def build(settings):
        folder, k = Path(settings["folder"]), settings["k"]
        keys = np.load(folder / "keys.npy")
        queries = {of: np.load(folder / f"{of}.npy") for of in ("tuning", "timed")}
        indexes = {}

        def step(do, index, of="timed", setting=None, count=0):
            if do == "build":
                place = folder / index.replace(" ", "-")
                place.mkdir()
                started = time.perf_counter()
                indexes[index] = make(index, keys, place, settings)
                return {"seconds": time.perf_counter() - started, "bytes": indexes[index].bytes}
            held = indexes[index]
            if setting is not None:
                held.set(**setting)
            if do == "choose":
                return held.choose(queries["tuning"])
            if do == "profile":
                parts = held.parts(queries[of], k) if hasattr(held, "parts") else {}
                return {"functions": profile(lambda: held.search(queries[of], k)), "parts": parts}
            if do == "one by one":
                rows = [queries[of][row : row + 1] for row in range(count)]
                started = time.perf_counter()
                for row in rows:
                    held.search(row, k)
                return {"seconds": time.perf_counter() - started}
            started = time.perf_counter()
            found = held.search(queries[of], k)
            seconds = time.perf_counter() - started
            np.save(folder / "found.npy", found)
            return {"seconds": seconds}

        return {"versions": versions}, step

    serve(build)


def profile(work: Callable[[], object]) -> list[dict]:
    """The functions with the most own time, with their seconds."""
    profiler = cProfile.Profile()
    profiler.runcall(work)
    rows = pstats.Stats(profiler).stats.items()
    spent = sorted(((own, name) for name, (_, _, own, _, _) in rows), reverse=True)[:PROFILED]
    return [{"function": name, "file": Path(file).name, "seconds": own} for own, (file, _, name) in spent]
