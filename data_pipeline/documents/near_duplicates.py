"""Near duplicates by 13-gram MinHash (paper 2.1): signatures, training documents near a held-out one, and statistics.

A gram is 13 words in a row, in lower case and without punctuation; scripts that write no spaces count letter by letter.
Signatures only propose pairs; the exact Jaccard index of the two texts' grams decides whether a document is dropped.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt32, UInt64

from retro_jax.core.progress import progress

GRAM = 13
PERMUTATIONS = 128  # of 4 bytes: a signature takes 512 bytes
SEED = 1
MISS = 1e-3  # a pair at the threshold may share no band this often; the bands are the longest that keep to it
REACH = 16  # statistics compare a document with this many others of its band; whole runs of copies would be quadratic
SAMPLE = 256  # pairs whose estimate is compared with the exact index
UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"  # Thai, Lao, Khmer, kana, Han
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

_hashes: dict[str, int] = {}


def grams(text: str) -> UInt64[np.ndarray, "N"]:
    """The text's different grams as 64-bit hashes, sorted; of a shorter text its words together, or else the text."""
    return np.unique(gram_sequence(word_hashes(text)))


def word_hashes(text: str) -> UInt64[np.ndarray, "N"]:
    """64-bit hashes of the words in order, at least one."""
    words = WORD.findall(text.lower()) or [text]
    if len(_hashes) > 1 << 17:  # some 15 MB
        _hashes.clear()
    return np.fromiter(map(_word_hash, words), np.uint64, len(words))


def gram_sequence(words: UInt64[np.ndarray, "N"], length: int = GRAM) -> UInt64[np.ndarray, "N"]:
    """The hashes of all runs of `length` words (or of all words, where there are fewer), in order."""
    length = min(length, len(words))
    found = np.zeros(len(words) - length + 1, np.uint64)
    for offset in range(length):
        found = found * MULTIPLIER + words[offset : offset + len(found)]
    found ^= found >> np.uint64(32)
    found *= MULTIPLIER
    return found ^ (found >> np.uint64(29))


def _word_hash(word: str) -> int:
    found = _hashes.get(word)
    if found is None:
        digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
        found = _hashes[word] = int.from_bytes(digest, "little")
    return found


def exact_jaccard(one: UInt64[np.ndarray, "A"], other: UInt64[np.ndarray, "B"]) -> float:
    """The Jaccard index of two texts' grams."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


class Signer:
    """Makes signatures; the same for the same text on every machine."""

    def __init__(self):
        import datasketch  # of the [build] extra

        self._sketch = datasketch.MinHash(PERMUTATIONS, seed=SEED, hashfunc=int, scheme="affine32")

    def __call__(self, text: str) -> UInt32[np.ndarray, "P"]:
        self._sketch.clear()
        numbers = (grams(text) >> np.uint64(32)).tolist()
        for start in range(0, len(numbers), 4096):  # the library makes a row of permutations for each
            self._sketch.update_batch(numbers[start : start + 4096])
        return self._sketch.digest().astype(np.uint32)


def band_shape(threshold: float) -> tuple[int, int]:
    """(bands, rows of each): a pair at the threshold shares no band with a probability of at most MISS."""
    fits = [rows for rows in range(1, 17) if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= MISS]
    rows = max(fits, default=1)
    return PERMUTATIONS // rows, rows


@dataclass(frozen=True)
class Near:
    """A training document and a held-out one, by their rows."""

    row: int
    near: int
    estimated: float
    exact: float


def near_held_out(
    signatures: UInt32[np.ndarray, "N P"],
    training: Int[np.ndarray, "T"],
    held_out: Int[np.ndarray, "V"],
    threshold: float,
    read: Callable[[int], str],
) -> Iterator[Near]:
    """Yields the training documents whose exact Jaccard index with a held-out one reaches the threshold.

    Only the signatures of held-out documents are kept in memory; `read(row)` gives a document's text.
    """
    import datasketch

    index = datasketch.MinHashLSH(num_perm=PERMUTATIONS, params=band_shape(threshold))

    def sketch(row: int):
        return datasketch.LeanMinHash(seed=SEED, hashvalues=signatures[row], scheme="affine32")

    for row in held_out.tolist():
        index.insert(row, sketch(row))
    margin = 4 * np.sqrt(0.25 / PERMUTATIONS)
    for row in progress(training.tolist(), description="near duplicates", unit="document"):
        candidates = np.array(sorted(index.query(sketch(row))), np.int64)
        if not len(candidates):
            continue
        estimates = (signatures[candidates] == signatures[row]).mean(axis=1)
        own = None
        for place in np.argsort(-estimates, kind="stable").tolist():
            if estimates[place] < threshold - margin:
                break
            own = grams(read(row)) if own is None else own
            near = int(candidates[place])
            exact = exact_jaccard(own, grams(read(near)))
            if exact >= threshold:
                yield Near(row, near, round(float(estimates[place]), 6), round(exact, 6))
                break


def near_copies(
    signatures: UInt32[np.ndarray, "N P"], rows: Int[np.ndarray, "D"], threshold: float
) -> tuple[Bool[np.ndarray, "D"], Int[np.ndarray, "S 2"]]:
    """The rows with another row whose estimated index reaches the threshold, and a sample of compared pairs.

    Band after band: 8 bytes a document and band are in memory. At most REACH others of a document's band are compared,
    so for long runs of copies the count of near duplicates is a lower bound; exact copies are all found.
    """
    bands, length = band_shape(threshold)
    near = np.zeros(len(rows), bool)
    sample = np.zeros((0, 2), np.int64)
    for band in progress(range(bands), description="near duplicates in the corpus", unit="band"):
        columns = signatures[rows, band * length : (band + 1) * length].astype(np.uint64)
        keys = np.zeros(len(rows), np.uint64)
        for column in columns.T:
            keys = (keys ^ column) * MULTIPLIER
        order = np.argsort(keys, kind="stable")
        for distance in range(1, min(REACH, len(rows) - 1) + 1):
            ahead, behind = order[:-distance], order[distance:]
            same = keys[ahead] == keys[behind]
            ahead, behind = ahead[same], behind[same]
            if not len(ahead):
                break
            for start in range(0, len(ahead), 4096):
                one, other = ahead[start : start + 4096], behind[start : start + 4096]
                close = (signatures[rows[one]] == signatures[rows[other]]).mean(axis=1) >= threshold
                near[one[close]] = near[other[close]] = True
            pairs = np.unique(np.stack([rows[np.minimum(ahead, behind)], rows[np.maximum(ahead, behind)]], 1), axis=0)
            sample = _smallest(np.unique(np.concatenate([sample, pairs]), axis=0))
    return near, sample


def _smallest(pairs: Int[np.ndarray, "S 2"]) -> Int[np.ndarray, "S 2"]:
    """SAMPLE of the pairs, chosen by a hash of their rows."""
    mixed = (pairs[:, 0].astype(np.uint64) * MULTIPLIER + pairs[:, 1].astype(np.uint64)) * MULTIPLIER
    return pairs[np.sort(np.argsort(mixed ^ (mixed >> np.uint64(31)), kind="stable")[:SAMPLE])]


def compare_with_exact(
    signatures: UInt32[np.ndarray, "N P"], pairs: Int[np.ndarray, "S 2"], read: Callable[[int], str]
) -> dict:
    """Errors of the estimate over the pairs, with the expected error of 128 permutations: sqrt(J (1 - J) / 128)."""
    if not len(pairs):
        return {"pairs": 0}
    exact = np.array([exact_jaccard(grams(read(int(a))), grams(read(int(b)))) for a, b in pairs])
    estimated = (signatures[pairs[:, 0]] == signatures[pairs[:, 1]]).mean(axis=1)
    error = estimated - exact
    return {
        "pairs": len(pairs),
        "mean_exact": round(float(exact.mean()), 4),
        "mean_error": round(float(error.mean()), 4),
        "rms_error": round(float(np.sqrt((error**2).mean())), 4),
        "rms_error_expected": round(float(np.sqrt((exact * (1 - exact) / PERMUTATIONS).mean())), 4),
        "largest_error": round(float(np.abs(error).max()), 4),
    }


def share_by_subset(near: Bool[np.ndarray, "D"], names: Sequence[str], subsets: Int[np.ndarray, "D"]) -> dict:
    """{subset: {"documents", "near"}}"""
    counts = {}
    for number, name in enumerate(names):
        mine = subsets == number
        if mine.any():
            counts[name] = {"documents": int(mine.sum()), "near": int(near[mine].sum())}
    return counts
