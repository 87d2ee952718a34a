"""Overlap of held-out chunks with their neighbors, and bits per byte by overlap (paper 2.6, 4.4).

r(C) is the longest run of tokens that chunk C shares with [N, F] of any of its nearest training neighbors, divided by
the number of tokens of the chunk. C_alpha is the set of chunks with r(C) <= alpha, and bpb(alpha) the bits per byte
over them: bpb(1) is the ordinary figure, and a small alpha leaves only text that the database does not contain. r(C)
depends on the retriever alone, so models without retrieval are measured at the same alphas.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from retro_jax.core.dimensions import PADDING

ALPHAS = tuple(eighth / 8 for eighth in range(1, 9))  # 12.5% is 8 of the paper's 64 tokens
CELLS = 8_000_000  # of the tables that are filled at the same time


def longest_common_runs(chunks: Int[np.ndarray, "N M"], neighbors: Int[np.ndarray, "N K R"]) -> Int[np.ndarray, "N"]:
    """Length of the longest contiguous run of tokens that each chunk shares with any of its neighbors.

    A negative token (padding, a missing neighbor) matches nothing. The textbook table, length[i, j] =
    length[i-1, j-1] + 1 where token i equals token j, filled row by row for all chunks and neighbors at once.
    """
    count, stored, retrieved = neighbors.shape
    longest = np.zeros(count, np.int64)
    block = max(1, CELLS // max(1, stored * retrieved))
    for start in range(0, count, block):
        chunk, neighbor = chunks[start : start + block], neighbors[start : start + block]
        row = np.zeros(neighbor.shape, np.int16)
        best = np.zeros(neighbor.shape, np.int16)
        for token in chunk.T:
            token = token[:, None, None]
            before = np.zeros_like(row)
            before[:, :, 1:] = row[:, :, :-1]
            row = np.where((neighbor == token) & (token >= 0), before + 1, 0).astype(np.int16)
            np.maximum(best, row, out=best)
        longest[start : start + block] = best.reshape(len(best), -1).max(axis=1, initial=0)
    return longest


def longest_common_run_slow(chunk: Sequence[int], neighbor: Sequence[int]) -> int:
    """The same for one pair, by trying every run of the chunk; the reference that tests compare with."""
    longest = 0
    for start in range(len(chunk)):
        for end in range(start + 1, len(chunk) + 1):
            run = list(chunk[start:end])
            if min(run) < 0:
                continue
            if any(list(neighbor[at : at + len(run)]) == run for at in range(len(neighbor) - len(run) + 1)):
                longest = max(longest, len(run))
    return longest


def overlaps(
    chunks: Int[np.ndarray, "N M"], neighbors: Int[np.ndarray, "N K R"], token_bytes: Int[np.ndarray, "V"]
) -> Float[np.ndarray, "N"]:
    """r(C) in [0, 1] of each chunk.

    Tokens without bytes (BOS, EOS) are not text: every document has them, so they match nothing and do not count in the
    length. The last chunk of a document is short; its run is divided by its own length. A chunk without text has 0.
    """
    text = _text_only(chunks, token_bytes)
    lengths = (text != PADDING).sum(axis=1)
    runs = longest_common_runs(text, _text_only(neighbors, token_bytes))
    return runs / np.maximum(lengths, 1)


def _text_only(tokens, token_bytes):
    return np.where((tokens >= 0) & (token_bytes[np.maximum(tokens, 0)] > 0), tokens, PADDING)


def overlap_bins(overlap: Float[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """The bin of each r(C): [0], (0, 1/8], (1/8, 2/8], ... (7/8, 1]. C_alpha with alpha = j/8 has the bins 0 to j."""
    return np.searchsorted(np.concatenate([[0.0], ALPHAS]) + 1e-9, overlap)


def leakage_curves(sizes: Float[np.ndarray, "9"], bits: Mapping[str, Float[np.ndarray, "9"]]) -> dict:
    """bpb(alpha) of each condition, with the share of bytes in C_alpha and a histogram of r(C) over bytes.

    Args:
      sizes, bits: bytes, and bits by condition, in each bin of `overlap_bins`.

    Returns:
      Plain JSON: "alphas"; "byte_share" of C_alpha; "bpb" {condition: [one per alpha, None where C_alpha is empty]};
      "histogram": share of bytes in each bin.
    """
    inside, total = np.cumsum(sizes)[1:], max(sizes.sum(), 1)
    return {
        "alphas": list(ALPHAS),
        "byte_share": (inside / total).tolist(),
        "bpb": {
            condition: [
                float(sum_ / size) if size else None for sum_, size in zip(np.cumsum(table)[1:], inside, strict=True)
            ]
            for condition, table in bits.items()
        },
        "histogram": (sizes / total).tolist(),
    }
