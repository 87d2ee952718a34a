"""The chunks of a database in the tokens of another tokenizer than it was built with, made when they are read.

A row holds the text of one chunk: the characters whose first byte is in it, with BOS before the first chunk of a document
and EOS behind the last. It is cut after M tokens of the reading tokenizer, or padded with -1. A neighbor is two rows, [N, F],
so N begins at 0 and F at M as in every other database; of a longer N or F the end is missing, of a shorter one the rest
is masked. Nothing is stored: a changed database needs no other files, and reading costs a tokenization.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from data_pipeline.tokens import Tokenizer
from retro_jax.core.dimensions import PADDING

CONTINUING = bytes(range(0x80, 0xC0))  # bytes of UTF-8 that begin no character
LONGEST = 2  # further chunks that a character may reach into: three bytes after the first, in chunks of two tokens


@dataclass(frozen=True)
class Retokenized:
    """A table [N, M] like `ChunkTable.tokens`; index it with an integer array of any shape.

    Attributes:
      tokens: Int["N M"], the chunks in the tokens of `written`, indexable by rows.
      document_ids: Int64["N"], indexable by rows.
      written: the tokenizer of the database.
      read: the tokenizer of the model.
      length: M, tokens of a row.
    """

    tokens: Any
    document_ids: Any
    written: Tokenizer
    read: Tokenizer
    length: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.tokens), self.length

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Int[np.ndarray, "*shape"]) -> Int32[np.ndarray, "*shape M"]:
        rows = np.asarray(rows)
        wanted, places = np.unique(rows, return_inverse=True)
        found = np.full((len(wanted), self.length), PADDING, np.int32)
        for row, ids in zip(found, self.encoded(wanted), strict=True):
            kept = ids[: self.length]
            row[: len(kept)] = kept
        return found[places.reshape(rows.shape)]

    def encoded(self, rows: Int[np.ndarray, "n"]) -> list[list[int]]:
        """All tokens of the text of each chunk, with BOS and EOS, however many they are."""
        texts, opens, closes = self._texts(rows)
        bos, eos = [self.read.bos], [self.read.eos]
        return [
            bos * bool(first) + ids + eos * bool(last)
            for ids, first, last in zip(self.read.encode_all(texts), opens, closes, strict=True)
        ]

    def _texts(self, rows: Int[np.ndarray, "n"]) -> tuple[list[str], Sequence[bool], Sequence[bool]]:
        """The text of each chunk, and whether it is the first and the last one of its document."""
        owners, last = self.document_ids[rows], len(self) - 1
        parts = []
        for ahead in range(LONGEST + 1):
            at = np.minimum(rows + ahead, last)
            same = (rows + ahead <= last) & (self.document_ids[at] == owners)
            parts.append(np.where(same[:, None], self.tokens[at], PADDING))
        opens = (rows == 0) | (self.document_ids[np.maximum(rows - 1, 0)] != owners)
        closes = (rows == last) | (self.document_ids[np.minimum(rows + 1, last)] != owners)
        return [self._text(*chunks) for chunks in zip(*parts, strict=True)], opens, closes

    def _text(self, own: Int[np.ndarray, "M"], *following: Int[np.ndarray, "M"]) -> str:
        """The characters that begin in a chunk. A reading tokenizer without a token for one of them leaves it out."""
        content = self._bytes(own).lstrip(CONTINUING)
        if content:
            ahead = b"".join(map(self._bytes, following))
            content += ahead[: len(ahead) - len(ahead.lstrip(CONTINUING))]
        text, lacking = content.decode(), self.read.lacking
        if lacking.intersection(content):
            text = "".join(letter for letter in text if not lacking.intersection(letter.encode()))
        return text

    def _bytes(self, tokens: Int[np.ndarray, "M"]) -> bytes:
        return b"".join(self.written.pieces[token] for token in tokens[tokens != PADDING].tolist())
