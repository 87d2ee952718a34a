"""Stage 6, neighbors: RET(C) of every chunk, the k nearest chunks of the database in other documents (paper 2.3).

    neighbors-00000.ids.npy        int64 [N_s, k], nearest first, ties by id, -1 where there is none
    neighbors-00000.distances.npy  float32 [N_s, k], squared L2, +inf where there is none

A chunk of the query's own document is dropped by its document id, never by its rank: the query itself need not come
first, and a copy of its text in another document is a neighbor like any other. The continuation F of a neighbor N is
of N's document (`ChunkTable.value`), so with N no text of the query's document can come back.
"""

import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from data_pipeline.chunks import ChunkTable
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.search.bm25 import Lexical
from data_pipeline.search.exact import Searcher, merge_rows, search_kept
from data_pipeline.search.stage import STAGE as INDEX
from data_pipeline.search.stage import index_shards, open_shard, shard_bytes
from data_pipeline.stages.engine import Resource, Shard
from data_pipeline.stages.run import (
    Manifest,
    StageError,
    fingerprint,
    make_missing,
    read_manifest,
    require_fingerprint,
    run_stage,
)
from retro_jax.config import DataConfig
from retro_jax.core.dimensions import PADDING
from retro_jax.core.files import load_array
from retro_jax.core.progress import progress
from retro_jax.data.rows import ShardedRows

STAGE = "neighbors"
QUERIES_AT_ONCE = 2048
COLUMNS = ("ids", "distances")
RERANKED = 10  # candidates a neighbor that BM25 chooses from
FEW_DOCUMENTS = 10  # documents below which the log notes that neighbors will be few
ANSWERS_REMEDY = "Run the same `retro build` again: it repeats the search for missing or damaged shards."
ANSWERS_AT_ONCE = 50_000  # files of answers of one index shard that exist at once, about 2 MB each


@dataclass(frozen=True)
class Part:
    """One index shard of the searched database: what opens its searcher, and about how much memory that takes."""

    open: Callable[[], Searcher]
    bytes: int = 0


@dataclass(frozen=True)
class Searched:
    """What queries are compared with. Its chunk ids are rows of `tokens` and `document_ids`, and all parts answer with them."""

    parts: Sequence[Part]
    tokens: Any  # Int["N M"], indexable by rows
    document_ids: Any  # Int64["N"], indexable by rows
    words: Lexical | None = None  # re-ranks what is found
    only: int | None = None  # the document that every key is of, where there is one alone: its chunks have no neighbors


def build_neighbors(
    directory: Path, config: DataConfig, chunks: Path, embeddings: Path, index: Path, lexical: Path | None = None
) -> Manifest:
    """Finds the neighbors of every chunk of a build, of held-out documents too.

    Args:
      chunks, embeddings, index: directories of these stages; lexical too, where config.data.rerank is "bm25".

    Raises:
      StageError: stages of different builds.
      ValueError: config.data.neighbors_stored is not positive.
    """
    if config.neighbors_stored < 1:
        raise ValueError(f"config.data.neighbors_stored must be 1 or more, but is {config.neighbors_stored}.")
    table, vectors = ChunkTable(chunks), EmbeddingTable(embeddings)
    require_chunks(table, vectors, chunks, embeddings)
    words = _lexical(config, lexical)
    inputs = {
        "chunks": table.fingerprint,
        "embeddings": vectors.fingerprint,
        "index": read_manifest(index, INDEX, verify=False).fingerprint,
        **({"lexical": words.fingerprint} if words else {}),
    }
    parts = [Part(partial(open_shard, *shard), shard_bytes(*shard[1:3])) for shard in index_shards(index, embeddings)]
    searched = Searched(parts, table.tokens, table.document_ids, words, only_document(table))
    counts = {"database_chunks": table.database_chunks}
    return search_chunks(directory, stage_config(config), inputs, table, vectors, searched, counts)


def require_chunks(table: ChunkTable, vectors: EmbeddingTable, chunks: Path, embeddings: Path) -> None:
    """Raises StageError where vectors are not those of the chunks."""
    require_fingerprint(
        f"chunk table {chunks} for {embeddings}",
        table.fingerprint,
        vectors.inputs["chunks"],
        "Point to the chunks of the embeddings, or run `retro build` with another --workdir.",
    )


def search_chunks(
    directory: Path,
    facts: Mapping,
    inputs: Mapping[str, str],
    table: ChunkTable,
    vectors: EmbeddingTable,
    searched: Searched,
    counts: Mapping,
    start: int = 0,
) -> Manifest:
    """Writes the neighbors of every chunk of `table` from row `start` on.

    Each index shard, held in memory, is searched for every shard of chunks; then the results for a
    shard of chunks are merged. The k nearest of all are among the k nearest of each part, so parts do not change the result.

    Args:
      facts: the config of the stage; "neighbors_stored" is k.
      vectors: of the chunks, row for row.
      counts: facts known beforehand that belong into the manifest.
    """
    directory, k = Path(directory), facts["neighbors_stored"]
    work = directory / ".answers" / fingerprint([facts, inputs])[:16]
    shards, asked, words = [], {}, searched.words
    for number, (first, stop) in enumerate(_ranges(table, start)):
        stem = f"neighbors-{number:05d}"
        sources = [work / _answer(stem, part) for part in range(len(searched.parts))]
        make = partial(_merge, stem, sources, k, words, table.tokens, searched.tokens, first, stop)
        shards.append(Shard(stem, [f"{stem}.{column}.npy" for column in COLUMNS], make))
        asked[stem] = (table, vectors, first, stop, k if words is None else RERANKED * k)

    def prepare(missing: Sequence[Shard]) -> None:
        shutil.rmtree(work, ignore_errors=True) if _stale(work, missing) else None
        make_missing(work, "search", _answers(searched, {shard.name: asked[shard.name] for shard in missing}))

    at_once = max(1, ANSWERS_AT_ONCE // len(searched.parts))
    manifest = run_stage(directory, STAGE, facts, inputs, shards, counts=counts, prepare=prepare, at_once=at_once)
    shutil.rmtree(directory / ".answers", ignore_errors=True)  # our own intermediate files
    return manifest


def _ranges(table: ChunkTable, start: int) -> list[tuple[int, int]]:
    """Rows [first, stop) of each shard of chunks, those before `start` left out."""
    ends = np.cumsum(table.shard_rows).tolist()
    pairs = [(max(start, end - rows), end) for end, rows in zip(ends, table.shard_rows, strict=True)]
    return [(first, end) for first, end in pairs if first < end]


def stage_config(config: DataConfig) -> dict:
    """The settings that the stage depends on; part of its plan."""
    return {"neighbors_stored": config.neighbors_stored, "rerank": config.rerank}


def _lexical(config: DataConfig, directory: Path | None) -> Lexical | None:
    if config.rerank not in ("none", "bm25"):
        raise ValueError(f"config.data.rerank must be none or bm25, but is {config.rerank!r}.")
    return Lexical(directory) if config.rerank == "bm25" else None


def _answer(stem: str, part: int) -> str:
    return f"{stem}-of-index-{part:05d}"


def _stale(work: Path, missing: Sequence[Shard]) -> bool:
    """Whether results for finished shards of chunks still take space."""
    wanted = {shard.name for shard in missing}
    return any(path.name.split("-of-")[0] not in wanted for path in (work / ".parts").glob("*.json"))


def _answers(searched: Searched, asked: dict[str, tuple]) -> list[Shard]:
    """A shard for each index shard and shard of chunks, index shard by index shard."""
    found = []
    for number, part in enumerate(searched.parts):
        held = Resource(f"index shard {number}", part.open, bytes=part.bytes)
        for stem, question in asked.items():
            name = _answer(stem, number)
            files = [f"{name}.{column}.npy" for column in COLUMNS]
            make = partial(_search, name, searched.document_ids, searched.only, *question)
            found.append(Shard(name, files, make, held))
    return found


def _search(
    name: str,
    database_documents,
    only: int | None,
    table: ChunkTable,
    vectors: EmbeddingTable,
    start: int,
    stop: int,
    k: int,
    temporary: Path,
    searcher,
) -> dict:
    """The results of one index shard for chunks [start, stop)."""
    ids = np.full((stop - start, k), PADDING, np.int64)
    distances = np.full(ids.shape, np.inf, np.float32)
    with progress(description=name, total=stop - start, unit="chunk") as bar:
        for first in range(start, stop, QUERIES_AT_ONCE):
            block = slice(first, min(first + QUERIES_AT_ONCE, stop))
            documents = table.document_ids[block]
            asked = np.flatnonzero(documents != only)  # the other rows would be searched to the end without a result
            if len(asked):
                places = block.start - start + asked
                ids[places], distances[places] = find_neighbors(
                    searcher, vectors[block][asked], documents[asked], database_documents, k
                )
            bar.update(block.stop - block.start)
    _save(temporary / name, ids, distances)
    return {}


def only_document(table: ChunkTable) -> int | None:
    """The id of the only document of the database; None if there are several."""
    first, last = table.document_ids[np.array([0, table.database_chunks - 1])]
    return int(first) if first == last else None  # chunks of a document are contiguous


def check_documents(counts: Mapping, paths: Sequence[str], *, wanted: bool) -> str:
    """A note if a documents stage has few documents to find neighbors in; otherwise "".

    Args:
      counts: of the stage's manifest.
      paths: of the sources, for the command that splits a file.
      wanted: whether the model reads neighbors; without, one document is noted alone.

    Raises:
      StageError: no document to train on, or one, whose chunks can have no neighbors.
    """
    splits = ("train", "validation")
    kept = {split: sum(subset[split]["documents"] for subset in counts["subsets"].values()) for split in splits}
    if not kept["train"]:
        raise StageError(
            f"All documents ({kept['validation']:,}) fell into the held-out split, so none is left to train on or to search. "
            "Give more documents, or lower config.data.validation_fraction, and build into another --workdir."
        )
    if kept["train"] > 1:
        few = kept["train"] < FEW_DOCUMENTS
        found = f"Neighbors come from other documents, and there are {kept['train']:,} to train on: they will be few."
        return f"{found} {_split_it(paths)}" if few and wanted else ""
    held_out = f" ({kept['validation']:,} more are held out and never searched)" if kept["validation"] else ""
    said = f"A database of one document{held_out} has no neighbors: a neighbor is a chunk of another document."
    if not wanted:
        return said
    raise StageError(f"{said} {_split_it(paths)}")


def _split_it(paths: Sequence[str]) -> str:
    file = next((path for path in paths if path), "BOOK.txt")
    return (
        "Give more documents, or split yours where its parts end, a chapter or an article a file; by lines, for example: "
        f"mkdir parts && split -l 100 --additional-suffix=.txt {shlex.quote(file)} parts/ and build from parts in another "
        "--workdir. Parts of one text are then neighbors of one another, so a gain on them is not one on new text."
    )


def _merge(
    stem: str,
    sources: Sequence[Path],
    k: int,
    words: Lexical | None,
    tokens,
    database_tokens,
    start: int,
    stop: int,
    temporary,
) -> dict:
    """Merges the results for chunks [start, stop) and reranks them if configured."""
    ids, distances = _load(sources[0])
    for source in sources[1:]:
        merge_rows(ids, distances, *_load(source))
    counts = {}
    if words is not None:
        nearest = ids[:, :k]
        ids, distances = words.rerank(tokens[start:stop], ids, distances, database_tokens, k)
        kept = (nearest[:, :, None] == ids[:, None]).any(2) & (nearest != PADDING)
        counts["reranked"] = {"kept": int(kept.sum()), "of": int((nearest != PADDING).sum())}
    _save(temporary / stem, ids, distances)
    missing, same = int((ids == PADDING).sum()), int((distances == 0).sum())
    counts["without_neighbors"] = {"chunks": int((ids == PADDING).all(axis=1).sum()), "of": len(ids)}
    return {"chunks": len(ids), "missing": missing, "same_text": same, **counts}


def _save(stem: Path, ids, distances) -> None:
    np.save(stem.with_name(f"{stem.name}.ids.npy"), ids)
    np.save(stem.with_name(f"{stem.name}.distances.npy"), distances)


def _load(stem: Path) -> list[np.ndarray]:
    return [load_array(stem.with_name(f"{stem.name}.{column}.npy"), ANSWERS_REMEDY) for column in COLUMNS]


def find_neighbors(
    searcher: Searcher,
    queries: Float32[np.ndarray, "N E"],
    query_documents: Int64[np.ndarray, "N"],
    database_documents: Int64[np.ndarray, "K"],
    k: int,
) -> tuple[Int64[np.ndarray, "N k"], Float32[np.ndarray, "N k"]]:
    """The k nearest keys of other documents than the query's.

    Args:
      query_documents: document id of each query; an id that no document has (-1) keeps all.
      database_documents: document id of each key.
    """
    return search_kept(searcher, queries, k, lambda rows, ids: database_documents[ids] != query_documents[rows, None])


class NeighborTable:
    """A finished neighbors stage, mapped into memory.

    Attributes:
      ids: Int64[ShardedRows, "N K"], chunk ids, -1 where there is none.
      distances: Float32[ShardedRows, "N K"], squared L2, +inf where there is none.
      rerank: "none": nearest first; "bm25": by the words shared.
      inputs: fingerprints of the stages it was made from.
      fingerprint: of the stage's manifest.
    """

    def __init__(self, directory: Path, *, verify: bool = True):
        manifest = read_manifest(directory, STAGE, verify=verify)
        self.ids, self.distances = (
            ShardedRows([Path(directory) / file.name for file in manifest.files if f".{column}." in file.name])
            for column in COLUMNS
        )
        self.rerank: str = manifest.config["rerank"]
        self.inputs = manifest.inputs
        self.fingerprint = manifest.fingerprint

    def __len__(self) -> int:
        return len(self.ids)
