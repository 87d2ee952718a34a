"""Checks which index shards hold a key of a routed index, beyond the checksums: see `data_pipeline.database.check_files`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipeline.database.check_files import ALL, Damage
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.search.recall import sample_rows
from data_pipeline.search.stage import open_route
from data_pipeline.search.subset import IDS, Subset
from data_pipeline.stages.run import REPAIR, read_manifest
from retro_jax.core.files import load_array

SAMPLE = 10_000  # keys assigned again


def check_assignment(data: Path, table, *, everything: bool = False) -> Iterator[Damage]:
    """Checks that every searched row is in as many shards as a key has copies, and a sample of them in its own shards.

    Args:
      data: a directory with the stages index and embeddings.
      table: its ChunkTable.
    """
    directory = Path(data) / "index"
    if (route := open_route(directory)) is None:
        return
    manifest = read_manifest(directory, "index", verify=False)
    vectors = EmbeddingTable(Path(data) / "embeddings", verify=False)
    searched = Subset(manifest.config["database_fraction"], table).ids(0, vectors.database_chunks)
    chosen = searched[sample_rows(len(searched), len(searched) if everything else SAMPLE)]
    owners = route.router.owners(vectors[chosen])
    copies = np.zeros(vectors.database_chunks, np.int64)
    for number, name in enumerate(sorted(manifest.counts["shards"])):
        ids = load_array(directory / name / IDS, REPAIR)
        if len(ids) and (ids[0] < 0 or ids[-1] >= len(copies) or (np.diff(ids) <= 0).any()):
            yield Damage("index", name, "its rows are not rows of the database, rising, each once")
            continue
        copies[ids] += 1
        wrong = np.isin(chosen, ids) != (owners == number).any(1)
        for row in chosen[wrong][:1]:
            yield Damage("index", name, f"key {row} is in it, or is not, against its assignment by the router")
    wanted = np.zeros(len(copies), np.int64)
    wanted[searched] = route.router.copies
    for row in np.flatnonzero(copies != wanted)[:1]:
        what = f"key {row} is in {copies[row]} index shards instead of {wanted[row]}"
        yield Damage("index", ALL, what)
