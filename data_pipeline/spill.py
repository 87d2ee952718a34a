"""What reading leaves for selection: the lines of a unit's documents, a row of facts each, and their signatures.

Written and read in order, with one document in memory; a document is found again by its row over all units.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt32

from data_pipeline.selection import FACT

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
        self._paths[3].write_text(json.dumps(list(self._subsets)))

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
    """All units together.

    Attributes:
      facts: FACT [D], in the order read; `subset` is a number of `subsets`.
      subsets: names.
    """

    def __init__(self, directory: Path, stems: Sequence[str]):
        self._paths = [[Path(directory) / name for name in SpillWriter.files(stem)] for stem in stems]
        parts, names = [], []
        for _, facts, _, subsets in self._paths:
            part = np.fromfile(facts, FACT)
            local = json.loads(subsets.read_text())
            names += [name for name in local if name not in names]
            part["subset"] = np.array([names.index(name) for name in local], np.uint32)[part["subset"]]
            parts.append(part)
        self.subsets: list[str] = names
        self.facts = np.concatenate(parts) if parts else np.zeros(0, FACT)
        self._first = np.cumsum([0, *map(len, parts)])
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
        """Of a document: id, subset and name."""
        record = self._record(row)
        return {key: record[key] for key in ("id", "subset", "name")}

    def describe(self, row: int) -> str:
        facts = self.facts_of(row)
        return f"{facts['name']!r} of subset {facts['subset']!r}"

    def signatures(self, permutations: int) -> UInt32[np.ndarray, "D P"]:
        """In memory one unit at a time where there is one unit; rows of several are put together."""
        parts = [
            np.memmap(paths[2], np.uint32, "r").reshape(-1, permutations)
            for paths in self._paths
            if paths[2].stat().st_size
        ]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.zeros((0, permutations), np.uint32)

    def copy(self, rows: Int[np.ndarray, "K"], path: Path) -> Int[np.ndarray, "K 2"]:
        """Writes the lines of the rows in that order.

        Units are read front to back, each once; every line goes to its place in the output.

        Returns:
          where each line begins, and the bytes of its text.
        """
        lengths = self.facts["length"][rows]
        places = np.cumsum(lengths) - lengths
        place = np.full(len(self.facts), -1, np.int64)
        place[rows] = places
        with open(path, "wb") as output:
            for unit, paths in enumerate(self._paths):
                first, last = self._first[unit : unit + 2].tolist()
                with open(paths[0], "rb", BLOCK) as lines:
                    for row in range(first, last):
                        line = lines.read(int(self.facts["length"][row]))
                        if place[row] >= 0:
                            output.seek(int(place[row]))
                            output.write(line)
        return np.stack([places, self.facts["bytes"][rows]], axis=1)
