"""The index: the choice of search, equal bytes from every build, and recall against all distances."""

import dataclasses
import pickle
import shutil

import numpy as np
import pytest
from file_contents import contents
from made_up_vectors import clustered, write_embeddings

import data_pipeline.search.stage as index
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.search.exact import ExactSearcher
from data_pipeline.search.recall import QuerySample, sample_rows
from data_pipeline.search.scann import (
    FILES,
    IndexSettings,
    ScannSearcher,
    choose_kind,
    choose_settings,
    scann_installed,
)
from data_pipeline.search.stage import build_index, open_searcher
from data_pipeline.stages.run import StageError, read_manifest
from retro_jax.config import DataConfig

KEYS, HELD_OUT = 1500, 100
SCANN = DataConfig(exact_below=1000, recall_sample=200, index_reorder=60)
assert scann_installed(), "The tests of the index need SCaNN: install the extra `build`."


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("index")
    write_embeddings(root / "embeddings", clustered(KEYS + HELD_OUT), KEYS)
    build_index(root / "index", SCANN, root / "embeddings")
    return root


@pytest.mark.parametrize(
    ("keys", "changes", "installed", "kind", "why"),
    [
        (19_999, {}, True, "exact", "19999 keys are fewer than config.data.exact_below=20000"),
        (20_000, {}, True, "scann", "20000 keys"),
        (20_000, {}, False, "exact", "SCaNN is not installed"),
        (999, {"exact_below": 0}, True, "exact", "999 keys are fewer than the 1000"),
        (1, {"exact_below": 0}, True, "exact", "1 keys are fewer"),
        (1000, {"exact_below": 0}, True, "scann", "1000 keys"),
    ],
)
def test_small_databases_are_searched_exactly(keys, changes, installed, kind, why):
    """Guards against an index over too few keys. The search is exact and the manifest says why."""
    found, reason = choose_kind(keys, keys, DataConfig(**changes), installed=installed)
    assert found == kind and reason.startswith(why)


@pytest.mark.parametrize(
    ("keys", "leaves", "searched"), [(1000, 32, 14), (20_000, 141, 41), (1_000_000, 1000, 178), (64_000_000, 8000, 846)]
)
def test_leaves_follow_the_size(keys, leaves, searched):
    assert choose_settings(keys, DataConfig()) == IndexSettings("scann", leaves, searched, 200, "squared_l2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index_leaves": 6000}, "config.data.index_leaves=6000; take at most 5000"),
        ({"index_leaves": 10, "index_leaves_searched": 11}, "index_leaves_searched=11 must be from 1 to .* 10"),
        ({"index_reorder": -5}, "index_reorder=-5 candidates cannot give config.data.neighbors_stored=10"),
        ({"index_reorder": 5}, "index_reorder=5 candidates cannot give config.data.neighbors_stored=10"),
    ],
)
def test_settings_that_cannot_be_meant(changes, message):
    with pytest.raises(ValueError, match=message):
        choose_settings(20_000, DataConfig(**changes))


@pytest.mark.parametrize("keys", [1, 2, 3, 9])
def test_a_handful_of_chunks(tmp_path, keys):
    """Guards against an index that fails with fewer keys than neighbors stored."""
    write_embeddings(tmp_path / "embeddings", clustered(keys + 1), keys)
    manifest = build_index(tmp_path / "index", DataConfig(), tmp_path / "embeddings")
    assert manifest.counts["kind"] == "exact" and manifest.files == ()
    assert manifest.counts["recall"]["value"] == 1
    ids, _ = open_searcher(tmp_path / "index", tmp_path / "embeddings").search(clustered(5), 10)
    assert (np.sort(ids, axis=1)[:, -keys:] == np.arange(keys)).all() and (ids == -1).sum() == 5 * (10 - keys)


def test_without_scann_the_search_is_exact(tmp_path, root, monkeypatch):
    """Guards against a build that fails without SCaNN instead of searching exactly."""
    monkeypatch.setattr(index, "scann_installed", lambda: False)
    manifest = build_index(tmp_path / "index", SCANN, root / "embeddings")
    assert manifest.counts["kind"] == "exact" and "not installed" in manifest.counts["why"]
    assert isinstance(open_searcher(tmp_path / "index", root / "embeddings"), ExactSearcher)


def test_a_scann_index_where_it_cannot_be_imported(root, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scann.scann_ops.py", None)
    with pytest.raises(StageError, match="SCaNN cannot be imported .* Install the extra `build`"):
        open_searcher(root / "index", root / "embeddings")


def test_an_empty_database(tmp_path):
    write_embeddings(tmp_path / "embeddings", clustered(3), 0)
    with pytest.raises(StageError, match="the database is empty. Lower config.data.validation_fraction"):
        build_index(tmp_path / "index", DataConfig(), tmp_path / "embeddings")


def test_recall_is_in_the_manifest(root):
    """Guards against an unmeasured recall. It is compared with every distance, in float64, by another formula."""
    manifest = read_manifest(root / "index", "index")
    assert manifest.counts["kind"] == "scann" and manifest.config["metric"] == "squared_l2"
    recall = manifest.counts["recall"]
    assert recall["k"] == 10 and recall["queries"] == 200 and 0.9 < recall["value"] <= 1


def test_recall_counts_what_is_missed(root):
    """Guards against recall that counts wrong: half the true neighbors give a half, the query itself gives none."""
    vectors = EmbeddingTable(root / "embeddings")
    keys = vectors.database()

    class Half(ExactSearcher):
        def search(self, queries, k):
            ids, distances = super().search(queries, 2 * k)
            return ids[:, ::2], distances[:, ::2]

    class Itself(ExactSearcher):
        def search(self, queries, k):
            ids, distances = super().search(queries, k)
            return np.repeat(ids[:, :1], k, axis=1), np.repeat(distances[:, :1], k, axis=1)

    def measure_recall(searcher, size):
        sample = QuerySample(vectors, 10, size)
        sample.compare(np.arange(KEYS), keys)
        return sample.recall(searcher)

    assert measure_recall(ExactSearcher(keys), 200) == 1
    # Of the places 0, 2, 4, ... the query itself is 0; of its 10 nearest, 2, 4, ..., 10 are found.
    assert measure_recall(Half(keys), 1) == 0.5
    assert measure_recall(Itself(keys), 1) == 0


def test_samples_are_spread_over_the_table():
    assert sample_rows(10, 4).tolist() == [0, 3, 6, 9]
    assert sample_rows(3, 10).tolist() == [0, 1, 2]


def test_every_build_gives_the_same_bytes(tmp_path, root):
    """Guards against an index that differs from build to build, because SCaNN draws its centers at random by default.

    Two builds with random centers may end with the same ones (a third of them do here), so the config is read too.
    """
    build_index(tmp_path / "again", SCANN, root / "embeddings")
    assert contents(tmp_path / "again") == contents(root / "index")
    config = open_searcher(root / "index", root / "embeddings")._index.config()
    assert "initialization: DEFAULT_KMEANS_PLUS_PLUS" in config and "RANDOM_INITIALIZATION" not in config


def test_killed_while_writing_the_bytes_are_the_same(tmp_path, root, monkeypatch):
    """Guards against a killed index stage that ends with other bytes."""
    real = index.build_scann

    def dying(directory, *arguments):
        (directory / FILES[0]).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(index, "build_scann", dying)
    with pytest.raises(KeyboardInterrupt):
        build_index(tmp_path / "killed", SCANN, root / "embeddings")
    assert not (tmp_path / "killed" / "index-00000").exists()
    monkeypatch.setattr(index, "build_scann", real)
    build_index(tmp_path / "killed", SCANN, root / "embeddings")
    assert contents(tmp_path / "killed") == contents(root / "index")


def test_an_index_can_be_moved(tmp_path, root):
    queries = clustered(20, seed=3)
    expected = open_searcher(root / "index", root / "embeddings").search(queries, 10)
    shutil.copytree(root / "index", tmp_path / "else" / "where")
    shutil.copytree(root / "embeddings", tmp_path / "embeddings")
    found = open_searcher(tmp_path / "else" / "where", tmp_path / "embeddings").search(queries, 10)
    assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])
    assert str(root).encode() not in b"".join(contents(root / "index").values())


def test_scann_rows_do_not_depend_on_their_batch(root):
    searcher = open_searcher(root / "index", root / "embeddings")
    queries = np.concatenate([clustered(300, seed=4), EmbeddingTable(root / "embeddings")[:300]])
    expected = searcher.search(queries, 20)
    for size in (1, 7, 256):
        parts = [searcher.search(queries[start : start + size], 20) for start in range(0, len(queries), size)]
        assert np.array_equal(np.concatenate([ids for ids, _ in parts]), expected[0])
        assert np.array_equal(np.concatenate([distances for _, distances in parts]), expected[1])


def test_scann_distances_are_those_of_the_exact_search(root):
    """Sorted by (distance, id), of the stored vectors, to the bit."""
    searcher = open_searcher(root / "index", root / "embeddings")
    exact = ExactSearcher(EmbeddingTable(root / "embeddings").database())
    queries = clustered(50, seed=5)
    (ids, distances), (all_ids, all_distances) = searcher.search(queries, 10), exact.search(queries, KEYS)
    assert ids.dtype == np.int64 and distances.dtype == np.float32
    for row in range(50):
        places = [int(np.flatnonzero(all_ids[row] == key)[0]) for key in ids[row]]
        assert places == sorted(places) and np.array_equal(all_distances[row, places], distances[row])


@pytest.mark.parametrize("k", [1, 10, 200, 700, KEYS, KEYS + 5])
def test_scann_rows_are_full_and_without_repeats(root, k):
    """Guards against an empty place read as chunk 0.

    Where its leaves hold too few keys, SCaNN returns id 0 at distance NaN.
    """
    searcher = open_searcher(root / "index", root / "embeddings")
    ids, distances = searcher.search(clustered(30, seed=6), k)
    real = min(k, KEYS)
    assert all(len(set(row[:real].tolist())) == real for row in ids)
    assert (ids[:, :real] >= 0).all() and np.isfinite(distances[:, :real]).all()
    assert (ids[:, real:] == -1).all() and np.isposinf(distances[:, real:]).all()


def test_what_scann_fills_up_with_is_searched_again(root):
    """Guards against an empty place read as chunk 0, planted into SCaNN's answer: id 0 at NaN in every second place."""
    searcher = open_searcher(root / "index", root / "embeddings")
    real = searcher._index

    class Short:
        def search_batched_parallel(self, queries, **settings):
            ids, distances = real.search_batched_parallel(queries, **settings)
            ids[:, 1::2], distances[:, 1::2] = 0, np.nan
            return ids, distances

    searcher._index = Short()
    queries = clustered(10, seed=7)
    found = searcher.search(queries, 6)
    expected = ExactSearcher(EmbeddingTable(root / "embeddings").database()).search(queries, 6)
    assert np.array_equal(found[0], expected[0])


def test_scann_is_built_and_asked_with_squared_distance(tmp_path):
    """Guards against an index by inner product. Keys of different lengths make it find other neighbors."""
    vectors = clustered(1200) * np.random.default_rng(0).uniform(0.2, 3, (1200, 1)).astype(np.float32)
    write_embeddings(tmp_path / "embeddings", vectors, 1100)
    manifest = build_index(tmp_path / "index", SCANN, tmp_path / "embeddings")
    assert manifest.counts["recall"]["value"] > 0.9
    searcher = open_searcher(tmp_path / "index", tmp_path / "embeddings")
    assert isinstance(searcher, ScannSearcher)
    assert 'distance_measure: "SquaredL2Distance"' in searcher._index.config()
    assert "DotProduct" not in searcher._index.config()


def test_embeddings_of_another_run_are_refused(tmp_path, root):
    """Guards against an index over embeddings of another run."""
    write_embeddings(tmp_path / "other", clustered(KEYS + HELD_OUT, seed=9), KEYS)
    with pytest.raises(StageError, match="embeddings .* does not match: found fingerprint"):
        open_searcher(root / "index", tmp_path / "other")
    before = contents(root / "index")
    with pytest.raises(StageError, match="what differs: inputs.embeddings"):
        build_index(root / "index", SCANN, tmp_path / "other")
    with pytest.raises(StageError, match="what differs: config.leaves "):
        build_index(root / "index", dataclasses.replace(SCANN, index_leaves=20), root / "embeddings")
    assert contents(root / "index") == before


def test_a_truncated_index_is_refused(tmp_path, root):
    shutil.copytree(root / "index", tmp_path / "index")
    path = tmp_path / "index" / "index-00000" / "hashed_dataset.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StageError, match="truncated"):
        open_searcher(tmp_path / "index", root / "embeddings")


def test_a_pickle_beside_the_index_is_not_read(tmp_path, root):
    """Guards against pickles: SCaNN would load this file, and loading runs its code."""
    shutil.copytree(root / "index", tmp_path / "index")
    (tmp_path / "index" / "index-00000" / "scann_docids.pkl").write_bytes(pickle.dumps(["a"]))
    with pytest.raises(StageError, match="scann_docids.pkl is not part of a retro_jax index"):
        open_searcher(tmp_path / "index", root / "embeddings")
