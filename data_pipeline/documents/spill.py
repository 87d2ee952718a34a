"""The files between reading and selection: the lines of a unit's documents, their metadata rows and signatures.

Written and read in order, with one document in memory; a document is found again by its row over all units.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt32

from data_pipeline.documents.selection import FACT
from retro_jax.core.files import read_json

BLOCK = 1 << 22


class SpillWriter:
    """`with SpillWriter(directory, stem) as writer: writer.add(...)`: the four files of one unit."""

    @staticmethod
    def files(stem: str) -> list[str]:
        return [f"{stem}.{ending}" for ending in ("jsonl", "facts", "signatures", "subsets.json")]

    def __init__(self, directory: Path, stem: str):
        self._paths = [Path(directory) / name for name in self.files(stem)]
        self._subsets: dict[str, int] = {}

    def __enter__(self) -> "SpillWriter":
        self._lines, self._facts, self._signatures = (open(path, "wb") for path in self._paths[:3])
        return self

    def __exit__(self, kind, value, traceback) -> None:
        for file in (self._lines, self._facts, self._signatures):
            file.close()
        self._paths[3].write_text(json.dumps(list(self._subsets)), encoding="utf-8")

    def add(self, line: bytes, subset: str, signature: UInt32[np.ndarray, "P"] | None, **facts) -> None:
        fact = np.zeros((), FACT)
        for name, value in facts.items():
            fact[name] = value
        fact["length"] = len(line)
        fact["subset"] = self._subsets.setdefault(subset, len(self._subsets))
        self._lines.write(line)
        self._facts.write(fact.tobytes())
        if signature is not None:
            self._signatures.write(signature.tobytes())


class Spill:
    """The files of all units, read as one.

    Attributes:
      facts: FACT [D], in the order read; `subset` is a number of `subsets`.
      subsets: names.
    """

    def __init__(self, directory: Path, stems: Sequence[str]):
        self._paths = [[Path(directory) / name for name in SpillWriter.files(stem)] for stem in stems]
        sizes = [paths[1].stat().st_size // FACT.itemsize for paths in self._paths]
        self.subsets: list[str] = []
        self.facts = np.empty(sum(sizes), FACT)
        self._first = np.cumsum([0, *sizes])
        for (_, facts, _, subsets), start, stop in zip(self._paths, self._first[:-1], self._first[1:], strict=True):
            part = np.fromfile(facts, FACT)
            local = read_json(subsets, "Run the same `retro build` again: it reads that unit again.", kind=list)
            self.subsets += [name for name in local if name not in self.subsets]
            part["subset"] = np.array([self.subsets.index(name) for name in local], np.uint32)[part["subset"]]
            self.facts[start:stop] = part
        # Each line's place in the file of its unit.
        ends = np.cumsum(self.facts["length"])
        starts = ends - self.facts["length"]
        self._offsets = (
            starts - np.repeat(starts[np.minimum(self._first[:-1], len(starts) - 1)], np.diff(self._first))
            if len(ends)
            else ends
        )

    def _record(self, row: int) -> dict:
        unit = int(np.searchsorted(self._first, row, side="right")) - 1
        with open(self._paths[unit][0], "rb") as file:
            file.seek(int(self._offsets[row]))
            return json.loads(file.read(int(self.facts["length"][row])))

    def text(self, row: int) -> str:
        return self._record(row)["text"]

    def facts_of(self, row: int) -> dict:
        """Describes a document: id, subset and name."""
        record = self._record(row)
        return {key: record[key] for key in ("id", "subset", "name")}

    def describe(self, row: int) -> str:
        facts = self.facts_of(row)
        return f"{facts['name']!r} of subset {facts['subset']!r}"

    def signatures(self, permutations: int, scratch: Path) -> UInt32[np.ndarray, "D P"]:
        """Mapped into memory; those of several units are put together in a file of the folder `scratch`."""
        path = Path(scratch) / "signatures"
        with open(path, "wb") as output:
            for paths in self._paths:
                with open(paths[2], "rb") as part:
                    shutil.copyfileobj(part, output, BLOCK)
        if not path.stat().st_size:
            return np.zeros((0, permutations), np.uint32)
        return np.memmap(path, np.uint32, "r").reshape(-1, permutations)

    def places(self, rows: Int[np.ndarray, "K"]) -> Int[np.ndarray, "K 4"]:
        """Of each row: its unit, where its line begins in that unit's file, the line's bytes, the bytes of its text."""
        units = np.searchsorted(self._first, rows, side="right") - 1
        return np.stack([units, self._offsets[rows], self.facts["length"][rows], self.facts["bytes"][rows]], axis=1)


def copy_lines(directory: Path, places: Int[np.ndarray, "K 3"], path: Path) -> None:
    """Writes lines, each by (unit, where it begins, bytes), one behind the other; units are read front to back."""
    units, starts, lengths = places.T
    targets = np.cumsum(lengths) - lengths
    with open(path, "wb") as output:
        for unit in np.unique(units).tolist():
            rows = np.flatnonzero(units == unit)
            with open(Path(directory) / SpillWriter.files(f"{unit:05d}")[0], "rb") as lines:
                for row in rows[np.argsort(starts[rows])].tolist():
                    lines.seek(int(starts[row]))
                    output.seek(int(targets[row]))
                    output.write(lines.read(int(lengths[row])))
