"""Chunk and embedding stages of made-up documents and vectors, for tests of search that need no text."""

from pathlib import Path

import numpy as np

from data_pipeline.chunks import COLUMNS
from data_pipeline.stages.run import Manifest, Shard, run_stage

M = 4


def write_chunks(directory: Path, documents, database: int, rows_a_shard: int = 50) -> Manifest:
    """A chunks stage with one row for each entry of `documents` (document ids); chunk i holds the tokens 10 i to 10 i + 3."""
    ids = np.asarray(documents, np.int64)
    tokens = (10 * np.arange(len(ids))[:, None] + np.arange(M)).astype(np.int32)
    columns = {"tokens": tokens, "document_ids": ids, "subsets": np.zeros(len(ids), np.int32)}
    shards = []
    for number, start in enumerate(range(0, len(ids), rows_a_shard)):

        def make(temporary, number=number, start=start):
            for name, column in columns.items():
                np.save(temporary / f"chunks-{number:05d}.{name}.npy", column[start : start + rows_a_shard])
            return {}

        shards.append(Shard(f"{number}", [f"chunks-{number:05d}.{name}.npy" for name in COLUMNS], make))
    counts = {"subsets": ["farm"], "chunk_length": M, "database_chunks": database, "chunks": len(ids)}
    return run_stage(directory, "chunks", {"rows_a_shard": rows_a_shard}, {"tokenizer": "t"}, shards, counts=counts)


def write_embeddings(directory: Path, vectors, database: int, chunks: str = "c") -> Manifest:
    """An embeddings stage of `vectors`; `chunks` is the fingerprint of the chunks it claims to be of."""
    vectors = np.asarray(vectors, np.float32)

    def make(temporary):
        np.save(temporary / "embeddings-00000.npy", vectors)
        return {}

    return run_stage(
        directory,
        "embeddings",
        {"encoder": "e", "compute_dtype": "bfloat16", "encoder_batch": 16},
        {"chunks": chunks, "tokenizer": "t"},
        [Shard("embeddings", ["embeddings-00000.npy"], make)],
        counts={"database_chunks": database, "width": vectors.shape[1]},
    )


def clustered(count: int, width: int = 16, clusters: int = 40, seed: int = 0):
    """Unit vectors around some centers, as embeddings of text lie."""
    source = np.random.default_rng(seed)
    centers = source.normal(size=(clusters, width))
    vectors = centers[source.integers(0, clusters, count)] + 0.5 * source.normal(size=(count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
