"""Evaluation windows over a document's chunks, and which chunk is scored in which of them (paper 4.1, appendix C.2)."""

import math
from fractions import Fraction


def stride(chunks: int, overlap: float = 0.5) -> int:
    """How many chunks apart windows of `chunks` start, so that each keeps at least `overlap` of itself as context.

    A window of one chunk has no room for context; up to an overlap of half, windows are then one chunk apart.

    Raises:
      ValueError: the overlap is not in [0, 1), or a window this short cannot have it and score a chunk.
    """
    exact = Fraction(str(float(overlap)))  # 0.9 is meant as 9/10, not as the nearest binary fraction
    if not 0 <= exact < 1:
        raise ValueError(f"overlap must be in [0, 1), not {overlap}.")
    apart = math.floor((1 - exact) * chunks)
    if apart or exact <= Fraction(1, 2):
        return max(1, apart)
    raise ValueError(
        f"An overlap of {overlap:g} needs windows of {math.ceil(1 / (1 - exact))} chunks or more, but a sequence has "
        f"{chunks}: no chunk would be left to score. Lower the overlap, or evaluate with a longer sequence."
    )


def windows(length: int, chunks: int, overlap: float = 0.5) -> list[tuple[int, int, int]]:
    """Evaluation windows of a document of `length` chunks: (first, end, first scored), counted from its start.

    Windows hold up to `chunks` and start `stride(chunks, overlap)` apart; the last one ends with the document. Each
    chunk is scored once, in the earliest window that holds it. That window is also the one that gives it most context:
    all text before it (in the first window), or else at least the share `overlap` of a full window. So a token is
    scored with at least that share of a window as context, or with all there is if there is less.

    Raises:
      ValueError: as `stride`.
    """
    apart = stride(chunks, overlap)
    found, first, scored = [], 0, 0
    while True:
        end = min(first + chunks, length)
        found.append((first, end, scored))
        if end == length:
            return found
        first, scored = first + apart, end
