"""r(C), C_alpha and bpb(alpha) (paper 2.6)."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retro_jax.evaluate.overlap import (
    ALPHAS,
    leakage_curves,
    longest_common_run_slow,
    longest_common_runs,
    overlap_bins,
    overlaps,
)

ONE_BYTE = np.ones(100, np.int32)
ONE_BYTE[:3] = 0  # 0 unknown, 1 BOS, 2 EOS


def test_a_run_is_contiguous():
    chunk = np.array([[5, 6, 7, 8]])
    assert longest_common_runs(chunk, np.array([[[9, 5, 6, 7, 9, 9, 8, 9]]])).tolist() == [3]
    assert longest_common_runs(chunk, np.array([[[5, 9, 6, 9, 7, 9, 8, 9]]])).tolist() == [1]
    assert longest_common_runs(chunk, np.array([[[8, 7, 6, 5, 8, 7, 6, 5]]])).tolist() == [1]


def test_the_best_neighbor_counts_and_runs_may_cross_into_the_continuation():
    chunk = np.array([[5, 6, 7, 8]])
    neighbors = np.array([[[5, 9, 9, 9, 9, 9, 9, 9], [9, 9, 5, 6, 7, 8, 9, 9]]])
    assert longest_common_runs(chunk, neighbors).tolist() == [4]


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.int32, (3, 5), elements=st.integers(-1, 3)),
    hnp.arrays(np.int32, (3, 2, 10), elements=st.integers(-1, 3)),
)
def test_fast_equals_the_slow_reference(chunks, neighbors):
    slow = [
        max(longest_common_run_slow(chunk.tolist(), neighbor.tolist()) for neighbor in of_chunk)
        for chunk, of_chunk in zip(chunks, neighbors, strict=True)
    ]
    assert longest_common_runs(chunks, neighbors).tolist() == slow


def test_blocks_give_what_one_pass_gives(monkeypatch):
    rng = np.random.default_rng(0)
    chunks, neighbors = rng.integers(-1, 4, (7, 6)), rng.integers(-1, 4, (7, 2, 12))
    whole = longest_common_runs(chunks, neighbors)
    monkeypatch.setattr("retro_jax.evaluate.overlap.CELLS", 50)
    assert np.array_equal(longest_common_runs(chunks, neighbors), whole)


def test_exact_copy_is_one_and_disjoint_is_zero():
    """Guards against an overlap that is not a share of the chunk. A copy has 1, other text 0."""
    chunks = np.array([[10, 11, 12, 13], [10, 11, 12, 13]])
    neighbors = np.array([[[10, 11, 12, 13, 20, 21, 22, 23]], [[30, 31, 32, 33, 34, 35, 36, 37]]])
    assert overlaps(chunks, neighbors, ONE_BYTE).tolist() == [1.0, 0.0]


def test_padding_bos_and_eos_match_nothing_and_a_short_chunk_has_its_own_length():
    chunks = np.array(
        [
            [1, 10, 11, 12],  # BOS opens the document
            [13, 2, -1, -1],  # one token of text, then EOS
            [2, -1, -1, -1],  # no text at all
        ]
    )
    neighbors = np.array(
        [
            [[1, 10, 11, 12, 2, -1, -1, -1]],
            [[13, 2, -1, -1, -1, -1, -1, -1]],
            [[40, 2, -1, -1, -1, -1, -1, -1]],
        ]
    )
    assert overlaps(chunks, neighbors, ONE_BYTE).tolist() == [1.0, 1.0, 0.0]
    assert overlaps(chunks, np.full((3, 1, 8), -1), ONE_BYTE).tolist() == [0.0, 0.0, 0.0]


def test_a_chunk_without_any_neighbor_slot_has_no_overlap():
    assert overlaps(np.array([[10, 11]]), np.empty((1, 0, 4), int), ONE_BYTE).tolist() == [0.0]


def curves_of(overlap, sizes, bits):
    """The curves of chunks, by their sums in the bins."""

    def sums(values):
        return np.bincount(overlap_bins(overlap), values, minlength=len(ALPHAS) + 1)

    return leakage_curves(sums(sizes), {name: sums(values) for name, values in bits.items()})


def test_alphas_are_nested_and_the_last_is_everything():
    """Guards against sets C_alpha that are not nested, or a bpb(1) that is not bpb: C_alpha grows with alpha, and bpb(1) == bpb."""
    rng = np.random.default_rng(1)
    overlap, sizes = rng.integers(0, 9, 50) / 8, rng.integers(1, 20, 50)
    bits = {"off": rng.random(50) * 30, "on": rng.random(50) * 20}
    curves = curves_of(overlap, sizes, bits)
    assert curves["alphas"] == [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0] == list(ALPHAS)
    assert curves["byte_share"] == sorted(curves["byte_share"]) and curves["byte_share"][-1] == 1.0
    for name, of_chunk in bits.items():
        assert np.isclose(curves["bpb"][name][-1], of_chunk.sum() / sizes.sum(), rtol=1e-12)
        low = overlap <= 0.5
        assert np.isclose(curves["bpb"][name][3], of_chunk[low].sum() / sizes[low].sum(), rtol=1e-12)
    assert np.isclose(sum(curves["histogram"]), 1.0)


def test_an_empty_c_alpha_has_no_figure():
    curves = curves_of(np.array([0.0, 0.125, 0.2, 1.0]), np.array([1, 2, 3, 4]), {"on": np.full(4, 5.0)})
    assert curves["bpb"]["on"][0] == 10 / 3
    assert curves["histogram"] == [0.1, 0.2, 0.3, 0, 0, 0, 0, 0, 0.4]
    none = curves_of(np.array([0.9]), np.array([4]), {"on": np.array([8.0])})
    assert none["bpb"]["on"] == [None] * 7 + [2.0]
