"""The finished database as something to ask: text in, neighbors with their texts and documents out.

The same encoder, index and search as when the neighbors of the training data were made (`data_pipeline.neighbors`), so
that a chunk asked for here gets what the build gave it, its own document included: a prompt is of no document.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, Int64

from data_pipeline.bert import encoder_directory
from data_pipeline.chunks import ChunkTable
from data_pipeline.embeddings import open_encoder
from data_pipeline.index import open_searcher
from data_pipeline.lexical import Lexical
from data_pipeline.manifests import require_fingerprint
from data_pipeline.neighbors import RERANKED, NeighborTable, find_neighbors
from data_pipeline.provenance import Provenance
from data_pipeline.tokens import Tokenizer
from retro_jax.config import DataConfig
from retro_jax.dimensions import PADDING

NO_DOCUMENT = -1


class DatabaseRetriever:
    """Retrieval from the stages under a data directory.

    Raises:
      StageError: stages that are missing or not made from one another, or another encoder than the one of the build.
    """

    def __init__(self, data: Path, config: DataConfig):
        self._table = ChunkTable(data / "chunks")
        neighbors = NeighborTable(data / "neighbors")
        require_fingerprint(
            f"chunk table {data / 'chunks'} for {data / 'neighbors'}",
            self._table.fingerprint,
            neighbors.inputs["chunks"],
            "Run `retro build` into another --workdir.",
        )
        self._encoder = open_encoder(data / "embeddings", encoder_directory(config))
        self._searcher = open_searcher(data / "index", data / "embeddings")
        self._words = self._tokenizer = None
        if neighbors.rerank == "bm25":
            self._words, self._tokenizer = Lexical(data / "lexical"), Tokenizer(data / "tokenizer")
        self._provenance = Provenance(data / "documents", data / "tokenizer", self._table)

    def search(self, text: str, k: int) -> tuple[Int64[np.ndarray, "K"], Float32[np.ndarray, "K"]]:
        """Chunk ids and squared distances of the k nearest to a text, -1 and +inf where there are fewer."""
        candidates = k if self._words is None else RERANKED * k
        ids, distances = find_neighbors(
            self._searcher, self._encoder.embed([text]), np.array([NO_DOCUMENT]), self._table.document_ids, candidates
        )
        if self._words is not None:
            query = np.array([self._tokenizer.encode(text)], np.int32)
            ids, distances = self._words.rerank(query, ids, distances, self._table.tokens, k)
        return ids[0], distances[0]

    def values(self, ids: Int64[np.ndarray, "K"]) -> Int32[np.ndarray, "K R"]:
        """[N, F] of each."""
        return self._table.value(ids)

    def sources(self, ids: Int64[np.ndarray, "K"]) -> list[tuple[str, str]]:
        """(subset, document name) of each that is there."""
        documents = [self._provenance.document(int(id)) for id in ids if id != PADDING]
        return [(document.subset, document.name) for document in documents]
