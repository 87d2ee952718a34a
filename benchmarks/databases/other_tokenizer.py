"""What reading a database of another tokenizer costs: CPU time of one neighbor's text and of one joined sequence.

    python benchmarks/databases/other_tokenizer.py BUILD/data    # a build with config.data.database, of its chunk length

Compared with the same neighbors as tokens of the database, which a build of its tokenizer reads. Prints JSON.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from data_pipeline.chunks import ChunkTable
from data_pipeline.database.copies import Copies
from data_pipeline.database.database import Database
from data_pipeline.database.other_build import lengths
from data_pipeline.database.searched import open_database
from data_pipeline.joined import build_joined
from data_pipeline.search.neighbors import NeighborTable
from data_pipeline.stages.run import read_manifest

NEIGHBORS, AT_ONCE = 20_000, 320  # about those of a sequence


def cpu_seconds(work) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def values(database: Database, ids: np.ndarray) -> float:
    """CPU seconds a neighbor."""

    def read():
        for start in range(0, len(ids), AT_ONCE):
            database.value(ids[start : start + AT_ONCE])

    return cpu_seconds(read) / len(ids)


def joined(data: Path, database: Database, vocabulary: int) -> float:
    """CPU seconds a sequence of the stage joined."""
    config = read_manifest(data / "joined", "joined", verify=False).config
    with tempfile.TemporaryDirectory() as folder:
        made = []
        seconds = cpu_seconds(
            lambda: made.append(
                build_joined(
                    Path(folder),
                    ChunkTable(data / "chunks"),
                    NeighborTable(data / "neighbors"),
                    sequence_length=config["sequence_length"],
                    vocabulary=vocabulary,
                    shard_sequences=config["shard_sequences"],
                    inputs={},
                    database=database.text,
                    copies=Copies(data / "copies"),
                )
            )
        )
        return seconds / sum(made[0].counts["sequences"].values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    here = open_database(data)
    there = Database(here.data)
    if here.text.tokens.shape != there.text.tokens.shape:
        parser.error(
            f"{data} and its database have chunks of {here.text.tokens.shape[1]} and {there.text.tokens.shape[1]} tokens."
        )
    found = np.asarray(NeighborTable(data / "neighbors").ids[:]).reshape(-1)
    ids = np.random.default_rng(0).choice(found[found >= 0], NEIGHBORS)
    vocabulary = max(
        read_manifest(place / "tokenizer", "tokenizer").counts["vocabulary"] for place in (data, here.data)
    )
    facts = {
        "neighbor_microseconds": {"as stored": 1e6 * values(there, ids), "tokenized again": 1e6 * values(here, ids)},
        "sequence_milliseconds": {
            "as stored": 1e3 * joined(data, there, vocabulary),
            "tokenized again": 1e3 * joined(data, here, vocabulary),
        },
        "sample": dict(lengths(here)),
    }
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
