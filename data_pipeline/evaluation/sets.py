"""The evaluation sets of a data directory as `retro evaluate` reads them (`retro_jax.evaluate.sets`).

held_out = open_set(data, "held_out")       the build's own held-out split
wikitext = open_set(data, "wikitext")       a set that `retro join` made
wikitext.neighbors(k=20, share=0.1)         stored neighbors, or an error with the command to run
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32, Int64

from data_pipeline.chunks import ChunkTable
from data_pipeline.database.provenance import Provenance
from data_pipeline.documents.stage import read_documents_manifest, read_records
from data_pipeline.evaluation import contamination
from data_pipeline.evaluation.neighbors import SetNeighbors, open_neighbors
from data_pipeline.evaluation.tables import HELD_OUT, Tables, check_name, open_tables, set_directory, set_names
from data_pipeline.stages.run import StageError, fingerprint
from retro_jax.config import SourceConfig
from retro_jax.core.dimensions import PADDING
from retro_jax.core.files import read_json
from retro_jax.data.rows import first_rows
from retro_jax.evaluate.sets import DocumentFacts


def open_set(data: Path, name: str) -> "StoredSet":
    """The set of a name, "held_out" for the build's own held-out split.

    Raises:
      StageError: no such set, or an unfinished or damaged one.
    """
    return StoredSet(open_tables(Path(data), name))


def list_sets(data: Path) -> list[str]:
    """Names of the sets that are joined completely, without "held_out"."""
    return [name for name in set_names(data) if (set_directory(data, name) / FINISHED).exists()]


def open_sets(data: Path, names: Sequence[str] = ()) -> "dict[str, StoredSet]":
    """Sets by name; without names the held-out split, where there is one, and every joined set.

    Raises:
      StageError: no such set, or none at all.
    """
    data = Path(data)
    if not names:
        chunks = ChunkTable(data / "chunks")
        names = [HELD_OUT] * (chunks.database_chunks < len(chunks)) + list_sets(data)
    return {name: open_set(data, name) for name in names or [HELD_OUT]}


FINISHED = "set.json"  # of a set: what it was made from, written after its last stage


class StoredSet:
    """A set whose stages are finished, mapped into memory.

    Attributes:
      name: "held_out", or that of a joined set.
      protocol: how it is scored.
      fingerprint: changes iff what is scored changes.
      chunk_length: M.
      edges: Int64["D+1"], document d has the chunk rows [edges[d], edges[d + 1]), counted from 0 in this set.
      subsets: Int32["D"], numbers into `subset_names`.
      document_ids: Int64["D"].
      facts: plain JSON for a report.
      tables: the stages that it is read from.
    """

    def __init__(self, tables: Tables):
        self.tables, chunks = tables, tables.chunks
        self.name, self.protocol, self.chunk_length = tables.name, tables.protocol, chunks.chunk_length
        self.fingerprint = fingerprint([tables.protocol, tables.first, chunks.fingerprint])
        self.subset_names: tuple[str, ...] = chunks.subset_names
        owners = chunks.document_ids[tables.first : len(chunks)]
        first = first_rows(owners)
        self.edges = np.append(first, len(owners)).astype(np.int64)
        self.document_ids = owners[first]
        self.subsets = chunks.subsets[tables.first + first].astype(np.int32)
        self._provenance = lru_cache(maxsize=1)(self._open_provenance)

    def __len__(self) -> int:
        """How many documents it has."""
        return len(self.document_ids)

    @property
    def facts(self) -> dict:
        size = tables_bytes(self.tables)
        return {
            "documents": len(self),
            "bytes": int(size.sum()),
            "chunks": int(self.edges[-1]),
            "protocol": self.protocol,
            "dropped": dropped(self.tables),
        }

    def tokens(self, rows: Int64[np.ndarray, "*shape"]) -> Int32[np.ndarray, "*shape M"]:
        """Tokens of chunks; -1 after a document's end, and for row -1."""
        rows = np.asarray(rows)
        there = rows != PADDING
        found = self.tables.chunks.tokens[np.where(there, rows, 0) + self.tables.first]
        return np.where(there[..., None], found, PADDING).astype(np.int32)

    def documents(self, start: int, stop: int) -> list[DocumentFacts]:
        """Facts of documents [start, stop)."""
        return list(self._read(start, stop))

    def _read(self, start: int, stop: int) -> Iterator[DocumentFacts]:
        first = self.tables.first_document
        for record in read_records(self.tables.documents.lines(first + start, first + stop)):
            scored = tuple(tuple(pair) for pair in record.get("scored", ()))
            yield DocumentFacts(record["name"], len(record["text"].encode()), record.get("words", 0), scored)

    def document(self, row: int):
        """The document (`data_pipeline.documents.stage.Document`) of a chunk."""
        return self._provenance().document(self.tables.first + row)

    def pieces(self, row: int) -> list[bytes]:
        """The bytes of each token of a chunk, empty ones for BOS and EOS; joined they are the chunk's text."""
        return self._provenance().pieces(self.tables.first + row)

    def _open_provenance(self) -> Provenance:
        tables = self.tables
        return Provenance(tables.base / "documents", tables.data / "tokenizer", tables.chunks)

    def neighbors(
        self, k: int = 0, share: float = 1.0, database: str = "", without: frozenset[int] = frozenset()
    ) -> SetNeighbors:
        """Up to k stored neighbors of every chunk; a stage with more serves for fewer.

        Args:
          k: how many; 0: as many as are stored.
          share: of the documents of the database, nested.
          database: the data directory of another database of the same encoder; "": the set's own.
          without: ids of documents that are left out of the database (`overlapping_documents`).

        Raises:
          StageError: none are stored (with the command that searches them), or a database that does not match.
        """
        return open_neighbors(self.tables, k, share, database, frozenset(without))

    def contaminated(self, threshold: float) -> Bool[np.ndarray, "D"]:
        """Which documents have at least this share of their 13-grams in one training document.

        Raises:
          StageError: the set was not compared with all training documents, with the command that does.
        """
        return contamination.contaminated(self.tables, threshold)

    def overlapping_documents(self, threshold: float) -> frozenset[int]:
        """Ids of the training documents that hold at least this share of the 13-grams of a document of the set."""
        return contamination.overlapping_documents(self.tables, threshold)


def tables_bytes(tables: Tables) -> Int64[np.ndarray, "D"]:
    """UTF-8 bytes of each document of a set."""
    return tables.documents.bytes[tables.first_document :]


def dropped(tables: Tables) -> dict[str, int]:
    """Records of a joined set that were left out, by reason."""
    if tables.name == HELD_OUT:
        return {}
    total: dict[str, int] = {}
    for subset in read_documents_manifest(tables.base / "documents").counts["subsets"].values():
        for reason, count in subset["dropped"].items():
            total[reason] = total.get(reason, 0) + count
    return total


def finished_source(data: Path, name: str) -> SourceConfig:
    """The source that a set was joined from.

    Raises:
      StageError: no such set, or one that is not finished.
    """
    check_name(name)
    path = set_directory(data, name) / FINISHED
    if not path.exists():
        there = ", ".join([HELD_OUT, *list_sets(data)])
        raise StageError(
            f"There is no finished set {name!r} in {data} (there is: {there}), and no text was given for it. Give --path=FILES."
        )
    facts = read_json(path, "Run `retro join` with --path again: it writes the file again.", keys=("source",))
    return SourceConfig(**facts["source"])
