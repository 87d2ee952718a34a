"""Neighbors: the k nearest chunks of other documents, by id, for any order or batch."""

import dataclasses
import shutil

import numpy as np
import pytest
from file_contents import contents
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_vectors import clustered, write_chunks, write_embeddings

import data_pipeline.search.chunk_search as neighbors
from data_pipeline.chunks import ChunkTable
from data_pipeline.search.chunk_search import find_neighbors
from data_pipeline.search.exact import ExactSearcher
from data_pipeline.search.neighbors import NeighborTable, build_neighbors
from data_pipeline.search.stage import build_index
from data_pipeline.stages.run import StageError
from retro_jax.config import DataConfig

CONFIG = DataConfig(neighbors_stored=5)
# Documents 100, 101, ... of 1 to 30 chunks; the last 40 rows are held-out documents.
DOCUMENTS = np.repeat(np.arange(100, 120), [1, 30, 2, 3, 5, 8, 13, 21, 1, 1, 4, 4, 9, 2, 6, 15, 10, 20, 15, 5])
DATABASE = len(DOCUMENTS) - 40


def make(root, documents, vectors, database, config=CONFIG, rows_a_shard=50):
    chunks = write_chunks(root / "chunks", documents, database, rows_a_shard)
    write_embeddings(root / "embeddings", vectors, database, chunks.fingerprint)
    build_index(root / "index", config, root / "embeddings")
    build(root, config)
    return NeighborTable(root / "neighbors")


def build(root, config=CONFIG, name="neighbors", chunks="chunks"):
    return build_neighbors(root / name, config, root / chunks, root / "embeddings", root / "index")


@pytest.fixture(scope="module")
def vectors():
    """Chunks of one document lie closest together, and some are copies of chunks of other documents."""
    found = clustered(len(DOCUMENTS), clusters=6) * 0.2
    found += np.random.default_rng(1).normal(size=(200, 16))[DOCUMENTS].astype(np.float32)
    found[[3, 60, 120]] = found[20]
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory, vectors):
    root = tmp_path_factory.mktemp("neighbors")
    make(root, DOCUMENTS, vectors, DATABASE)
    return root


def plain(query, document, keys, key_documents, k):
    """The k nearest of other documents, in a loop, as (id, distance)."""
    squared = [(float(((query - key) ** 2).sum()), number) for number, key in enumerate(keys)]
    others = sorted(pair for pair in squared if key_documents[pair[1]] != document)[:k]
    others += [(np.inf, -1)] * (k - len(others))
    return [number for _, number in others], [distance for distance, _ in others]


def test_neighbors_to_look_at():
    """Keys on a line; the documents of keys are a a b b c. k = 2."""
    keys = np.array([[0.0], [1.0], [2.0], [4.0], [8.0]], np.float32)
    a, b, c, new = 7, 8, 9, 10
    ids, distances = find_neighbors(
        ExactSearcher(keys),
        np.array([[0.0], [1.0], [4.0], [8.0], [1.0]], np.float32),
        np.array([a, a, b, c, new]),
        np.array([a, a, b, b, c]),
        2,
    )
    assert ids.tolist() == [[2, 3], [2, 3], [1, 0], [3, 2], [1, 0]]
    assert distances.tolist() == [[4, 16], [1, 9], [9, 16], [16, 36], [0, 1]]
    assert ids.dtype == np.int64 and distances.dtype == np.float32


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 6), st.integers(1, 7))
def test_agrees_with_the_plain_loop(seed, count, documents, k):
    """Whole numbers, so many ties; documents that own most of the database; k beyond what others have."""
    source = np.random.default_rng(seed)
    keys = source.integers(-2, 3, (count, 2)).astype(np.float32)
    owners = np.sort(source.integers(0, documents, count)) + 2**40
    asked = np.concatenate([np.arange(count), source.integers(0, count, 3)])
    query_documents = np.concatenate([owners, [-1, 5, owners[0]]])
    ids, distances = find_neighbors(ExactSearcher(keys), keys[asked], query_documents, owners, k)
    for row, key in enumerate(asked):
        expected = plain(keys[key], query_documents[row], keys, owners, k)
        assert (ids[row].tolist(), distances[row].tolist()) == expected


def test_the_query_is_dropped_by_id_and_its_copies_stay(root):
    """Guards against dropping the first hit as the query.

    Chunks 3, 20, 60 and 120 hold one text. 3 and 20 are of one document, so each finds the other two only, at distance 0,
    though rank 0 of the search is another chunk than the query.
    """
    table, chunks = NeighborTable(root / "neighbors"), ChunkTable(root / "chunks")
    assert len(set(chunks.document_ids[[3, 20, 60, 120]].tolist())) == 3
    assert table.ids[[3, 20, 60]][:, :2].tolist() == [[60, 120], [60, 120], [3, 20]]
    assert table.ids[60][2] == 120
    assert not table.distances[[3, 20, 60]][:, :2].any()


def test_nothing_of_the_querys_document_comes_back(root):
    """Guards against text of the query's document as neighbor or continuation; every token of these chunks names its row."""
    table, chunks = NeighborTable(root / "neighbors"), ChunkTable(root / "chunks")
    assert len(table) == len(chunks)
    documents = chunks.document_ids[:]
    values = chunks.value(table.ids[:])
    for row, document in enumerate(documents):
        rows_read = np.unique(values[row][values[row] != -1] // 10)
        assert document not in documents[rows_read]
        assert (rows_read < DATABASE).all()


def test_every_row_agrees_with_the_plain_loop(root, vectors):
    """Held-out rows too.

    Document 101 owns 30 chunks that are the nearest of each other: the first fetch finds no other.
    """
    table = NeighborTable(root / "neighbors")
    assert table.ids.shape == (len(DOCUMENTS), 5) and table.ids.dtype == np.int64
    for row in range(len(DOCUMENTS)):
        ids, distances = plain(vectors[row], DOCUMENTS[row], vectors[:DATABASE], DOCUMENTS[:DATABASE], 5)
        assert table.ids[row].tolist() == ids
        np.testing.assert_allclose(table.distances[row], distances, rtol=1e-5)


def test_missing_neighbors_index_nothing():
    """Guards against -1 used as an index, which reads the last chunk.

    Here that is of another document than the query's: taken for a neighbor it ends the search.
    """

    class Sparse:
        """A searcher that returns only the first quarter of k."""

        def __len__(self):
            return 40

        def search(self, queries, k):
            ids, distances = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), np.inf, np.float32)
            ids[:, : k // 4], distances[:, : k // 4] = np.arange(k // 4), np.arange(k // 4) + 0.5
            return ids, distances

    owners = np.array([5, 6] + [7] * 37 + [8])
    ids, distances = find_neighbors(Sparse(), np.zeros((3, 3), np.float32), np.array([5, 6, 7]), owners, 2)
    assert ids.tolist() == [[1, 2], [0, 2], [0, 1]]
    assert distances.tolist() == [[1.5, 2.5], [0.5, 2.5], [0.5, 1.5]]
    ids, distances = find_neighbors(Sparse(), np.zeros((1, 3), np.float32), np.array([7]), owners, 3)
    assert ids.tolist() == [[0, 1, -1]] and distances.tolist() == [[0.5, 1.5, np.inf]]


def test_one_document_has_no_neighbors(tmp_path):
    """Guards against an empty place read as chunk 0, or at a distance that a real one has (thousands here)."""
    vectors = 1000 * clustered(8)
    table = make(tmp_path, [3] * 6 + [4] * 2, vectors, 6, rows_a_shard=3)
    assert (table.ids[:6] == -1).all() and np.isposinf(table.distances[:6]).all()
    assert (table.ids[6:] >= 0).all() and (table.distances[6:] > 1e3).all()
    assert (ChunkTable(tmp_path / "chunks").value(table.ids[:6]) == -1).all()


@pytest.mark.parametrize("queries", [1, 7, 10_000])
def test_batches_change_no_byte(root, monkeypatch, queries):
    """Guards against neighbors that depend on the batch size."""
    monkeypatch.setattr(neighbors, "QUERIES_AT_ONCE", queries)
    build(root, name=f"batch-{queries}")
    assert contents(root / f"batch-{queries}") == contents(root / "neighbors")


@pytest.mark.parametrize("rows_a_shard", [13, 1000])
def test_shards_change_no_neighbor(tmp_path, root, vectors, rows_a_shard):
    table, expected = (
        make(tmp_path, DOCUMENTS, vectors, DATABASE, rows_a_shard=rows_a_shard),
        NeighborTable(root / "neighbors"),
    )
    assert np.array_equal(table.ids[:], expected.ids[:])
    assert np.array_equal(table.distances[:], expected.distances[:])


def test_killed_anywhere_the_bytes_are_the_same(root, monkeypatch):
    """Guards against a killed stage that ends with other bytes.

    Killed at each of the eight files that are written, then run again.
    """
    whole, save = contents(root / "neighbors"), np.save
    for survive in range(8):
        calls = []

        def dying(path, array, survive=survive, calls=calls):
            calls.append(path)
            if len(calls) > survive:
                path.write_bytes(b"half")
                raise KeyboardInterrupt
            save(path, array)

        monkeypatch.setattr(neighbors.np, "save", dying)
        shutil.rmtree(root / "killed", ignore_errors=True)
        with pytest.raises(KeyboardInterrupt):
            build(root, name="killed")
        monkeypatch.setattr(neighbors.np, "save", save)
        build(root, name="killed")
        assert contents(root / "killed") == whole


def test_with_scann(tmp_path):
    """Guards against short rows or own documents with an approximate index; the promised recall is reached."""
    documents = np.repeat(np.arange(60), [200, 100, *[22] * 58])
    vectors = clustered(len(documents), clusters=60) + 0.3 * clustered(60, seed=8)[documents]
    config = dataclasses.replace(CONFIG, exact_below=1000, index_reorder=60, recall_sample=100)
    table = make(tmp_path / "scann", documents, vectors, 1500, config, 1000)
    exact = make(tmp_path / "exact", documents, vectors, 1500, CONFIG, 1000)
    owners = documents[table.ids[:]]
    assert (table.ids[:] >= 0).all() and (owners != documents[:, None]).all()
    order = np.diff(table.distances[:], axis=1)
    assert (order >= 0).all() and (np.diff(table.ids[:], axis=1)[order == 0] > 0).all()
    assert np.mean([len({*a} & {*b}) / 5 for a, b in zip(table.ids[:], exact.ids[:], strict=True)]) > 0.9


def test_other_chunks_are_refused(root):
    """Guards against neighbors of other chunks. Nothing is searched, nothing is written."""
    write_chunks(root / "others", DOCUMENTS[::-1], DATABASE)
    with pytest.raises(StageError, match="chunk table .* does not match: found fingerprint"):
        build(root, name="mixed", chunks="others")
    assert not (root / "mixed").exists()


def test_another_number_of_neighbors_is_another_stage(root):
    """Guards against writing over a stage of another config. It is an error."""
    before = contents(root / "neighbors")
    with pytest.raises(StageError, match="what differs: config.neighbors_stored"):
        build(root, dataclasses.replace(CONFIG, neighbors_stored=6))
    with pytest.raises(ValueError, match="neighbors_stored must be 1 or more, but is 0"):
        build(root, dataclasses.replace(CONFIG, neighbors_stored=0))
    assert contents(root / "neighbors") == before
