"""Interfaces of what evaluation reads: a set of text, and the neighbors of its chunks from one database.

`data_pipeline.evaluation.sets` opens both; any object with these attributes works. Tables are memory-mapped, and
evaluation reads the rows of a few documents at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Int64


@dataclass(frozen=True)
class DocumentFacts:
    """The properties of a document besides its tokens."""

    name: str
    bytes: int  # of its text in UTF-8
    words: int = 0  # in the original tokenization of the set; 0: the protocol counts none
    scored: tuple[tuple[int, int], ...] = ()  # byte ranges of the text that are scored; (): all of it


class Neighbors(Protocol):
    """The neighbors of the chunks of one set from one database.

    Attributes:
      fingerprint: changes iff the neighbors do.
      stored: K, how many each chunk has at most.
      facts: plain JSON for the report (size of the database, its recall, what was added and removed).
    """

    fingerprint: str
    stored: int
    facts: Mapping[str, Any]

    def find(
        self, rows: Int64[np.ndarray, "*shape"]
    ) -> tuple[Int64[np.ndarray, "*shape K"], Float32[np.ndarray, "*shape K"]]:
        """Ids and squared distances of the neighbors of chunks of the set, nearest first; -1 and +inf for a missing one."""
        ...

    def value(self, ids: Int64[np.ndarray, "*shape"]) -> Int32[np.ndarray, "*shape R"]:
        """[N, F] of database chunks; a row of -1 for id -1."""
        ...

    def draw(
        self, rows: Int64[np.ndarray, "*shape"], counts: Int[np.ndarray, "*shape"], width: int, seed: int
    ) -> Int64[np.ndarray, "*shape K"]:
        """`counts` distinct random chunks of the database for each row, padded with -1; a function of seed and row alone."""
        ...

    def document(self, chunk: int) -> Any:
        """The document (`subset`, `name`) of a database chunk."""
        ...

    def pieces(self, chunk: int) -> list[bytes]:
        """The bytes of each token of a database chunk."""
        ...


class TextSet(Protocol):
    """A set of text to evaluate: D documents, each of which owns consecutive chunks.

    Attributes:
      name: "held_out" is the build's own held-out split.
      protocol: a name in `retro_jax.evaluate.protocols`.
      fingerprint: changes iff what is scored changes.
      chunk_length: M.
      edges: document d has the chunk rows [edges[d], edges[d + 1]), counted from 0 in this set.
      facts: plain JSON for the report.
    """

    name: str
    protocol: str
    fingerprint: str
    chunk_length: int
    subset_names: Sequence[str]
    edges: Int64[np.ndarray, "D+1"]
    subsets: Int32[np.ndarray, "D"]
    document_ids: Int64[np.ndarray, "D"]
    facts: Mapping[str, Any]

    def tokens(self, rows: Int64[np.ndarray, "*shape"]) -> Int32[np.ndarray, "*shape M"]:
        """Tokens of chunks; -1 after a document's end."""
        ...

    def documents(self, start: int, stop: int) -> Sequence[DocumentFacts]: ...

    def pieces(self, row: int) -> list[bytes]:
        """The bytes of each token of a chunk of the set."""
        ...

    def neighbors(
        self, k: int = 0, share: float = 1.0, database: str = "", without: frozenset[int] = frozenset()
    ) -> Neighbors:
        """Up to k neighbors (0: all stored ones) from a nested share of a database ("": the build's), without some documents.

        Raises:
          ValueError: none are stored; the message has the command that searches them.
        """
        ...

    def overlapping_documents(self, threshold: float) -> frozenset[int]:
        """Ids of training documents that contain at least this share of the 13-grams of a document of the set."""
        ...

    def contaminated(self, threshold: float) -> Bool[np.ndarray, "D"]:
        """Which documents have at least this share of their 13-grams in one training document."""
        ...
