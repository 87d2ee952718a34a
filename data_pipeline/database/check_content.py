"""Checks the content of a finished database, beyond its checksums: see `data_pipeline.database.check_files`.

Every check goes over the rows once, block by block, and returns damages; none changes anything. Embedding, exact search
and reading the joined shards take as long as the build did, so by default they check a sample or are skipped.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from data_pipeline.chunks import ChunkTable
from data_pipeline.database.changed import addition_directories
from data_pipeline.database.check_assignment import check_assignment
from data_pipeline.database.check_files import Damage
from data_pipeline.database.copies import STAGE as COPIES
from data_pipeline.database.copies import Copies
from data_pipeline.database.other_build import searched_before
from data_pipeline.database.searched import View, open_database, rows_in_view
from data_pipeline.documents.stage import DocumentTable
from data_pipeline.encoder.bert import FrozenEncoder
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.search.chunk_search import find_neighbors
from data_pipeline.search.exact import ExactSearcher, PlacedSearcher, paired_distances
from data_pipeline.search.neighbors import NeighborTable
from data_pipeline.search.recall import sample_rows
from data_pipeline.search.subset import Subset
from data_pipeline.stages.run import read_manifest
from data_pipeline.tokens import Tokenizer
from retro_jax.core.dimensions import PADDING
from retro_jax.core.progress import progress
from retro_jax.data.joined import NAME, open_split, pack
from retro_jax.data.manifests import has_other_database

ROWS, QUERIES = 8192, 1024  # looked at, searched together
SAMPLE = 200  # queries searched exactly
EMBEDDED = 64  # chunks embedded again
LEAST_COSINE = 0.999  # with the stored vector: other hardware rounds differently, float16 keeps 3 digits
SLACK = 0.02  # of recall, beside 4 standard errors


def check_content(data: Path, encoder: FrozenEncoder, *, everything: bool = False) -> tuple[list[Damage], dict]:
    """Runs all checks of a build whose files are intact.

    Args:
      everything: every chunk is embedded again, searched exactly, and looked up in the joined shards.

    Returns:
      Damages, and counts of the checked items for the report.
    """
    table = ChunkTable(data / "chunks")
    vectors = EmbeddingTable(data / "embeddings", verify=False)
    neighbors = NeighborTable(data / "neighbors", verify=False)
    digests = []
    tokenizer = Tokenizer(data / "tokenizer")
    damages = list(_check_chunks(data, table, tokenizer, digests))
    embedded, searched = (len(table) if everything else min(count, len(table)) for count in (EMBEDDED, SAMPLE))
    damages += _check_embeddings(table, vectors, tokenizer, encoder, embedded)
    if not has_other_database(data):
        damages += check_assignment(data, table, everything=everything)
    facts = {"chunks": len(table), "embedded_again": embedded}
    for directory in addition_directories(data):
        name = str(directory.relative_to(data))
        damages += check_table(directory, name, tokenizer, encoder, facts, everything)
        found = check_assignment(directory, ChunkTable(directory / "chunks"), everything=everything)
        damages += [replace(damage, stage=f"{name}/{damage.stage}") for damage in found]
    if damages:
        return damages, facts
    if has_other_database(data):
        against = _other_database(data)
    else:
        digest_of = np.repeat(np.array(digests), np.diff([*table.first_chunks(), len(table)]))
        against = _own_database(data, table, vectors, digest_of)
    damages += _check_neighbors(table, vectors, neighbors, against)
    found, exact = [], {"queries_searched": 0}
    if not against.changed:
        found, exact = _check_search(table, vectors, neighbors, against, searched)
    facts |= {"neighbors": int((neighbors.ids[:] != PADDING).sum()), **exact}
    if everything:
        facts["joined_chunks"] = 0
        damages += _check_joined(data / "joined", table, neighbors, against.value, facts)
    return damages + found, facts


@dataclass(frozen=True)
class Against:
    """The database that neighbors were searched in.

    Attributes:
      place: the data directory, whose index it is.
      documents: Int64["N"], of its chunks, indexable by rows.
      ids: Int64["K"], the chunks that a search may return, rising.
      vectors: of its chunks, by id.
      own: ids there of the queries' documents.
      same_text: (rows of queries, ids there) to whether both are of documents of one text.
      value: [N, F] of its chunks, as the model reads them.
      changed: whether the database is another since the search, so that exact search finds other neighbors today.
    """

    place: Path
    documents: Any
    ids: Int64[np.ndarray, "K"]
    vectors: Callable
    own: Callable
    same_text: Callable
    value: Callable
    changed: bool = False


def _own_database(data: Path, table: ChunkTable, vectors: EmbeddingTable, digests: np.ndarray) -> Against:
    fraction = read_manifest(data / "index", "index", verify=False).config["database_fraction"]
    ids = Subset(fraction, table).ids(0, table.database_chunks)

    def same(rows, found):
        return digests[found] == digests[rows]

    return Against(data, table.document_ids, ids, vectors.__getitem__, lambda own: own, same, table.value)


def _other_database(data: Path) -> Against:
    """Texts are not compared again: the stage copies has done so, and lists the ids of those that are equal."""
    database, copies = open_database(data), Copies(data / COPIES)
    ids, gone = rows_in_view(database, View())
    changed = searched_before(data)

    def same(rows, found):
        return np.zeros(len(found), bool)

    kept = ids if changed else ids[~gone]
    return Against(
        database.data, database.document_ids, kept, database.vectors, copies.own, same, database.value, changed
    )


def check_table(
    directory: Path, name: str, tokenizer: Tokenizer, encoder: FrozenEncoder, facts: dict, everything: bool
) -> list[Damage]:
    """Chunks and vectors of an addition or of an evaluation set. Counts are added to those in `facts`.

    Args:
      name: the directory's in the names of damaged stages.
    """
    table, vectors = ChunkTable(directory / "chunks"), EmbeddingTable(directory / "embeddings", verify=False)
    count = len(table) if everything else min(EMBEDDED, len(table))
    damages = [
        *_check_chunks(directory, table, tokenizer, []),
        *_check_embeddings(table, vectors, tokenizer, encoder, count),
    ]
    facts["chunks"] += len(table)
    facts["embedded_again"] += count
    return [replace(damage, stage=f"{name}/{damage.stage}") for damage in damages]


def _shard(table: ChunkTable, stage: str, row: int) -> str:
    return f"{stage}-{int(np.searchsorted(np.cumsum(table.shard_rows), row, side='right')):05d}"


def _check_chunks(data: Path, table: ChunkTable, tokenizer: Tokenizer, digests: list[str]) -> Iterator[Damage]:
    """Checks that every document's rows are contiguous, have its id, and decode in order to its text.

    So the row after a chunk in its document is the next chunk; `ChunkTable.value` is checked to return it.

    Args:
      digests: the SHA-256 of every document's text is appended here.
    """
    first = table.first_chunks()
    ends = np.append(first[1:], len(table))
    records = progress(
        DocumentTable(data / "documents").records(), description="verify text", total=len(first), unit="document"
    )
    for number, record in enumerate(records):
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
        elif (flat[: len(tokens)] == PADDING).any() or tokens[0] != tokenizer.bos or tokens[-1] != tokenizer.eos:
            yield Damage("chunks", shard, f"rows {start} to {end - 1} are not one document from BOS to EOS")
        elif tokenizer.decode(tokens) != record["text"]:
            yield Damage("chunks", shard, f"rows {start} to {end - 1} are not the text of document {record['id']}")
        else:
            following = np.full_like(rows, PADDING)
            following[:-1] = rows[1:]
            if not np.array_equal(table.value(np.arange(start, end)), np.concatenate([rows, following], axis=1)):
                yield Damage("chunks", shard, f"a continuation in rows {start} to {end - 1} is not the next chunk")


def _check_embeddings(
    table: ChunkTable, vectors: EmbeddingTable, tokenizer: Tokenizer, encoder: FrozenEncoder, count: int
) -> Iterator[Damage]:
    """Embeds `count` chunks again, spread over all, and compares the vectors."""
    chosen = sample_rows(len(table), count)
    for start in range(0, len(chosen), ROWS):
        rows = chosen[start : start + ROWS]
        texts = [tokenizer.decode(row[row != PADDING]) for row in table.tokens[rows]]
        again, stored = encoder.embed(texts, description="verify embeddings"), vectors[rows]
        norms = np.linalg.norm(again, axis=1) * np.linalg.norm(stored, axis=1)
        cosines = np.einsum("ne,ne->n", again, stored) / np.maximum(norms, 1e-12)
        for row, cosine in zip(rows.tolist(), cosines.tolist(), strict=True):
            if not cosine >= LEAST_COSINE:
                what = f"row {row} has cosine {cosine:.4f} with its chunk"
                yield Damage("embeddings", _shard(table, "embeddings", row), what)


def _check_neighbors(
    table: ChunkTable, vectors: EmbeddingTable, neighbors: NeighborTable, against: Against
) -> Iterator[Damage]:
    """Checks every stored neighbor: in the database, of another document by id and text, nearest first, at its distance."""
    inside = np.zeros(len(against.documents), bool)
    inside[against.ids] = True
    starts = range(0, len(table), ROWS)
    for start in progress(starts, description="verify neighbors", unit="block"):
        block = slice(start, min(start + ROWS, len(table)))
        ids, distances = neighbors.ids[block], neighbors.distances[block]
        rows, columns = np.nonzero(ids != PADDING)
        found, own = ids[rows, columns], rows + start
        outside = (found < 0) | (found >= len(inside))
        found = np.where(outside, against.ids[0], found)
        wrong = {"a neighbor outside the database": outside | ~inside[found]}
        owners, mine = against.documents[found], against.own(table.document_ids[own]).reshape(len(own), -1)
        wrong["a neighbor of the query's own document"] = (owners[:, None] == mine).any(1)
        wrong["a neighbor from a document of the query's text"] = against.same_text(own, found)
        queries, keys = vectors[np.arange(block.start, block.stop)], against.vectors(found)
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
    """Bool [N]: distances rise, ties by rising id (by_distance); no id twice, missing ones last and at +inf."""
    there = ids != PADDING
    if not np.array_equal(np.isfinite(distances), there):
        return (np.isfinite(distances) == there).all(axis=1)
    finite = np.where(there, distances, np.float32(np.finfo(np.float32).max))
    step, ties = np.diff(finite, axis=1), np.diff(ids, axis=1) > 0
    good = (step > 0) | ((step == 0) & (ties | ~there[:, 1:])) | (not by_distance)
    ordered = np.sort(np.where(there, ids, -1 - np.arange(ids.shape[1])), axis=1)
    return (good & (there[:, :-1] | ~there[:, 1:])).all(axis=1) & (np.diff(ordered, axis=1) > 0).all(axis=1)


def _check_search(
    table: ChunkTable, vectors: EmbeddingTable, neighbors: NeighborTable, against: Against, count: int
) -> tuple[list[Damage], dict]:
    """Compares `count` queries with exact search: equal ids for an exact index, the recall for an approximate one.

    SCaNN may miss neighbors; those that it returns are at their true distance and nearest first (`_check_neighbors`), so a
    row without misses equals that of exact search.
    """
    index = read_manifest(against.place / "index", "index", verify=False)
    if neighbors.rerank != "none":
        return [], {"queries_searched": 0}  # chosen by their words among more candidates than are stored
    chosen, k = sample_rows(len(table), count), neighbors.ids.shape[1]
    exact = PlacedSearcher(ExactSearcher(against.vectors(against.ids)), against.ids)
    hits, there, other = np.zeros(len(chosen), int), 0, []
    for start in progress(range(0, len(chosen), QUERIES), description="verify search", unit="block"):
        rows = chosen[start : start + QUERIES]
        ids, distances = find_neighbors(
            exact, vectors[rows], against.own(table.document_ids[rows]), against.documents, k
        )
        farthest = np.where(ids != PADDING, distances, -np.inf).max(axis=1, initial=-np.inf)
        near = (neighbors.ids[rows] != PADDING) & (neighbors.distances[rows] <= farthest[:, None] + 1e-5)
        hits[start : start + QUERIES] = near.sum(axis=1)
        there += int((ids != PADDING).sum())
        other += rows[(ids != neighbors.ids[rows]).any(axis=1)].tolist()
    recall, promised = float(hits.sum() / max(1, there)), index.counts["recall"]["value"]
    facts = {"queries_searched": len(chosen), "rows_as_exact": len(chosen) - len(other)}
    facts |= {"recall": recall, "recall_promised": promised}
    if index.counts["kind"] == "exact":
        what = "has other neighbors than exact search"
        return [Damage("neighbors", _shard(table, "neighbors", row), f"row {row} {what}") for row in other], facts
    least = promised - 4 * np.sqrt(promised * (1 - promised) / max(1, there)) - SLACK
    if recall >= least:
        return [], facts
    worst = int(chosen[hits.argmin()])
    what = f"recall@{k} is {recall:.3f} on {len(chosen):,} queries, but the index promises {promised:.3f}"
    what += f"; row {worst} is the worst"
    return [Damage("neighbors", _shard(table, "neighbors", worst), what)], facts


def _check_joined(
    directory: Path, table: ChunkTable, neighbors: NeighborTable, value: Callable, facts: dict
) -> Iterator[Damage]:
    """Checks every sequence as a model reads it: its chunks, their stored neighbors and continuations.

    Args:
      value: [N, F] of neighbors.
      facts: "joined_chunks" counts the checked chunks; held-out chunks occur in two windows.
    """
    manifest = read_manifest(directory, "joined", verify=False)
    size = manifest.config["shard_sequences"]
    for split, packing in pack(table, manifest.config["sequence_length"] // table.chunk_length).items():
        count = len(packing.chunk_ids)
        examples = open_split(directory, split, verify=False)[0] if count else []
        for number in progress(range(count), description=f"verify joined {split}", unit="sequence"):
            ids, example = packing.chunk_ids[number], examples[number]
            real = ids != PADDING
            rows = np.where(real, ids, 0)
            found = np.where(real[:, None], neighbors.ids[rows], PADDING)
            expected = {
                "tokens": np.where(real[:, None], table.tokens[rows], PADDING).reshape(-1),
                "neighbor_ids": found,
                "neighbor_distances": np.where(real[:, None], neighbors.distances[rows], np.inf),
                "neighbor_tokens": value(found),
            }
            facts["joined_chunks"] += int(real.sum())
            for name in (name for name, array in expected.items() if not np.array_equal(example[name], array)):
                shard = f"{NAME}-{split}-{number // size:05d}-of-{-(-count // size):05d}"
                yield Damage("joined", shard, f"{split} sequence {number} has other {name} than its chunks")
