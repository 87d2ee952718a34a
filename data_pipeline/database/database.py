"""The current database: the build with its additions and without the removed documents.

Evaluation and sampling use it, so changes take effect at once without training; training continues with the shards that it was
started with. Chunk ids: the build's first, held-out ones among them, then each addition's in order.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64

from data_pipeline.chunks import ChunkTable, DatabaseText
from data_pipeline.database.changed import Removed, addition_directories, read_removed
from data_pipeline.database.provenance import Provenance
from data_pipeline.database.retokenized import Retokenized
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.search.bm25 import Lexical
from data_pipeline.search.chunk_search import RERANKED, find_neighbors
from data_pipeline.search.exact import Searcher, merge_rows, search_kept
from data_pipeline.search.stage import open_searcher
from data_pipeline.stages.run import StageError, fingerprint, read_manifest
from data_pipeline.tokens import Tokenizer, identity
from retro_jax.core.dimensions import PADDING
from retro_jax.data.rows import ShardedRows


def written_as(data: Path) -> tuple[str, int]:
    """(identity of the tokenizer, chunk length) of a data directory: chunks of equal ones are read as they are."""
    chunks = read_manifest(Path(data) / "chunks", "chunks", verify=False)
    return identity(Path(data) / "tokenizer"), chunks.config["chunk_length"]


class KeptSearcher:
    """A searcher that skips removed keys: it fetches more until enough others are found."""

    def __init__(self, searcher: Searcher, kept: Bool[np.ndarray, "N"]):
        self._searcher, self._kept = searcher, kept
        # If only a share of the rows is indexed this is a bound: it is unknown how many of the removed are among them.
        self._count = min(int(kept.sum()), len(searcher))

    def __len__(self) -> int:
        return self._count

    def search(
        self, queries: Float32[np.ndarray, "N E"], k: int
    ) -> tuple[Int64[np.ndarray, "N K"], Float32[np.ndarray, "N K"]]:
        """See `Searcher.search`."""
        if self._kept.all():
            return self._searcher.search(queries, k)
        return search_kept(self._searcher, queries, k, lambda rows, ids: self._kept[ids])


class Database:
    """The finished stages under a data directory and all changes since.

    Attributes:
      data: the data directory.
      table: the build's ChunkTable.
      tokens, document_ids: its columns, with those of the additions behind them.
      version: fingerprint of build and changes, 16 digits; the build's own where nothing was changed.
      removed: Bool[np.ndarray, "N"], chunks of the build that no search returns.
      directories, tables, first: of the build and of each addition, the chunk tables, and the id of the first chunk of each.
      tombstones: what was removed.
      rerank: "none" or "bm25".
      text: the chunks as a model reads them: `tokens`, or these in the tokens of `reader`.

    Args:
      reader: the data directory of the build that reads it, if that is another one. Where its tokenizer or chunk length is
        another, `text`, `value` and `pieces` are in its tokens (`data_pipeline.database.retokenized`).

    Raises:
      StageError: stages that are missing or do not fit one another, a damaged list of what was removed, or neighbors that
        are re-ranked by the tokens of another tokenizer than the reader's.
    """

    def __init__(self, data: Path, reader: Path | None = None):
        self.data = Path(data)
        self.tombstones: Removed = read_removed(data)
        self.directories = [self.data, *addition_directories(data)]
        self.tables = [ChunkTable(directory / "chunks", verify=True) for directory in self.directories]
        self.table = self.tables[0]
        self.tokens, self.document_ids = (
            ShardedRows([path for table in self.tables for path in getattr(table, name).paths])
            for name in ("tokens", "document_ids")
        )
        self.first = np.cumsum([0, *(len(table) for table in self.tables)])
        self.removed = self.tombstones.rows(self.table)
        manifest = read_manifest(self.data / "neighbors", "neighbors", verify=False)
        neighbors, self.rerank = manifest.fingerprint, manifest.config["rerank"]
        added = [read_manifest(path / "index", "index", verify=False).fingerprint for path in self.directories[1:]]
        gone = [sorted(self.tombstones.documents), sorted(self.tombstones.subsets)]
        changed = bool(added or gone[0] or gone[1])
        self.version = (fingerprint([neighbors, added, gone]) if changed else neighbors)[:16]
        ranges = [
            (0, self.table.database_chunks),
            *zip(self.first[1:-1].tolist(), self.first[2:].tolist(), strict=True),
        ]
        self.text = DatabaseText(self.tokens, self.document_ids, tuple(ranges))
        if reader is not None and written_as(self.data) != written_as(reader):
            self._read_by(Path(reader))
        self._searchers: list[Searcher] = []
        self._vectors = self._words = None
        self._provenances: dict[int, Provenance] = {}

    def _read_by(self, reader: Path) -> None:
        if self.rerank != "none":
            raise StageError(
                f"The neighbors of {self.data} are re-ranked by {self.rerank}, which compares tokens, but {reader} has another "
                f"tokenizer. Search a database that was built with config.data.rerank=none."
            )
        tokenizers = Tokenizer(self.data / "tokenizer"), Tokenizer(reader / "tokenizer")
        length = written_as(reader)[1]
        self.text = replace(self.text, tokens=Retokenized(self.tokens, self.document_ids, *tokenizers, length))

    def facts(self) -> dict:
        """The entries of a report: version, additions, documents and chunks removed."""
        removed = [self.tombstones.rows(table)[: table.database_chunks] for table in self.tables]
        documents = [
            np.unique(table.document_ids[: table.database_chunks][gone])
            for table, gone in zip(self.tables, removed, strict=True)
        ]
        return {
            "version": self.version,
            "added_chunks": int(self.first[-1] - self.first[1]),
            "additions": len(self.tables) - 1,
            "removed_documents": sum(len(ids) for ids in documents),
            "removed_chunks": int(sum(gone.sum() for gone in removed)),
        }

    def describe(self) -> str:
        facts = self.facts()
        return (
            f"database version {self.version} ({facts['additions']} additions of {facts['added_chunks']:,} chunks, "
            f"{facts['removed_documents']:,} documents removed)"
        )

    def _open(self) -> None:
        if self._searchers:
            return
        for directory, table in zip(self.directories, self.tables, strict=True):
            kept = ~self.tombstones.rows(table)[: table.database_chunks]
            self._searchers.append(KeptSearcher(open_searcher(directory / "index", directory / "embeddings"), kept))
        if self.rerank == "bm25":
            self._words = Lexical(self.data / "lexical")

    def __len__(self) -> int:
        """The number of chunks that a search may return."""
        self._open()
        return sum(len(searcher) for searcher in self._searchers)

    def search(
        self, queries: Float32[np.ndarray, "N E"], k: int
    ) -> tuple[Int64[np.ndarray, "N K"], Float32[np.ndarray, "N K"]]:
        """See `Searcher.search`; ids are those of all chunks."""
        self._open()
        ids = np.full((len(queries), k), PADDING, np.int64)
        distances = np.full((len(queries), k), np.inf, np.float32)
        for searcher, first in zip(self._searchers, self.first[:-1], strict=True):
            found, measured = searcher.search(queries, k)
            merge_rows(ids, distances, np.where(found == PADDING, PADDING, found + first), measured)
        return ids, distances

    def nearest(
        self,
        queries: Float32[np.ndarray, "N E"],
        tokens: Int[np.ndarray, "N M"],
        query_documents: Int64[np.ndarray, "N"],
        k: int,
    ) -> tuple[Int64[np.ndarray, "N K"], Float32[np.ndarray, "N K"]]:
        """The k nearest chunks of other documents than the query's (-1: of none), re-ranked where the build does so.

        Args:
          tokens: of the queries; BM25 ignores BOS and EOS.
        """
        self._open()
        candidates = k if self._words is None else RERANKED * k
        found = find_neighbors(self, queries, query_documents, self.document_ids, candidates)
        return found if self._words is None else self._words.rerank(tokens, *found, self.tokens, k)

    def neighbors(self, ids: Int64[np.ndarray, "N"], k: int):
        """The current k nearest of chunks of the build, searched as `build_neighbors` does."""
        return self.nearest(self.vectors(ids), self.tokens[ids], self.document_ids[ids], k)

    def vectors(self, ids: Int64[np.ndarray, "N"]) -> Float32[np.ndarray, "N E"]:
        """The vectors of chunks of build and additions."""
        if self._vectors is None:
            self._vectors = [EmbeddingTable(place / "embeddings", verify=False) for place in self.directories]
        found = np.empty((len(ids), self._vectors[0].width), np.float32)
        for first, end, rows in zip(self.first[:-1], self.first[1:], self._vectors, strict=True):
            here = (ids >= first) & (ids < end)
            found[here] = rows[ids[here] - first]
        return found

    def value(self, ids: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape R"]:
        """[N, F] of chunks of build and additions; see `data_pipeline.chunks.values`."""
        return self.text.value(ids)

    def _part(self, chunk: int) -> tuple[Provenance, int]:
        if not 0 <= chunk < self.first[-1]:
            raise ValueError(f"{chunk} is not a chunk of {self.data}: ids run from 0 to {self.first[-1] - 1}.")
        number = int(np.searchsorted(self.first, chunk, side="right")) - 1
        if number not in self._provenances:
            directory = self.directories[number]
            self._provenances[number] = Provenance(
                directory / "documents", self.data / "tokenizer", self.tables[number]
            )
        return self._provenances[number], int(chunk - self.first[number])

    def document(self, chunk: int):
        """The chunk's `data_pipeline.documents.stage.Document`."""
        provenance, row = self._part(chunk)
        return provenance.document(row)

    def pieces(self, chunk: int) -> list[bytes]:
        """See `Provenance.pieces`."""
        if isinstance(self.text.tokens, Retokenized):
            tokens = self.text.tokens[np.array(chunk)]
            return [self.text.tokens.read.pieces[token] for token in tokens[tokens != PADDING].tolist()]
        provenance, row = self._part(chunk)
        return provenance.pieces(row)
