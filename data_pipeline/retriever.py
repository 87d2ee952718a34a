"""The database as something to ask: text in, neighbors with their texts and documents out.

The same encoder, index and search as when the neighbors of the training data were made (`data_pipeline.neighbors`), so
that a chunk asked for here gets what the build gave it, its own document included: a prompt is of no document. What was
added or removed since counts at once (`data_pipeline.database`).
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, Int64

from data_pipeline.bert import encoder_directory
from data_pipeline.chunks import ChunkTable
from data_pipeline.database import Database
from data_pipeline.embeddings import open_encoder
from data_pipeline.manifests import require_fingerprint
from data_pipeline.neighbors import NeighborTable
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
        neighbors = NeighborTable(data / "neighbors")
        require_fingerprint(
            f"chunk table {data / 'chunks'} for {data / 'neighbors'}",
            ChunkTable(data / "chunks").fingerprint,
            neighbors.inputs["chunks"],
            "Run `retro build` into another --workdir.",
        )
        self._encoder = open_encoder(data / "embeddings", encoder_directory(config))
        self.database, self._tokenizer = Database(data), Tokenizer(data / "tokenizer")

    def search(self, text: str, k: int) -> tuple[Int64[np.ndarray, "K"], Float32[np.ndarray, "K"]]:
        """Chunk ids and squared distances of the k nearest to a text, -1 and +inf where there are fewer."""
        tokens = np.array([self._tokenizer.encode(text)], np.int32)
        ids, distances = self.database.nearest(self._encoder.embed([text]), tokens, np.array([NO_DOCUMENT]), k)
        return ids[0], distances[0]

    def values(self, ids: Int64[np.ndarray, "K"]) -> Int32[np.ndarray, "K R"]:
        """[N, F] of each."""
        return self.database.value(ids)

    def sources(self, ids: Int64[np.ndarray, "K"]) -> list[tuple[str, str]]:
        """(subset, document name) of each that is there."""
        documents = [self.database.document(int(id)) for id in ids if id != PADDING]
        return [(document.subset, document.name) for document in documents]
