"""The stage copies: documents of a build whose text is also in the database of another build that it searches.

    copies.npy    int64 [P, 2]: the ids, here and there, of documents of one text under two ids; rising

A chunk has no neighbor of its own document. Within a build a text is there once, so the document's id decides. Another
database (config.data.database) may hold the same text in another subset or under another name, and so under another id;
with additions also under several, of which all but one are removed.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from data_pipeline.database.changed import addition_directories
from data_pipeline.documents.stage import DocumentTable, read_documents_manifest, read_records
from data_pipeline.stages.engine import Resource, Shard
from data_pipeline.stages.run import REPAIR, Manifest, read_manifest, run_stage
from retro_jax.core.dimensions import PADDING
from retro_jax.core.files import load_array
from retro_jax.core.progress import progress

STAGE, FILE = "copies", "copies.npy"


def build_copies(directory: Path, documents: Path, database: Path) -> Manifest:
    """Compares the checksums of all texts.

    Args:
      documents: directory of the build's documents.
      database: the data directory of the other build; its additions are read too.
    """
    inputs, shards = {"documents": read_documents_manifest(documents).fingerprint}, []
    held = Resource("checksums of the build's documents", partial(_ids_by_text, Path(documents)))
    for number, folder in enumerate([Path(database), *addition_directories(database)]):
        source = read_documents_manifest(folder / "documents")
        inputs["documents of the database" if not number else f"documents of addition {number}"] = source.fingerprint
        count = sum(subset["train"]["documents"] for subset in source.counts["subsets"].values())
        for lines in DocumentTable(folder / "documents").lines(0, count):
            name = f"part-{len(shards):05d}"
            shards.append(Shard(name, [f"{name}.npy"], partial(_find, name, [lines]), held))
    last = Shard("all", [FILE], partial(_merge, Path(directory), [shard.files[0] for shard in shards]))
    return run_stage(directory, STAGE, {}, inputs, shards, last=last)


def _ids_by_text(documents: Path) -> dict[bytes, int]:
    return {_key(record): record["id"] for record in DocumentTable(documents).records()}


def _key(record: dict) -> bytes:
    return bytes.fromhex(record["sha256"])[:16]


def _find(name: str, lines: Sequence, temporary: Path, mine: dict[bytes, int]) -> dict:
    pairs, both = [], 0
    for record in progress(read_records(lines), description="copies", unit="document"):
        own = mine.get(_key(record))
        both += own is not None
        if own not in (None, record["id"]):
            pairs.append((own, record["id"]))
    np.save(temporary / f"{name}.npy", np.array(pairs, np.int64).reshape(-1, 2))
    return {"documents": sum(count for _, _, count in lines), "in_both": both}


def _merge(directory: Path, parts: Sequence[str], temporary: Path) -> dict:
    pairs = np.concatenate([load_array(directory / part, REPAIR) for part in parts])
    np.save(temporary / FILE, pairs[np.lexsort(pairs.T[::-1])])
    return {}


class Copies:
    """A finished stage: the id that a document of the build has in the other database. It pickles as its path.

    Attributes:
      fingerprint: of the stage's manifest.
    """

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        self.fingerprint = read_manifest(directory, STAGE).fingerprint
        self._own, self._there = load_array(self.directory / FILE, REPAIR).T

    def __reduce__(self):
        return Copies, (self.directory,)

    def own(self, documents: Int64[np.ndarray, "N"]) -> Int64[np.ndarray, "N P"]:
        """The ids that each document of the build may have in the other database: its own, then those of its copies (or -1)."""
        first, last = (np.searchsorted(self._own, documents, side) for side in ("left", "right"))
        places = first[:, None] + np.arange(max(1, int((last - first).max(initial=0))))
        there = places < last[:, None]
        copies = np.full(places.shape, PADDING, np.int64)
        copies[there] = self._there[places[there]]
        return np.concatenate([documents[:, None], copies], axis=1)
