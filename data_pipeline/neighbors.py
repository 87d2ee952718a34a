"""Stage 6, neighbors: RET(C) of every chunk, the k nearest chunks of the database in other documents (paper 2.3).

    neighbors-00000.ids.npy        int64 [N_s, k], nearest first, ties by id, -1 where there is none
    neighbors-00000.distances.npy  float32 [N_s, k], squared L2, +inf where there is none

A chunk of the query's own document is dropped by its document id, never by its rank: the query itself need not come
first, and a copy of its text in another document is a neighbor like any other. The continuation F of a neighbor N is
of N's document (`ChunkTable.value`), so with N no text of the query's document can come back.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from data_pipeline.chunks import ChunkTable, ShardedRows
from data_pipeline.embeddings import EmbeddingTable
from data_pipeline.index import STAGE as INDEX
from data_pipeline.index import open_searcher
from data_pipeline.manifests import Manifest, Shard, read_manifest, require_fingerprint, run_stage
from data_pipeline.search import Searcher
from retro_jax.config import DataConfig
from retro_jax.dimensions import PADDING
from retro_jax.progress import progress

STAGE = "neighbors"
QUERIES_AT_ONCE = 2048
COLUMNS = ("ids", "distances")


def build_neighbors(directory: Path, config: DataConfig, chunks: Path, embeddings: Path, index: Path) -> Manifest:
    """Finds the neighbors of every chunk, of held-out documents too.

    Args:
      chunks, embeddings, index: directories of these stages.

    Raises:
      StageError: stages that were not made from one another.
      ValueError: config.data.neighbors_stored is not positive.
    """
    if config.neighbors_stored < 1:
        raise ValueError(f"config.data.neighbors_stored must be 1 or more, but is {config.neighbors_stored}.")
    table, vectors = ChunkTable(chunks), EmbeddingTable(embeddings)
    require_fingerprint(
        f"chunk table {chunks} for {embeddings}",
        table.fingerprint,
        vectors.inputs["chunks"],
        "Point to the chunks that were embedded, or run `retro build` with another --workdir.",
    )
    searcher = open_searcher(index, embeddings)
    database_documents = table.document_ids[: table.database_chunks]
    shards, start = [], 0
    for number, rows in enumerate(table.shard_rows):
        stem = f"neighbors-{number:05d}"

        def make(temporary: Path, stem=stem, start=start, stop=start + rows) -> dict:
            ids = np.empty((stop - start, config.neighbors_stored), np.int64)
            distances = np.empty(ids.shape, np.float32)
            bar = progress(description=stem, total=stop - start, unit="chunk")
            for first in range(start, stop, QUERIES_AT_ONCE):
                block = slice(first, min(first + QUERIES_AT_ONCE, stop))
                place = slice(block.start - start, block.stop - start)
                ids[place], distances[place] = find_neighbors(
                    searcher, vectors[block], table.document_ids[block], database_documents, config.neighbors_stored
                )
                bar.update(block.stop - block.start)
            bar.close()
            np.save(temporary / f"{stem}.ids.npy", ids)
            np.save(temporary / f"{stem}.distances.npy", distances)
            found = ids != PADDING
            return {"chunks": len(ids), "missing": int((~found).sum()), "same_text": int((distances == 0).sum())}

        shards.append(Shard(stem, [f"{stem}.{column}.npy" for column in COLUMNS], make))
        start += rows
    return run_stage(
        directory,
        STAGE,
        {"neighbors_stored": config.neighbors_stored},
        {
            "chunks": table.fingerprint,
            "embeddings": vectors.fingerprint,
            "index": read_manifest(index, INDEX, verify=False).fingerprint,
        },
        shards,
        counts={"database_chunks": table.database_chunks},
    )


def find_neighbors(
    searcher: Searcher,
    queries: Float32[np.ndarray, "N E"],
    query_documents: Int64[np.ndarray, "N"],
    database_documents: Int64[np.ndarray, "K"],
    k: int,
) -> tuple[Int64[np.ndarray, "N k"], Float32[np.ndarray, "N k"]]:
    """The k nearest keys of other documents than the query's.

    Fetches twice k, and four times as many for the rows whose own document took up too much of that, until k others
    are found or the whole database has been looked at.

    Args:
      query_documents: document id of each query; an id that no document has (-1) keeps all.
      database_documents: document id of each key.
    """
    ids = np.full((len(queries), k), PADDING, np.int64)
    distances = np.full((len(queries), k), np.inf, np.float32)
    unfinished, fetch = np.arange(len(queries)), 2 * k
    while len(unfinished):
        fetch = min(fetch, len(searcher))
        found, measured = searcher.search(queries[unfinished], fetch)
        # A missing key, -1, must not index the documents: it would be the last chunk of the database.
        there = found != PADDING
        documents = database_documents[np.where(there, found, 0)]
        other = there & (documents != query_documents[unfinished, None])
        rank = np.cumsum(other, axis=1) - 1
        finished = (rank[:, -1] >= k - 1) | (fetch == len(searcher))
        rows, columns = np.nonzero(other & (rank < k) & finished[:, None])
        places = unfinished[rows], rank[rows, columns]
        ids[places], distances[places] = found[rows, columns], measured[rows, columns]
        unfinished, fetch = unfinished[~finished], 4 * fetch
    return ids, distances


class NeighborTable:
    """A finished neighbors stage, mapped into memory.

    Attributes:
      ids: Int64[ShardedRows, "N K"], chunk ids, -1 where there is none.
      distances: Float32[ShardedRows, "N K"], squared L2, +inf where there is none.
      inputs: fingerprints of the stages it was made from.
      fingerprint: of the stage's manifest.
    """

    def __init__(self, directory: Path, *, verify: bool = True):
        manifest = read_manifest(directory, STAGE, verify=verify)
        self.ids, self.distances = (
            ShardedRows([Path(directory) / file.name for file in manifest.files if f".{column}." in file.name])
            for column in COLUMNS
        )
        self.inputs = manifest.inputs
        self.fingerprint = manifest.fingerprint

    def __len__(self) -> int:
        return len(self.ids)
