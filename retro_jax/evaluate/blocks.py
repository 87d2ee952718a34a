"""Blocks: consecutive documents of a set, which of their tokens are scored, and the windows that score them.

Evaluation proceeds block by block, so its memory does not grow with the set, and a killed run continues with the first
missing block. Block boundaries depend on the set alone, not on batch size, devices or conditions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

from retro_jax.core.dimensions import PADDING, check_ids
from retro_jax.data.batches import segments
from retro_jax.data.joined import pack_validation
from retro_jax.data.manifests import StageError
from retro_jax.data.rows import first_rows
from retro_jax.evaluate.protocols.spans import scored_tokens
from retro_jax.evaluate.sets import DocumentFacts, TextSet

TOKENS = 1 << 17  # in a block, approximately
ANOTHER = "The tokenizer or the documents come from another build; run `retro build` into another --workdir."


def block_ranges(edges: Int64[np.ndarray, "D+1"], chunk_length: int, tokens: int = TOKENS) -> list[tuple[int, int]]:
    """Ranges [start, stop) of documents; a block ends with the document that brings it to `tokens`."""
    ranges, start = [], 0
    while start < len(edges) - 1:
        wanted = edges[start] + -(-tokens // chunk_length)
        stop = max(start + 1, int(np.searchsorted(edges, wanted)))
        ranges.append((start, min(stop, len(edges) - 1)))
        start = ranges[-1][1]
    return ranges


@dataclass(frozen=True)
class Block:
    """The tables of consecutive documents with N chunks in all, and the windows over them.

    Column i of a table belongs to the token at position i of its chunk, whichever window predicts it.
    """

    start: int  # number of the first document in the set
    first: int  # row of the first chunk in the set
    facts: tuple[DocumentFacts, ...]
    tokens: Int32[np.ndarray, "N M"]
    targets: Int32[np.ndarray, "N M"]  # the next token of the same document; -1 at its end
    documents: Int64[np.ndarray, "N"]  # of each chunk, counted from 0 in the block
    scored: Bool[np.ndarray, "N M"]
    bytes: Int64[np.ndarray, "N M"]  # scored UTF-8 bytes of each token
    windows: Int64[np.ndarray, "S C"]  # chunks of each sequence, counted from `first`; padded with -1
    marks: Bool[np.ndarray, "S C"]  # chunks whose positions are scored in this window

    def inputs(self, part: slice, size: int) -> tuple[Int64[np.ndarray, "B C"], Mapping[str, np.ndarray]]:
        """The chunks of a part of the windows, padded to `size` sequences, and their tokens, segments and targets.

        A target is -1 where it is not scored or is predicted in another window.
        """
        rows = np.full((size, self.windows.shape[1]), PADDING, np.int64)
        marks = np.zeros(rows.shape, bool)
        chosen = self.windows[part]
        rows[: len(chosen)], marks[: len(chosen)] = chosen, self.marks[part]
        real = rows != PADDING
        shape = (size, -1)

        def gather(table):
            return np.where(real[:, :, None], table[np.where(real, rows, 0)], PADDING).reshape(shape)

        counted = np.where(self.following_scored & (self.targets != PADDING), self.targets, PADDING)
        targets = np.where(marks[:, :, None].repeat(self.tokens.shape[1], 2).reshape(shape), gather(counted), PADDING)
        numbers = np.where(real, self.documents[np.where(real, rows, 0)], PADDING)
        return rows, {
            "tokens": gather(self.tokens).astype(np.int32),
            "segments": np.stack([segments(row) for row in numbers]),
            "targets": targets.astype(np.int32),
        }

    @property
    def following_scored(self) -> Bool[np.ndarray, "N M"]:
        """Whether the token after each position is scored."""
        flat = self.scored.reshape(-1)
        return np.append(flat[1:], False).reshape(self.scored.shape)

    def places(self, rows: Int64[np.ndarray, "B C"]) -> Int64[np.ndarray, "B C M"]:
        """The index of each position's target in the flattened tables: one past the position itself."""
        length = self.tokens.shape[1]
        return rows[:, :, None] * length + np.arange(length) + 1

    def chunk_sums(self, table: np.ndarray) -> np.ndarray:
        """Sums a table over the tokens of each chunk, in float64 or int64."""
        return table.sum(axis=1, dtype=np.float64 if table.dtype.kind == "f" else np.int64)

    def by_document(self, chunk_values: np.ndarray) -> np.ndarray:
        """Sums over the chunks of each document."""
        return np.bincount(self.documents, weights=chunk_values, minlength=len(self.facts))


def open_block(
    text: TextSet, start: int, stop: int, token_bytes: Int[np.ndarray, "V"], chunks: int, overlap: float
) -> Block:
    """Reads the documents [start, stop) of a set.

    Args:
      token_bytes: UTF-8 bytes of each token of the vocabulary.
      chunks: C, the chunks of a window.
      overlap: share of a window that is context only (paper 5.1: 0.5).

    Raises:
      StageError: a document whose tokens do not add up to the bytes of its text.
    """
    first, edges = int(text.edges[start]), text.edges[start : stop + 1] - text.edges[start]
    tokens = text.tokens(np.arange(first, text.edges[stop]))
    what = (
        f"Tokens of the evaluation set {text.name!r} in documents {start} to {stop}, for the tokenizer's table of bytes"
    )
    check_ids(what, tokens, len(token_bytes), ANOTHER)
    documents = np.repeat(np.arange(stop - start), np.diff(edges))
    facts = tuple(text.documents(start, stop))
    words = text_tokens(tokens, documents)
    sizes = token_bytes[np.maximum(tokens, 0)].astype(np.int64) * words
    _check_bytes(text, start, facts, np.bincount(documents, sizes.sum(axis=1), len(facts)))
    scored, scored_bytes = _scored(words, sizes, edges, facts)
    flat = np.append(tokens.reshape(-1)[1:], PADDING).reshape(tokens.shape).copy()
    flat[edges[1:] - 1, -1] = PADDING  # the next document's first token is not a target
    windows, marks = _windows(edges, text.subsets[start:stop], chunks, overlap)
    return Block(start, first, facts, tokens, flat, documents, scored, scored_bytes, windows, marks)


def text_tokens(tokens: Int[np.ndarray, "N M"], documents: Int[np.ndarray, "N"]) -> Bool[np.ndarray, "N M"]:
    """Which tokens of complete documents are text: all but BOS (the first), EOS (the last) and padding."""
    text = tokens != PADDING
    starts = first_rows(documents)
    ends = np.append(starts[1:], len(tokens)) - 1
    text[starts, 0] = False
    text[ends, (tokens[ends] != PADDING).sum(axis=1) - 1] = False
    return text


def _check_bytes(text: TextSet, start: int, facts, found: np.ndarray) -> None:
    sizes = np.array([document.bytes for document in facts], np.int64)
    if (wrong := np.flatnonzero(found != sizes)).size:
        one = wrong[0]
        raise StageError(
            f"The tokens of a document must add up to the bytes of its text, but document {start + one} of the evaluation set "
            f"{text.name!r} ({facts[one].name}) has {int(found[one]):,} bytes in its tokens and {sizes[one]:,} in its text. {ANOTHER}"
        )


def _scored(words, sizes, edges, facts) -> tuple[Bool[np.ndarray, "N M"], Int64[np.ndarray, "N M"]]:
    """Which tokens are scored, and how many of their bytes: all, or those with bytes in the protocol's ranges."""
    scored, counted = words.copy(), sizes.copy()
    for number, document in enumerate(facts):
        if document.scored:
            rows = slice(edges[number], edges[number + 1])
            scored[rows], counted[rows] = scored_tokens(sizes[rows], document.scored)
    return scored, counted


def _windows(edges, subsets, chunks: int, overlap: float):
    """The windows of a block's documents, subset by subset, packed as the build packs its held-out split."""
    ids, marks = [np.empty((0, chunks), np.int64)], [np.empty((0, chunks), bool)]
    for number in np.unique(subsets):
        mine = np.flatnonzero(subsets == number)
        documents = [(int(edges[one]), int(edges[one + 1] - edges[one])) for one in mine]
        packed, scored = pack_validation(documents, chunks, overlap)
        ids.append(packed)
        marks.append(scored)
    return np.concatenate(ids), np.concatenate(marks)
