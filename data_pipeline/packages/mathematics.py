"""The Pile's own source of DeepMind mathematics: its generator, run in a process of its own from pinned wheels.

    python -m data_pipeline.packages.mathematics OUTPUT DOCUMENTS WHEEL...

The one package of ours whose code is run, for its text is made by it (Apache-2.0). Wheels are imported as they are, out
of the archives; the same documents come from every machine, so what is made is pinned by a checksum like a download.
"""

import importlib
import itertools
import json
import random
import sys

import numpy as np

PAIRS = 25  # questions and answers in a document


def generate(output: str, documents: int, wheels: list[str]) -> None:
    """Writes that many documents as JSON lines."""
    sys.path[:0] = wheels
    _mend()
    from absl import flags
    from mathematics_dataset import generate as generator
    from mathematics_dataset.util import composition

    serials = itertools.count()  # else sets of these are in the order of their addresses
    composition.Entity.__hash__ = lambda entity: entity.__dict__.setdefault("_serial", next(serials))
    flags.FLAGS(["generate"])
    generator.init_modules()
    modules = generator.filtered_modules["train"]
    names = sorted(modules)
    random.seed(0)
    np.random.seed(0)
    importlib.import_module("sympy.core.random").seed(0)
    with open(output, "w", encoding="utf-8") as file:
        for number in range(documents):
            lines = []
            for pair in range(PAIRS):
                name = names[(number * PAIRS + pair) % len(names)]
                problem, _ = generator.sample_from_module(modules[name])
                lines.append(f"{problem.question}\n{problem.answer}")
            file.write(json.dumps({"text": "\n".join(lines) + "\n"}) + "\n")


class _Array(np.ndarray):
    """An array with the method that NumPy 2 took away."""

    def itemset(self, index, value) -> None:
        self[index] = value


class _NumPy:
    """NumPy as the package knows it: with `np.object`, and arrays with `itemset`."""

    object = object

    def __getattr__(self, name: str):
        return getattr(np, name)

    def empty(self, *arguments, **more):
        return np.empty(*arguments, **more).view(_Array)

    def zeros(self, *arguments, **more):
        return np.zeros(*arguments, **more).view(_Array)


def _mend() -> None:
    """What SymPy, NumPy and Python have moved since 2019; Python 3.12 takes no whole floats in `random.randint`."""
    whole = random.randint
    random.randint = lambda low, high: whole(int(low), int(high))
    diophantine = importlib.import_module("sympy.solvers.diophantine.diophantine")
    importlib.import_module("sympy.solvers.diophantine").base_solution_linear = diophantine.base_solution_linear
    importlib.import_module("mathematics_dataset.sample.polynomials").np = _NumPy()


if __name__ == "__main__":
    generate(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
