"""Checks of what a finished database holds, beyond its checksums: see `data_pipeline.verification`.

Every check goes over the rows once, block by block, and gives damages; none changes anything.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipeline.bert import FrozenEncoder
from data_pipeline.chunks import ChunkTable
from data_pipeline.documents import PART
from data_pipeline.embeddings import EmbeddingTable
from data_pipeline.manifests import read_manifest
from data_pipeline.neighbors import NeighborTable, find_neighbors
from data_pipeline.recall import sample_rows
from data_pipeline.search import ExactSearcher, PlacedSearcher, paired_distances
from data_pipeline.subset import Subset
from data_pipeline.tokens import Tokenizer
from data_pipeline.verification import Damage
from retro_jax.dimensions import PADDING
from retro_jax.progress import progress

ROWS = 8192  # looked at together
SAMPLE = 200  # queries searched exactly
EMBEDDED = 64  # chunks embedded again
LEAST_COSINE = 0.999  # with what was stored: other hardware rounds otherwise, float16 keeps 3 digits
SLACK = 0.02  # of recall, beside 4 standard errors


def check_content(data: Path, encoder: FrozenEncoder) -> tuple[list[Damage], dict]:
    """All checks of a build whose files are whole.

    Returns:
      Damages, and what was looked at: numbers for the report.
    """
    table = ChunkTable(data / "chunks")
    vectors = EmbeddingTable(data / "embeddings", verify=False)
    neighbors = NeighborTable(data / "neighbors", verify=False)
    digests = []
    damages = list(_check_chunks(data, table, digests))
    damages += _check_embeddings(data, table, vectors, encoder)
    facts = {"chunks": len(table), "embedded_again": EMBEDDED}
    if damages:
        return damages, facts
    digest_of = np.repeat(np.array(digests), np.diff([*_first_rows(table), len(table)]))
    damages += _check_neighbors(table, vectors, neighbors, digest_of)
    found, exact = _check_search(data, table, vectors, neighbors)
    return damages + found, facts | {"neighbors": int((neighbors.ids[:] != PADDING).sum()), **exact}


def _first_rows(table: ChunkTable) -> np.ndarray:
    ids = np.asarray(table.document_ids[:])
    return np.flatnonzero(np.diff(ids, prepend=~ids[:1]))


def _shard(table: ChunkTable, stage: str, row: int) -> str:
    return f"{stage}-{int(np.searchsorted(np.cumsum(table.shard_rows), row, side='right')):05d}"


def _check_chunks(data: Path, table: ChunkTable, digests: list[str]) -> Iterator[Damage]:
    """Every document's rows, read one after the other, are its text, and its rows stand together under its id.

    So the row after a chunk in its document is the true next chunk, which `ChunkTable.value` is checked to give.

    Args:
      digests: the SHA-256 of every document's text is appended here.
    """
    reader, first = Tokenizer(data / "tokenizer"), _first_rows(table)
    ends = np.append(first[1:], len(table))
    with open(data / "documents" / PART, encoding="utf-8") as file:
        documents = progress(file, description="verify text", total=len(first), unit="document")
        for number, line in enumerate(documents):
            record = json.loads(line)
            digests.append(record["sha256"])
            if number >= len(first):
                yield Damage("chunks", "*", f"document {record['id']} has no chunk")
                continue
            start, end = int(first[number]), int(ends[number])
            rows = table.tokens[start:end]
            flat = rows.reshape(-1)
            tokens = flat[flat != PADDING]
            shard = _shard(table, "chunks", start)
            if (table.document_ids[start:end] != record["id"]).any() or (start < table.database_chunks) != (
                record["split"] == "train"
            ):
                yield Damage("chunks", shard, f"row {start} is not of document {record['id']} ({record['split']})")
            elif (flat[: len(tokens)] == PADDING).any() or tokens[0] != reader.bos or tokens[-1] != reader.eos:
                yield Damage("chunks", shard, f"rows {start} to {end - 1} are not one document from BOS to EOS")
            elif reader.decode(tokens) != record["text"]:
                yield Damage("chunks", shard, f"rows {start} to {end - 1} are not the text of document {record['id']}")
            else:
                following = np.full_like(rows, PADDING)
                following[:-1] = rows[1:]
                if not np.array_equal(table.value(np.arange(start, end)), np.concatenate([rows, following], axis=1)):
                    yield Damage("chunks", shard, f"a continuation in rows {start} to {end - 1} is not the next chunk")


def _check_embeddings(
    data: Path, table: ChunkTable, vectors: EmbeddingTable, encoder: FrozenEncoder
) -> Iterator[Damage]:
    """A sample of chunks embedded again."""
    reader, rows = Tokenizer(data / "tokenizer"), sample_rows(len(table), EMBEDDED)
    tokens = table.tokens[rows]
    again = encoder.embed([reader.decode(row[row != PADDING]) for row in tokens], description="verify embeddings")
    stored = vectors[rows]
    norms = np.linalg.norm(again, axis=1) * np.linalg.norm(stored, axis=1)
    cosines = np.einsum("ne,ne->n", again, stored) / np.maximum(norms, 1e-12)
    for row, cosine in zip(rows.tolist(), cosines.tolist(), strict=True):
        if not cosine >= LEAST_COSINE:
            yield Damage(
                "embeddings", _shard(table, "embeddings", row), f"row {row} has cosine {cosine:.4f} with its chunk"
            )


def _check_neighbors(
    table: ChunkTable, vectors: EmbeddingTable, neighbors: NeighborTable, digests: np.ndarray
) -> Iterator[Damage]:
    """Every stored neighbor: in the database, of another document by id and by text, nearest first, at its distance."""
    documents = np.asarray(table.document_ids[:])
    starts = range(0, len(table), ROWS)
    for start in progress(starts, description="verify neighbors", unit="block"):
        block = slice(start, min(start + ROWS, len(table)))
        ids, distances = neighbors.ids[block], neighbors.distances[block]
        rows, columns = np.nonzero(ids != PADDING)
        found, own = ids[rows, columns], rows + start
        wrong = {"a neighbor outside the database": (found < 0) | (found >= table.database_chunks)}
        found = np.clip(found, 0, table.database_chunks - 1)
        wrong["a neighbor of the query's own document"] = documents[found] == documents[own]
        wrong["a neighbor from a document of the query's text"] = digests[found] == digests[own]
        queries, keys = vectors[np.arange(block.start, block.stop)], vectors[found]
        measured = paired_distances(queries, rows, keys, np.arange(len(found)))
        wrong["a distance that is not that of the vectors"] = ~np.isclose(
            distances[rows, columns], measured, rtol=1e-4, atol=1e-5
        )
        for what, bad in wrong.items():
            for row in np.unique(own[bad])[:1]:
                yield Damage("neighbors", _shard(table, "neighbors", row), f"row {row} has {what}")
        sorted_rows = _in_order(ids, distances, by_distance=neighbors.rerank == "none")
        for row in np.flatnonzero(~sorted_rows)[:1] + start:
            yield Damage("neighbors", _shard(table, "neighbors", row), f"row {row} is not nearest first, each id once")


def _in_order(ids, distances, *, by_distance: bool) -> np.ndarray:
    """Bool [N]: distances rise, equals by rising id (by_distance); no id twice, what is missing last and at +inf."""
    there = ids != PADDING
    if not np.array_equal(np.isfinite(distances), there):
        return (np.isfinite(distances) == there).all(axis=1)
    finite = np.where(there, distances, np.float32(np.finfo(np.float32).max))
    step, ties = np.diff(finite, axis=1), np.diff(ids, axis=1) > 0
    good = (step > 0) | ((step == 0) & (ties | ~there[:, 1:])) | (not by_distance)
    ordered = np.sort(np.where(there, ids, -1 - np.arange(ids.shape[1])), axis=1)
    return (good & (there[:, :-1] | ~there[:, 1:])).all(axis=1) & (np.diff(ordered, axis=1) > 0).all(axis=1)


def _check_search(
    data: Path, table: ChunkTable, vectors: EmbeddingTable, neighbors: NeighborTable
) -> tuple[list[Damage], dict]:
    """A sample of queries against exact search: equal ids where the index is exact, its recall where it is not."""
    index = read_manifest(data / "index", "index", verify=False)
    if neighbors.rerank != "none":
        return [], {"queries_searched": 0}  # chosen by their words among more candidates than are stored
    rows, k = sample_rows(len(table), SAMPLE), neighbors.ids.shape[1]
    documents = np.asarray(table.document_ids[:])
    searched = Subset(index.config["database_fraction"], table).ids(0, table.database_chunks)
    exact = PlacedSearcher(ExactSearcher(vectors[searched]), searched)
    ids, distances = find_neighbors(exact, vectors[rows], documents[rows], documents, k)
    there = ids != PADDING
    farthest = np.where(there, distances, -np.inf).max(axis=1, initial=-np.inf)
    hits = (neighbors.ids[rows] != PADDING) & (neighbors.distances[rows] <= farthest[:, None] + 1e-5)
    recall = float(hits.sum() / max(1, there.sum()))
    promised = index.counts["recall"]["value"]
    facts = {"queries_searched": len(rows), "recall": recall, "recall_promised": promised}
    if index.counts["kind"] == "exact":
        return [
            Damage("neighbors", _shard(table, "neighbors", row), f"row {row} has other neighbors than exact search")
            for row in rows[(ids != neighbors.ids[rows]).any(axis=1)].tolist()
        ], facts
    least = promised - 4 * np.sqrt(promised * (1 - promised) / max(1, there.sum())) - SLACK
    if recall < least:
        worst = rows[hits.sum(axis=1).argmin()]
        what = (
            f"recall@{k} is {recall:.3f} on a sample, but the index promises {promised:.3f}; row {worst} is the worst"
        )
        return [Damage("neighbors", _shard(table, "neighbors", int(worst)), what)], facts
    return [], facts
