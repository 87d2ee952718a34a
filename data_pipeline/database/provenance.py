"""The document of a chunk and the text of its tokens, without a tokenizer.

The tokens of a document stand for its UTF-8 bytes in order, and the number of bytes of each is in the tokenizer
stage's table; so showing text needs no SentencePiece.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np

from data_pipeline.chunks import ChunkTable
from data_pipeline.documents.stage import Document, DocumentTable, read_documents_manifest
from data_pipeline.stages.run import StageError
from data_pipeline.tokens import read_token_bytes
from retro_jax.core.dimensions import PADDING


class Provenance:
    """Documents and texts of chunks.

    Attributes:
      first_chunks: Int[np.ndarray, "D"], the first chunk of each document, in table order.
      document_bytes: Int[np.ndarray, "D"], the UTF-8 bytes of each document's text.

    Raises:
      StageError: documents other than those of the chunks.
    """

    def __init__(self, documents: Path, tokenizer: Path, table: ChunkTable):
        self._documents, self._table = DocumentTable(documents), table
        self._token_bytes = read_token_bytes(tokenizer)
        read_documents_manifest(documents)  # whole
        self.first_chunks = table.first_chunks()
        self.document_bytes = self._documents.bytes
        if len(self.document_bytes) != len(self.first_chunks):
            raise StageError(
                f"{documents} holds {len(self.document_bytes):,} documents, but the chunks are of "
                f"{len(self.first_chunks):,}: they are of two builds. Run `retro build` into another --workdir."
            )
        self._read = lru_cache(maxsize=64)(self._read_document)

    def number(self, chunk: int) -> int:
        """The number of the chunk's document, in table order. ValueError where there is no such chunk."""
        if not 0 <= chunk < len(self._table):
            raise ValueError(f"{chunk} is not a chunk: ids run from 0 to {len(self._table) - 1}.")
        return int(np.searchsorted(self.first_chunks, chunk, side="right")) - 1

    def document(self, chunk: int) -> Document:
        """The chunk's document."""
        return self._read(self.number(chunk))

    def _read_document(self, number: int) -> Document:
        return next(self._documents.read(number, number + 1))

    def pieces(self, chunk: int) -> list[bytes]:
        """The bytes of each token of a chunk, empty ones for BOS and EOS; joined they are the chunk's text."""
        number = self.number(chunk)
        rows = self._table.tokens[np.arange(self.first_chunks[number], chunk + 1)]
        sizes = self._token_bytes[np.maximum(rows, 0)] * (rows != PADDING)
        ends = np.cumsum(sizes.reshape(-1))[(len(rows) - 1) * rows.shape[1] :]
        count = int((rows[-1] != PADDING).sum())
        content = self.document(chunk).text.encode()
        start = int(ends[0] - sizes[-1, 0])
        return [content[a:b] for a, b in zip([start, *ends[: count - 1].tolist()], ends[:count].tolist(), strict=True)]
