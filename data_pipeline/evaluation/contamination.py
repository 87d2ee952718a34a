"""Contamination: which documents of an evaluation set occur in training documents.

A stage of each set; the comparison is exact and takes one pass:

    contamination.npy      a record for each document of the set: its highest containment and Jaccard index in one
                           training document, its longest run of words in one, and the ids of these training
                           documents (-1: none)
    training.npy           a record for each training document that shares a gram: its id, and the highest
                           containment of a document of the set in it
    histograms.json        documents of the set by containment, Jaccard index, and words of the longest run

Containment is the share of a document's distinct 13-grams of words that one training document contains. Runs have 13
words or more. MinHash signatures would miss a short text within a long one: its Jaccard index is small.
Contaminated documents can be left out of the scores (`StoredSet.contaminated`), or the training documents that contain
them can be left out of the database (`StoredSet.overlapping_documents`).
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from data_pipeline.database.changed import addition_directories
from data_pipeline.documents.stage import DocumentTable, read_documents_manifest, read_records
from data_pipeline.evaluation.overlap_index import OverlapIndex
from data_pipeline.evaluation.tables import Tables
from data_pipeline.stages.engine import Resource, Shard
from data_pipeline.stages.run import REPAIR, Manifest, StageError, read_manifest, run_stage
from retro_jax.core.files import load_array
from retro_jax.core.progress import progress
from retro_jax.data.manifests import database_of, has_other_database

STAGE = "contamination"
DOCUMENTS, TRAINING, HISTOGRAMS = "contamination.npy", "training.npy", "histograms.json"
SHARD_BYTES, SHARDS = 1 << 25, 64  # of training text in a shard, at least; shards at most
SHOWN = 0.8  # containment from which a document counts as contaminated
EDGES = {
    "containment": [number / 10 for number in range(11)],
    "jaccard": [number / 10 for number in range(11)],
    "run": [0, 13, 26, 52, 104, 208, 416, 832],
}
VALUES = (("containment", "<f8", "containment_id"), ("jaccard", "<f8", "jaccard_id"), ("run", "<i8", "run_id"))
RECORD = np.dtype([*((name, kind) for name, kind, _ in VALUES), *((id, "<i8") for _, _, id in VALUES)])
HELD = np.dtype([("id", "<i8"), ("containment", "<f8")])


def contamination_directories(tables: Tables) -> list[tuple[Path, Path]]:
    """(stage, documents) of the build and of each addition; of another database that the build searches, too."""
    places = {"": tables.data}
    if has_other_database(tables.data):
        places["-of-database"] = database_of(tables.data)
    found = []
    for name, data in places.items():
        found.append((tables.directory / f"{STAGE}{name}", data / "documents"))
        for path in addition_directories(data):
            found.append((tables.directory / f"{STAGE}{name}-of-addition-{path.name}", path / "documents"))
    return found


def build_contamination(tables: Tables) -> list[Manifest]:
    """Compares a set with all training documents, additions included; makes what is missing."""
    return [_build(directory, tables, documents) for directory, documents in contamination_directories(tables)]


def _build(directory: Path, tables: Tables, training: Path) -> Manifest:
    source = read_documents_manifest(training)
    inputs = {"chunks": tables.chunks.fingerprint, "training documents": source.fingerprint}
    table, count = DocumentTable(training), sum(s["train"]["documents"] for s in source.counts["subsets"].values())
    opener = partial(_open_index, tables.base / "documents", tables.first_document)
    held = Resource("13-grams of the set", opener, bytes=6 * int(tables.documents.bytes[tables.first_document :].sum()))
    shards = []
    for number, (start, stop) in enumerate(_ranges(table.bytes[:count])):
        files = [f"part-{number:05d}.{name}" for name in (DOCUMENTS, TRAINING)]
        shards.append(Shard(f"part-{number:05d}", files, partial(_compare, files, table.lines(start, stop)), held))
    last = Shard(
        "all", [DOCUMENTS, TRAINING, HISTOGRAMS], partial(_merge, directory, [shard.files for shard in shards])
    )
    return run_stage(directory, STAGE, {"gram": 13, "set": tables.name}, inputs, shards, last=last)


def _ranges(sizes: Int64[np.ndarray, "D"]) -> list[tuple[int, int]]:
    """Ranges of documents of about equal bytes: as many as SHARD_BYTES wants, SHARDS at most."""
    total = int(sizes.sum())
    parts = max(1, min(SHARDS, -(-total // SHARD_BYTES), len(sizes)))
    edges = np.searchsorted(np.cumsum(sizes), np.arange(1, parts) * total // parts)
    cuts = [0, *np.unique(edges).tolist(), len(sizes)]
    return [(start, stop) for start, stop in zip(cuts[:-1], cuts[1:], strict=True) if start < stop]


def _open_index(documents: Path, first: int) -> tuple[OverlapIndex, dict[str, int]]:
    """The index of a set's texts, and how many of its documents have a text of each checksum."""
    copies: dict[str, int] = {}

    def texts():
        for record in read_records(DocumentTable(documents).lines(first)):
            copies[record["sha256"]] = copies.get(record["sha256"], 0) + bool(record["text"].strip())
            yield record["text"]

    return OverlapIndex(texts()), copies


def _compare(files: Sequence[str], lines: Sequence, temporary: Path, opened) -> dict:
    index, copies = opened
    best, longest, held, same = _nothing(len(index)), np.zeros(len(index), np.int64), [], 0
    for record in progress(read_records(lines), description="contamination", unit="document"):
        same += copies.get(record["sha256"], 0)
        shared = index.compare(record["text"], longest)
        if not len(shared.documents):
            continue
        held.append((record["id"], shared.containment.max()))
        for (name, _, id), values in zip(VALUES, (shared.containment, shared.jaccard, shared.runs), strict=True):
            better = values > best[name][shared.documents]
            rows = shared.documents[better]
            best[name][rows], best[id][rows] = values[better], record["id"]
    np.save(temporary / files[0], best)
    np.save(temporary / files[1], np.array(held, HELD))
    return {"training_documents": sum(count for _, _, count in lines), "copies": same}


def _nothing(count: int) -> np.ndarray:
    best = np.zeros(count, RECORD)
    for _, _, id in VALUES:
        best[id] = -1
    return best


def _merge(directory: Path, parts: Sequence[Sequence[str]], temporary: Path) -> dict:
    """Merges the parts: the highest values of each document, and the histograms."""
    best, held = None, []
    for files in parts:
        found = load_array(directory / files[0], REPAIR)
        held.append(load_array(directory / files[1], REPAIR))
        best = found if best is None else best_of(best, found)
    np.save(temporary / DOCUMENTS, best)
    np.save(temporary / TRAINING, np.concatenate(held))
    (temporary / HISTOGRAMS).write_text(json.dumps(histograms(best), indent=1) + "\n", encoding="utf-8")
    return {"documents": len(best), "contaminated": int((best["containment"] >= SHOWN).sum())}


def best_of(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The larger of each value, with its training document; on ties that of `one`."""
    best = one.copy()
    for name, _, id in VALUES:
        better = other[name] > one[name]
        best[name][better], best[id][better] = other[name][better], other[id][better]
    return best


def histograms(best: np.ndarray) -> dict:
    """{value: {"edges", "documents"}}: bin i holds edges[i] <= value < edges[i + 1], the last one all from its edge on."""
    found = {}
    for name, edges in EDGES.items():
        # Rounded, so that 3 of 10 grams fall on the edge 0.3 and not below it.
        bins = np.searchsorted(np.asarray(edges), np.round(best[name], 12), side="right") - 1
        found[name] = {"edges": edges, "documents": np.bincount(bins, minlength=len(edges)).tolist()}
    return found


def read_contamination(tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    """(RECORD [D], HELD) of the set's documents and of the training documents, additions included.

    Raises:
      StageError: a stage is missing; the message has the command that makes it.
    """
    best, held = None, []
    for directory, documents in contamination_directories(tables):
        made = (directory / "manifest.json").exists() and read_manifest(directory, STAGE, verify=False)
        if not made or made.inputs["training documents"] != read_documents_manifest(documents).fingerprint:
            workdir = tables.data.parent if tables.data.name == "data" else "RUN"
            raise StageError(
                f"The set {tables.name!r} was not compared with the training documents {documents}. Compare it: retro join "
                f"--workdir={workdir} --set={tables.name}"
            )
        found = load_array(directory / DOCUMENTS, REPAIR)
        best = found if best is None else best_of(best, found)
        held.append(load_array(directory / TRAINING, REPAIR))
    return best, np.concatenate(held)


def overlap_counts(tables: Tables) -> dict[str, int]:
    """How many documents of a set are contaminated, and how many are identical to training documents."""
    made = [read_manifest(directory, STAGE, verify=False) for directory, _ in contamination_directories(tables)]
    return {
        "contaminated": int(contaminated(tables, SHOWN).sum()),
        "copies": max(manifest.counts["copies"] for manifest in made),
    }


def contaminated(tables: Tables, threshold: float) -> Bool[np.ndarray, "D"]:
    """Which documents have at least this share of their 13-grams in one training document."""
    check_threshold(threshold)
    return read_contamination(tables)[0]["containment"] >= threshold


def overlapping_documents(tables: Tables, threshold: float) -> frozenset[int]:
    """Ids of the training documents that contain at least this share of the 13-grams of a document of the set."""
    check_threshold(threshold)
    held = read_contamination(tables)[1]
    return frozenset(held["id"][held["containment"] >= threshold].tolist())


def check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"A threshold of containment must lie in (0, 1], but is {threshold}; 0.8 is usual.")
