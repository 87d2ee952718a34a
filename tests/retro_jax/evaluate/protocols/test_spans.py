"""Scored bytes to scored tokens: against a loop over every byte of every token, and on literal cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_jax.evaluate.protocols import scored_tokens


def scored_tokens_by_the_byte(token_bytes, ranges):
    """Whether any byte of a token is in a range, and how many are."""
    mask, counts = np.zeros(token_bytes.shape, bool), np.zeros(token_bytes.shape, np.int64)
    at = 0
    for place in np.ndindex(token_bytes.shape):
        for byte in range(at, at + token_bytes[place]):
            counts[place] += not ranges or any(start <= byte < end for start, end in ranges)
        mask[place] = counts[place] > 0
        at += token_bytes[place]
    return mask, counts


@settings(deadline=None)
@given(st.data(), st.integers(1, 5), st.integers(1, 6))
def test_scored_tokens_are_those_of_the_slow_loop(data, rows, length):
    sizes = np.array(data.draw(st.lists(st.integers(0, 7), min_size=rows * length, max_size=rows * length)), np.int32)
    total = int(sizes.sum())
    cuts = sorted(data.draw(st.lists(st.integers(0, total), max_size=8)))
    ranges = tuple(zip(cuts[::2], cuts[1::2], strict=False))
    sizes = sizes.reshape(rows, length)
    mask, counts = scored_tokens(sizes, ranges)
    expected_mask, expected_counts = scored_tokens_by_the_byte(sizes, ranges)
    assert mask.dtype == bool and counts.dtype == np.int64
    assert mask.tolist() == expected_mask.tolist() and counts.tolist() == expected_counts.tolist()
    assert counts.sum() == (sum(end - start for start, end in ranges) if ranges else total)


def test_a_token_across_the_edge_counts_its_scored_bytes_alone():
    """[BOS, "the", " lam", "p"], [EOS, padding]: of the word "lamp", " lam" holds three bytes and the space does not count."""
    sizes = np.array([[0, 3, 4, 1], [0, 0, 0, 0]])
    mask, counts = scored_tokens(sizes, ((4, 8),))
    assert mask.tolist() == [[False, False, True, True], [False] * 4]
    assert counts.tolist() == [[0, 0, 3, 1], [0] * 4]


def test_bytes_that_are_no_whole_characters_count_each():
    """🜁 is four byte tokens; a range may begin within it."""
    sizes = np.array([[0, 1, 1, 1, 1, 0]])
    assert scored_tokens(sizes, ((2, 4),))[1].tolist() == [[0, 0, 0, 1, 1, 0]]


def test_no_range_scores_all_and_an_empty_one_nothing():
    sizes = np.array([[0, 2, 3, 0]])
    assert scored_tokens(sizes, ())[0].tolist() == [[False, True, True, False]]
    for empty in (((0, 0),), ((3, 3),), ((5, 5),)):
        assert not scored_tokens(sizes, empty)[0].any()
    assert scored_tokens(np.zeros((1, 4), int), ((0, 0),))[1].tolist() == [[0, 0, 0, 0]]


def test_the_table_of_bytes_is_not_the_callers():
    sizes = np.array([[1, 2]], np.int64)
    scored_tokens(sizes, ())[1][:] = 7
    assert sizes.tolist() == [[1, 2]]


@pytest.mark.parametrize("ranges", [((2, 1),), ((0, 3), (2, 4)), ((3, 4), (0, 1)), ((0, 6),), ((-1, 2),)])
def test_ranges_out_of_order_or_text_are_refused(ranges):
    with pytest.raises(
        ValueError, match=r"in order, disjoint, and inside of the text of 5 bytes, but \[-?\d+, \d+\) follows"
    ):
        scored_tokens(np.array([[2, 3]]), ranges)
