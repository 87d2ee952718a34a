"""Stage 6, neighbors: RET(C) of every chunk, the k nearest chunks of the database in other documents (paper 2.3).

    neighbors-00000.ids.npy        int64 [N_s, k], nearest first, ties by id, -1 where there is none
    neighbors-00000.distances.npy  float32 [N_s, k], squared L2, +inf where there is none

A chunk of the query's own document is dropped by its document id, never by its rank: the query itself need not come
first, and a copy of its text in another document is a neighbor like any other. The continuation F of a neighbor N is
of N's document (`ChunkTable.value`), so with N no text of the query's document can come back.
"""

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from data_pipeline.chunks import ChunkTable
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.search.bm25 import Lexical
from data_pipeline.search.chunk_search import COLUMNS, STAGE, Index, Part, Searched, search_chunks
from data_pipeline.search.stage import STAGE as INDEX
from data_pipeline.search.stage import index_shards, open_route, open_shard, shard_bytes
from data_pipeline.stages.run import (
    Manifest,
    StageError,
    read_manifest,
    require_fingerprint,
)
from retro_jax.config import DataConfig
from retro_jax.data.rows import ShardedRows

FEW_DOCUMENTS = 10  # documents below which the log notes that neighbors will be few


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
    searched = Searched(
        [Index(parts, open_route(index))], table.tokens, table.document_ids, words, only_document(table)
    )
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


def stage_config(config: DataConfig) -> dict:
    """The settings that the stage depends on; part of its plan."""
    return {"neighbors_stored": config.neighbors_stored, "rerank": config.rerank}


def _lexical(config: DataConfig, directory: Path | None) -> Lexical | None:
    if config.rerank not in ("none", "bm25"):
        raise ValueError(f"config.data.rerank must be none or bm25, but is {config.rerank!r}.")
    return Lexical(directory) if config.rerank == "bm25" else None


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
