"""Exact search: squared L2, ties by id, equal bits for any blocking."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_vectors import clustered

import data_pipeline.search.exact as search
from data_pipeline.search.exact import ExactSearcher, paired_distances, reference_distances
from data_pipeline.search.recall import QuerySample


def plain(queries, keys, k):
    """Every distance, sorted by (distance, id), in a loop."""
    ids, distances = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), np.inf, np.float32)
    for row, query in enumerate(queries):
        squared = np.array([((query - key) ** 2).sum() for key in keys])
        order = sorted(range(len(keys)), key=lambda key: (squared[key], key))[:k]
        ids[row, : len(order)], distances[row, : len(order)] = order, squared[order]
    return ids, distances


def test_a_search_to_look_at():
    keys = np.array([[0, 0], [3, 0], [0, 1], [0, 1], [9, 9]], np.float32)
    ids, distances = ExactSearcher(keys).search(np.array([[0, 0], [0, 1]], np.float32), 4)
    assert ids.tolist() == [[0, 2, 3, 1], [2, 3, 0, 1]]
    assert distances.tolist() == [[0, 1, 1, 9], [0, 0, 1, 10]]
    assert ids.dtype == np.int64 and distances.dtype == np.float32


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 12), st.integers(1, 40), st.integers(1, 4))
def test_agrees_with_the_plain_loop(seed, keys_count, queries_count, k, width):
    """Small whole numbers, so that there are many ties and no rounding; k beyond the number of keys too."""
    source = np.random.default_rng(seed)
    keys = source.integers(-2, 3, (keys_count, width)).astype(np.float32)
    queries = source.integers(-2, 3, (queries_count, width)).astype(np.float32)
    found, expected = ExactSearcher(keys).search(queries, k), plain(queries, keys, k)
    assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])


def test_missing_is_minus_one_at_infinity():
    """Guards against an empty place read as chunk 0, or at a distance that a real one could have."""
    ids, distances = ExactSearcher(np.zeros((2, 3), np.float32)).search(np.ones((1, 3), np.float32), 4)
    assert ids.tolist() == [[0, 1, -1, -1]] and distances.tolist() == [[3, 3, np.inf, np.inf]]


@pytest.mark.parametrize(
    ("queries", "keys", "pairs", "crowd"), [(7, 13, 5, 4), (1, 200, 1, 0), (64, 3, 1000, 10**9), (50, 40, 64, 0)]
)
@pytest.mark.parametrize("nearer", [False, True])
def test_blocks_change_no_bit(monkeypatch, queries, keys, pairs, crowd, nearer):
    """The result does not depend on pruning by a block's k-th, also with keys sorted by falling distance."""
    source = np.random.default_rng(0)
    table = source.normal(size=(200, 48)).astype(np.float32)
    table[40:160] = table[40] + np.float32(1e-7) * source.normal(size=(120, 48)).astype(np.float32)
    asked = np.concatenate([table[30:90], source.normal(size=(20, 48)).astype(np.float32)])
    if nearer:
        table = table[np.argsort(-np.square(table - table[40]).sum(1))]
    expected = ExactSearcher(table).search(asked, 10)
    monkeypatch.setattr(search, "QUERIES_AT_ONCE", queries)
    monkeypatch.setattr(search, "KEYS_AT_ONCE", keys)
    monkeypatch.setattr(search, "PAIRS_AT_ONCE", pairs)
    monkeypatch.setattr(search, "CROWD", crowd)
    found = ExactSearcher(table).search(asked, 10)
    assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])
    one_by_one = [ExactSearcher(table).search(query[None], 10) for query in asked]
    assert np.array_equal(np.concatenate([ids for ids, _ in one_by_one]), expected[0])


def test_more_equals_than_k_are_taken_in_the_order_of_their_ids():
    """300 copies of a text: rounding of the matmul must not choose among them."""
    source = np.random.default_rng(1)
    keys = source.normal(size=(1000, 384)).astype(np.float32)
    keys[500:800] = keys[500]
    ids, distances = ExactSearcher(keys).search(keys[600:603], 12)
    assert ids.tolist() == [list(range(500, 512))] * 3 and not distances.any()


def test_the_metric_is_squared_distance():
    """Guards against search by inner product, where the long key would win; by distance the near one does."""
    keys = np.array([[10, 10], [1, 0.9]], np.float32)
    ids, distances = ExactSearcher(keys).search(np.array([[1, 1]], np.float32), 2)
    assert ids.tolist() == [[1, 0]]
    np.testing.assert_allclose(distances, [[0.01, 162]], rtol=1e-5)


def test_equal_vectors_are_at_exactly_zero():
    keys = np.random.default_rng(0).normal(size=(5, 384)).astype(np.float32)
    assert not paired_distances(keys, np.arange(5), keys, np.arange(5)).any()


def test_reference_distances_leave_out_the_query():
    keys = np.array([[0.0], [1.0], [3.0]], np.float32)
    found = reference_distances(keys[:2], keys, np.array([0, -1]), 3)
    assert found.tolist() == [[1, 9, np.inf], [0, 1, 4]]


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [(np.zeros((2, 3)), 1, "keys have 2 numbers"), (np.zeros(2), 1, "shape"), (np.zeros((2, 2)), 0, "k counts")],
)
def test_wrong_queries(queries, k, message):
    with pytest.raises(ValueError, match=message):
        ExactSearcher(np.zeros((4, 2), np.float32)).search(queries, k)


@pytest.mark.parametrize("scale", [1 / 30, 1.0, 30.0])
def test_exact_search_has_a_recall_of_one_whatever_the_length_of_the_vectors(scale):
    """Guards against rounding that grows with the distances and is counted as misses: then every index looks too bad."""
    vectors = 28 * scale * clustered(600, clusters=30)
    for k in (1, 4, 10):
        sample = QuerySample(vectors, k, 100)
        sample.compare(np.arange(len(vectors)), vectors)
        assert sample.recall(ExactSearcher(vectors)) == 1.0
