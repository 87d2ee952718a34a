"""Retrieval for text: the nearest chunks of a database with their tokens and documents.

It uses the encoder, index and search of the training data's neighbors (`data_pipeline.search.neighbors`), so
a stored chunk's text finds the neighbors that the build stored, and its own document, because a prompt has none. Additions
and removals take effect at once (`data_pipeline.database.database`).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, Int64

from data_pipeline.chunks import ChunkTable
from data_pipeline.database.searched import open_database
from data_pipeline.encoder.bert import encoder_directory
from data_pipeline.encoder.stage import open_encoder
from data_pipeline.search.neighbors import NeighborTable
from data_pipeline.stages.run import require_fingerprint
from data_pipeline.tokens import Tokenizer
from retro_jax.config import DataConfig
from retro_jax.config.file import read_config_file
from retro_jax.core.dimensions import PADDING

NO_DOCUMENT = -1


def _with_encoder(config: DataConfig, data: Path) -> DataConfig:
    """The config; without an encoder it takes the one of the build's config."""
    path = data / "config.json"
    if config.encoder or not path.exists():
        return config
    remedy = (
        "Give config.data.encoder, or run `retro build` with the config of the build once more: it rewrites the file."
    )
    return replace(config, encoder=read_config_file(path, remedy).data.encoder)


class Retriever:
    """Retrieval from the stages under a data directory, with the encoder of the config or else of the build.

    Raises:
      StageError: stages that are missing or of different builds, or another encoder or dtype than the build's.
    """

    def __init__(self, data: Path, config: DataConfig):
        data = Path(data)
        neighbors = NeighborTable(data / "neighbors")
        require_fingerprint(
            f"chunk table {data / 'chunks'} for {data / 'neighbors'}",
            ChunkTable(data / "chunks").fingerprint,
            neighbors.inputs["chunks"],
            "Run `retro build` into another --workdir.",
        )
        directory = encoder_directory(_with_encoder(config, data))
        self._encoder = open_encoder(data / "embeddings", directory, config.encoder_dtype)
        self.database, self._tokenizer = open_database(data), Tokenizer(data / "tokenizer")

    def search(self, text: str, k: int) -> tuple[Int64[np.ndarray, "K"], Float32[np.ndarray, "K"]]:
        """Chunk ids and squared distances of the k nearest to a text, -1 and +inf where there are fewer."""
        ids, distances = self.search_all([text], k)
        return ids[0], distances[0]

    def search_all(self, texts: Sequence[str], k: int) -> tuple[Int64[np.ndarray, "N K"], Float32[np.ndarray, "N K"]]:
        """As `search`, of several texts at once."""
        encoded = self._tokenizer.encode_all(texts)
        tokens = np.full((len(texts), max(map(len, encoded), default=0)), PADDING, np.int32)
        for row, ids in zip(tokens, encoded, strict=True):
            row[: len(ids)] = ids
        nobody = np.full(len(texts), NO_DOCUMENT)
        return self.database.nearest(self._encoder.embed(texts), tokens, nobody, k)

    def values(self, ids: Int64[np.ndarray, "*shape"]) -> Int32[np.ndarray, "*shape R"]:
        """[N, F] of each."""
        return self.database.value(ids)

    def sources(self, ids: Int64[np.ndarray, "K"]) -> list[tuple[str, str]]:
        """(subset, document name) of each id but -1."""
        documents = [self.database.document(int(id)) for id in ids if id != PADDING]
        return [(document.subset, document.name) for document in documents]
