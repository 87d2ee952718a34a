"""Evaluation windows: the paper's wording as a loop, the half overlap as it always was, and what is refused."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_jax.data.joined import pack_validation
from retro_jax.data.windows import stride, windows

OVERLAPS = (0.0, 0.25, 0.5, 0.6, 0.75, 0.875, 0.9)


def half_windows(length: int, chunks: int) -> list[tuple[int, int, int]]:
    """The windows of every build before the overlap could be chosen."""
    apart = max(1, chunks // 2)
    found, first, scored = [], 0, 0
    while True:
        end = min(first + chunks, length)
        found.append((first, end, scored))
        if end == length:
            return found
        first, scored = first + apart, end


@pytest.mark.parametrize("chunks", range(1, 34))
def test_half_an_overlap_gives_the_windows_it_always_gave(chunks):
    for length in range(0, 4 * chunks + 2):
        assert windows(length, chunks) == windows(length, chunks, 0.5) == half_windows(length, chunks)


def test_windows_of_the_papers_overlaps():
    """(first, end, first scored): n of 8 chunks, stride 2 at 75% and 1 at 87.5%."""
    assert windows(12, 8, 0.75) == [(0, 8, 0), (2, 10, 8), (4, 12, 10)]
    assert windows(11, 8, 0.75) == [(0, 8, 0), (2, 10, 8), (4, 11, 10)]
    assert windows(10, 8, 0.875) == [(0, 8, 0), (1, 9, 8), (2, 10, 9)]
    assert windows(5, 8, 0.875) == [(0, 5, 0)]
    assert windows(0, 8, 0.75) == [(0, 0, 0)]
    assert (stride(32), stride(32, 0.75), stride(32, 0.875)) == (16, 8, 4)
    assert (stride(48, 0.75), stride(48, 0.875)) == (12, 6)  # the paper's 3,072 tokens for Wikitext-103
    assert stride(10, 0.9) == 1 and stride(20, 0.95) == 1  # decimals are meant exactly


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 24), st.sampled_from(OVERLAPS), st.integers(1, 5))
def test_each_token_is_scored_in_the_earliest_window_that_gives_it_enough_context(length, chunks, overlap, size):
    """Only tokens with at least the share `overlap` of the context length are scored, when it is available (paper C.2)."""
    if (1 - overlap) * chunks < 1 - 1e-9 and overlap > 0.5:
        return
    if chunks == 1 and overlap > 0:
        return  # no context fits; `test_half_an_overlap...` holds what happens
    tokens, window = length * size, chunks * size
    apart = math.floor((1 - overlap) * chunks + 1e-9) * size
    expected = {}
    for token in range(tokens):
        place = token // size * size  # a chunk is scored as one: its first token has least context
        starts = [start for start in range(0, tokens, apart) if start <= token < start + window]
        enough = [start for start in starts if start == 0 or place - start >= overlap * window - 1e-9]
        expected[token] = enough[0]
    found = {}
    for first, end, scored in windows(length, chunks, overlap):
        assert end - first <= chunks and first <= scored <= end
        for token in range(scored * size, end * size):
            assert token not in found, "a token is scored twice"
            found[token] = first * size
    assert found == expected


def test_a_window_too_short_for_its_overlap_is_refused():
    with pytest.raises(ValueError, match="overlap of 0.875 needs windows of 8 chunks or more, but a sequence has 4:"):
        windows(9, 4, 0.875)
    with pytest.raises(ValueError, match="needs windows of 4 chunks or more, but a sequence has 1:"):
        stride(1, 0.75)
    for overlap in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"overlap must be in \[0, 1\), not"):
            stride(8, overlap)


@pytest.mark.parametrize("overlap", [0.5, 0.75])
def test_packed_windows_score_each_chunk_once_with_its_context_before_it(overlap):
    documents = [(100, 3), (103, 11), (114, 1), (115, 6), (121, 4)]
    ids, marks = pack_validation(documents, 4, overlap)
    scored = [(row, place) for row, place in zip(*marks.nonzero(), strict=True)]
    assert sorted(ids[at] for at in scored) == list(range(100, 125))
    for row, place in scored:
        chunk = ids[row, place]
        start = next(first for first, length in documents if first <= chunk < first + length)
        available = min(chunk - start, round(overlap * 4))
        assert ids[row, place - available : place + 1].tolist() == list(range(chunk - available, chunk + 1))
