"""Which tokens are scored where a protocol scores a part of the text, and how many of their bytes count."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Int64


def scored_tokens(
    token_bytes: Int[np.ndarray, "N M"], ranges: Sequence[tuple[int, int]]
) -> tuple[Bool[np.ndarray, "N M"], Int64[np.ndarray, "N M"]]:
    """Tokens of one document that hold at least one scored byte, and how many scored bytes each holds.

    A token need not end where a character ends. One that holds both scored and other bytes (a space before the first
    scored word) is scored, and its scored bytes count.

    Args:
      token_bytes: UTF-8 bytes of each token in order; 0 for BOS, EOS, and padding, which are never scored.
      ranges: scored bytes [start, end) of the text, in order and disjoint; () scores all, an empty range nothing.

    Raises:
      ValueError: ranges that are out of order, overlap, or reach beyond the text.
    """
    sizes = np.asarray(token_bytes, np.int64)
    if not ranges:
        return sizes > 0, sizes.copy()
    ends = np.cumsum(sizes).reshape(sizes.shape)
    check_ranges(ranges, int(sizes.sum()))
    low, high = np.array(ranges, np.int64).T
    whole = np.append(0, np.cumsum(high - low))

    def scored_before(place):
        begun = np.searchsorted(low, place)  # ranges that start before the place
        behind = np.where(begun > 0, high[begun - 1] - place, 0)
        return whole[begun] - np.maximum(behind, 0)

    inside = scored_before(ends) - scored_before(ends - sizes)
    return inside > 0, inside


def check_ranges(ranges: Sequence[tuple[int, int]], size: int) -> None:
    """Raises ValueError unless the ranges are in order, disjoint, and inside of a text of `size` bytes."""
    at = 0
    for start, end in ranges:
        if not at <= start <= end <= size:
            raise ValueError(
                f"Scored byte ranges must be in order, disjoint, and inside of the text of {size:,} bytes, but "
                f"[{start}, {end}) follows byte {at}."
            )
        at = end
