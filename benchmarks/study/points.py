"""Reads the points of a finished or unfinished study: bits of every document and chunk, from WORKDIR/points/NAME/scores."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped
from quantities import Expression, Ratio

from retro_jax.core.files import read_json
from retro_jax.evaluate.scores import Scores

SET = "held_out"
NAME = re.compile(r"(?P<point>.+),seed=(?P<seed>\d+)")
REMEDY = "Run `make study` again."


def overlap_between(low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
    """Which chunks count (`Study.bits`): those with an overlap r(C) above `low` and up to `high`."""
    return lambda overlap: (overlap > low + 1e-9) & (overlap <= high + 1e-9)


class Missing(ValueError):
    """What a check needs and the study does not have yet."""


@dataclass(frozen=True)
class Evaluated:
    """D documents and N chunks of one point under every condition."""

    ids: Int[np.ndarray, "D"]
    subsets: Shaped[np.ndarray, "D"]  # names
    bytes: Int[np.ndarray, "D"]
    bits: Mapping[str, Float[np.ndarray, "D"]]
    owners: Int[np.ndarray, "N"]  # document of each chunk
    chunk_bytes: Int[np.ndarray, "N"]
    overlap: Float[np.ndarray, "N"]
    chunk_bits: Mapping[str, Float[np.ndarray, "N"]]


def read_point(workdir: Path, results: Mapping) -> Evaluated:
    """The scores of a point's work directory."""
    places = results["made_from"]["scores"][SET]
    parts = len(list((workdir / "scores" / SET / places["text"]).glob("part-*.parquet")))

    def column(kind: str, name: str) -> np.ndarray:
        scores = Scores(workdir / "scores" / SET / places[kind], parts)
        return np.concatenate([np.asarray(part[name]) for part in scores.each((name,))])

    conditions = [one for one in places if one != "text"]
    return Evaluated(
        column("text", "id"),
        column("text", "subset"),
        column("text", "bytes"),
        {name: column(name, "bits") for name in conditions},
        np.repeat(np.arange(len(column("text", "id"))), column("text", "chunks")),
        column("text", "chunk_bytes"),
        column("text", "chunk_overlap"),
        {name: column(name, "chunk_bits") for name in conditions},
    )


class Study:
    """The points of WORKDIR.

    Attributes:
      results: results.json by point and seed.
      probes: columns of the token probe by point and seed (probe.py).
    """

    def __init__(self, workdir: Path, probes: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]] | None = None):
        self.workdir, self.probes = Path(workdir), probes or {}
        self.results: dict[str, dict[int, dict]] = {}
        for path in sorted((self.workdir / "points").glob("*/results.json")):
            if named := NAME.fullmatch(path.parent.name):
                found = read_json(path, REMEDY, keys=("made_from", "sets"))
                self.results.setdefault(named["point"], {})[int(named["seed"])] = found
        self.point = cache(self._point)

    def _point(self, name: str, seed: int) -> Evaluated:
        return read_point(self.workdir / "points" / f"{name},seed={seed}", self.results[name][seed])

    def seeds(self, name: str) -> list[int]:
        """Those with results.

        Raises:
          Missing: none.
        """
        if name not in self.results:
            raise Missing(f"the point {name}")
        return sorted(self.results[name])

    def bits(
        self, name: str, condition: str, subset: str = "", where: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Expression:
        """Bits per byte of a point under a condition.

        Args:
          subset: "" is all of them.
          where: which chunks count, of their overlap r(C); None: all.

        Raises:
          Missing: no seed of the point is finished, or it was not evaluated under the condition.
        """
        found = {seed: self.point(name, seed) for seed in self.seeds(name)}
        first = next(iter(found.values()))
        if any(condition not in one.bits for one in found.values()):
            raise Missing(f"{name} under the condition {condition!r}")
        kept = first.subsets == subset if subset else np.ones(len(first.ids), bool)
        if where is None:
            bits = {seed: one.bits[condition][kept] for seed, one in found.items()}
            return Expression((Ratio(1.0, first.ids[kept], bits, first.bytes[kept]),))
        chosen, count = where(first.overlap), len(first.ids)

        def by_document(values: np.ndarray) -> np.ndarray:
            return np.bincount(first.owners[chosen], values[chosen], count)[kept]

        bits = {seed: by_document(one.chunk_bits[condition]) for seed, one in found.items()}
        return Expression((Ratio(1.0, first.ids[kept], bits, by_document(first.chunk_bytes)),))

    def probe(self, name: str, column: str, per: str, subset: str = "") -> Expression:
        """A column of the token probe over another one.

        Raises:
          Missing: the point was not probed.
        """
        if not self.probes.get(name):
            raise Missing(f"the token probe of {name}")
        found = self.probes[name]
        first = next(iter(found.values()))
        kept = first["subset"] == subset if subset else np.ones(len(first["id"]), bool)
        bits = {seed: np.asarray(columns[column])[kept] for seed, columns in found.items()}
        return Expression((Ratio(1.0, first["id"][kept], bits, np.asarray(first[per])[kept]),))
