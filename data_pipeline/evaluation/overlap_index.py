"""Overlap of a set of documents with training documents: shared 13-grams of words, and shared runs of words.

An inverted index of the set's grams is kept in memory, about 30 bytes for each word of the set. Each training document
is compared with it once. Words and grams are those of near duplicates (`data_pipeline.documents.near_duplicates`):
lower case, without punctuation. A text of fewer than 13 words is one gram.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from data_pipeline.documents.near_duplicates import GRAM, MULTIPLIER, WORD, gram_sequence, word_hashes


@dataclass(frozen=True)
class Shared:
    """The overlap of one training document with each document of a set that shares a gram with it.

    Attributes:
      documents: Int64["D"], numbers in the set.
      containment: Float64["D"], the share of the document's different grams that are in the training document.
      jaccard: Float64["D"], shared different grams over those of both.
      runs: Int64["D"], words of the longest common run where it is longer than any before, else 0.
    """

    documents: Int64[np.ndarray, "D"]
    containment: Float64[np.ndarray, "D"]
    jaccard: Float64[np.ndarray, "D"]
    runs: Int64[np.ndarray, "D"]


class OverlapIndex:
    """The grams of a set of texts, to compare training texts with."""

    def __init__(self, texts: Iterable[str]):
        words = [word_hashes(text) for text in texts]
        grams = [gram_sequence(each) for each in words]
        self._first = np.cumsum([0, *map(len, grams)])  # of a document's grams among all
        self._first_word = np.cumsum([0, *map(len, words)])
        self._words = np.concatenate(words)
        positions = np.concatenate(grams)
        self._order = np.argsort(positions, kind="stable").astype(np.int64)
        self._sorted = positions[self._order]
        owners = np.repeat(np.arange(len(grams)), np.diff(self._first))
        # Only the first occurrence of a gram in its document counts, so that each distinct gram counts once.
        self._owner = owners[self._order].astype(np.int32)
        again = (self._sorted[1:] == self._sorted[:-1]) & (self._owner[1:] == self._owner[:-1])
        self._counts = np.concatenate([[True], ~again])
        self._sizes = np.bincount(self._owner[self._counts], minlength=len(grams))

    def __len__(self) -> int:
        return len(self._sizes)

    def compare(self, text: str, longest: Int64[np.ndarray, "D"]) -> Shared:
        """The overlap of a training text with the set.

        Args:
          longest: words of each document's longest run so far; changed in place. Only longer runs are searched.
        """
        words = word_hashes(text)
        grams = np.unique(gram_sequence(words))
        places = self._places(grams)
        counted = places[self._counts[places]]
        documents, shared = np.unique(self._owner[counted], return_counts=True)
        sizes = self._sizes[documents]
        runs = np.zeros(len(documents), np.int64)
        for document, start, stop in self._runs(self._order[places], self._owner[places], longest):
            length = common_run(self._words[start:stop], words, floor=int(longest[document]))
            if length > longest[document]:
                longest[document] = length
                runs[np.searchsorted(documents, document)] = length
        return Shared(documents.astype(np.int64), shared / sizes, shared / (sizes + len(grams) - shared), runs)

    def _places(self, grams: UInt64[np.ndarray, "G"]) -> Int64[np.ndarray, "P"]:
        """Places in the sorted list of grams that are among `grams`."""
        start, stop = np.searchsorted(self._sorted, grams), np.searchsorted(self._sorted, grams, side="right")
        there = stop > start
        start, sizes = start[there], (stop - start)[there]
        ends = np.cumsum(sizes)
        return np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - (ends - sizes), sizes)

    def _runs(self, positions, owners, longest) -> Iterator[tuple[int, int, int]]:
        """(document, first word, end) of each stretch of shared grams that is longer than the document's longest run."""
        order = np.argsort(positions)
        positions, owners = positions[order], owners[order]
        breaks = (np.diff(positions) != 1) | (np.diff(owners) != 0)
        firsts = np.concatenate([[0], np.flatnonzero(breaks) + 1]) if len(positions) else np.zeros(0, np.int64)
        for first, stop in zip(firsts.tolist(), [*firsts[1:].tolist(), len(positions)], strict=False):
            document = int(owners[first])
            word = int(positions[first] - self._first[document] + self._first_word[document])
            length = min(GRAM, int(self._first_word[document + 1] - self._first_word[document]))
            end = word + stop - first + length - 1
            if end - word > longest[document]:
                yield document, word, end


def common_run(one: UInt64[np.ndarray, "A"], other: UInt64[np.ndarray, "B"], floor: int = 0) -> int:
    """Words of the longest run that two texts share; `floor` if none is longer.

    If a run of some length is shared, so is every shorter one, so the length is found by binary search.
    """
    low, high = floor, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if np.isin(windows(one, middle), windows(other, middle)).any():
            low = middle
        else:
            high = middle - 1
    return low


def windows(words: UInt64[np.ndarray, "N"], length: int) -> UInt64[np.ndarray, "G"]:
    """A hash of each run of `length` words, in log2(length) steps: each combines hashes of half the length."""
    found, size = words, 1
    while 2 * size <= length:
        found, size = _pair(found[:-size], found[size:]), 2 * size
    rest = length - size  # two overlapping windows cover a length that is not a power of two
    return _pair(found[: len(found) - rest], found[rest:]) if rest else found


def _pair(left, right) -> UInt64[np.ndarray, "G"]:
    mixed = (left ^ (left >> np.uint64(31))) * MULTIPLIER + right
    return (mixed ^ (mixed >> np.uint64(29))) * MULTIPLIER


def compare_slow(document: str, training: str) -> tuple[float, float, int]:
    """(containment, Jaccard, words of the longest run of 13 or more) of one pair, by sets of tuples of words and by trying
    every pair of places; the reference that tests compare with. A run counts where the texts share a gram."""

    def tuples(text: str) -> tuple[list[str], set[tuple[str, ...]]]:
        words = WORD.findall(text.lower()) or [text]
        size = min(GRAM, len(words))
        return words, {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}

    (mine, one), (theirs, other) = tuples(document), tuples(training)
    shared, longest = one & other, 0
    for i in range(len(mine)):
        for j in range(len(theirs)):
            length = 0
            while i + length < len(mine) and j + length < len(theirs) and mine[i + length] == theirs[j + length]:
                length += 1
            longest = max(longest, length)
    return len(shared) / len(one), len(shared) / len(one | other), longest if shared else 0
