"""Index shards: the same neighbors for any number of them, settings from a recall target, additions."""

import dataclasses

import numpy as np
import pytest
from made_up_vectors import clustered, write_chunks, write_embeddings

import data_pipeline.search.scann as scann_search
import data_pipeline.search.stage as index
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.search.exact import ExactSearcher
from data_pipeline.search.neighbors import NeighborTable, build_neighbors
from data_pipeline.search.stage import build_index, key_ranges, open_searcher
from data_pipeline.search.subset import in_subset
from data_pipeline.stages.run import StageError, read_manifest
from retro_jax.config import DataConfig

KEYS, HELD_OUT = 3300, 60
DOCUMENTS = np.repeat(np.arange(100, 100 + (KEYS + HELD_OUT) // 12), 12)
VECTORS = clustered(KEYS + HELD_OUT)
CONFIG = DataConfig(exact_below=1000, recall_sample=100, index_reorder=60, neighbors_stored=5)
EXACT = dataclasses.replace(CONFIG, exact_below=10**6)
# So many leaves that one does not reach the target.
HARD = dataclasses.replace(CONFIG, index_shards=3, recall_target=0.99, index_leaves=250, index_reorder=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("index_shards")
    chunks = write_chunks(root / "chunks", DOCUMENTS, KEYS, 1000)
    write_embeddings(root / "embeddings", VECTORS, KEYS, chunks.fingerprint)
    build_index(root / "scann-3", HARD, root / "embeddings")
    return root


def neighbors(root, name, config):
    build_index(root / f"index-{name}", config, root / "embeddings", root / "chunks")
    build_neighbors(root / name, config, root / "chunks", root / "embeddings", root / f"index-{name}")
    return NeighborTable(root / name)


def test_ranges_to_look_at():
    assert key_ranges(10, 3) == [[0, 3], [3, 6], [6, 10]]
    assert key_ranges(2, 0) == [[0, 2]]
    assert [stop - start for start, stop in key_ranges(5 << 20, 0)] == [1747626, 1747627, 1747627]
    with pytest.raises(ValueError, match="config.data.index_shards=3 and there are 2 keys; take fewer"):
        key_ranges(2, 3)


@pytest.mark.parametrize("shards", [2, 7])
def test_exact_shards_change_no_neighbor(root, shards):
    """Chunks of the query's own document lie in one shard; the others still give k, merged by (distance, id)."""
    one = neighbors(root, "exact", EXACT)
    found = neighbors(root, f"exact-{shards}", dataclasses.replace(EXACT, index_shards=shards))
    assert np.array_equal(found.ids[:], one.ids[:]) and np.array_equal(found.distances[:], one.distances[:])
    assert not list(root.rglob(".answers"))


def test_a_search_over_shards_is_the_search_over_all(root):
    """Ids are rows of the database, not of the shard; SCaNN's distances are the exact ones of its keys."""
    searcher = open_searcher(root / "scann-3", root / "embeddings")
    exact = ExactSearcher(EmbeddingTable(root / "embeddings").database())
    assert len(searcher) == KEYS
    ids, distances = searcher.search(VECTORS[:40], 8)
    all_ids, all_distances = exact.search(VECTORS[:40], KEYS)
    order = np.argsort(all_ids, axis=1)
    assert np.array_equal(np.take_along_axis(np.take_along_axis(all_distances, order, 1), ids, 1), distances)
    assert (np.diff(distances, axis=1) >= 0).all() and all(len(set(row)) == 8 for row in ids.tolist())
    assert np.mean([len({*a} & {*b}) / 8 for a, b in zip(ids.tolist(), all_ids[:, :8].tolist(), strict=True)]) > 0.95


def test_ranges_of_an_earlier_version_are_read_and_not_built_on(root, tmp_path, monkeypatch):
    """Such an index has ranges of rows searched by SCaNN; every query reads all of them."""
    with monkeypatch.context() as earlier:
        earlier.setattr(index, "count_shards", lambda keys, wanted: 1)
        earlier.setattr(index, "key_ranges", lambda rows, shards: key_ranges(rows, 3))
        manifest = build_index(tmp_path / "index", HARD, root / "embeddings", root / "chunks")
    assert len(manifest.config["ranges"]) == 3 and "routing" not in manifest.counts
    searcher, exact = open_searcher(tmp_path / "index", root / "embeddings"), ExactSearcher(VECTORS[:KEYS])
    distances, true = (one.search(VECTORS[KEYS:], 5)[1] for one in (searcher, exact))
    assert (distances <= true[:, -1:]).mean() > 0.97
    build_neighbors(tmp_path / "neighbors", HARD, root / "chunks", root / "embeddings", tmp_path / "index")
    assert (NeighborTable(tmp_path / "neighbors").ids[:] >= 0).all()
    with pytest.raises(StageError, match=r"what differs: .*config.ranges .* --workdir, or move .* away and run"):
        build_index(tmp_path / "index", HARD, root / "embeddings", root / "chunks")


def test_a_shard_reads_its_own_keys_alone(root, tmp_path, monkeypatch):
    """Guards against all keys in memory while recall is measured: only one range of rows at a time."""
    asked, real = [], EmbeddingTable.__getitem__

    def watched(self, rows):
        found = real(self, rows)
        asked.append(len(found))
        return found

    monkeypatch.setattr(EmbeddingTable, "__getitem__", watched)
    build_index(tmp_path / "index", dataclasses.replace(EXACT, index_shards=4), root / "embeddings")
    assert max(asked) == KEYS // 4


def test_settings_of_a_shard_reach_the_target(root):
    """Each shard has its own settings; a new search gives the measured recall; the merged one reaches the target too."""
    counts = read_manifest(root / "scann-3", "index").counts
    vectors = EmbeddingTable(root / "embeddings")
    assert sorted(counts["shards"]) == ["index-00000", "index-00001", "index-00002"]
    for facts in counts["shards"].values():
        assert facts["recall"] >= 0.995 and 1 < facts["leaves_searched"] < facts["leaves"]
    assert counts["recall"]["value"] >= 0.99
    shard = index.index_shards(root / "scann-3", vectors.directory)[1]
    ids = np.load(shard[0] / "ids.npy")
    sample = index.QuerySample(vectors[ids], 5, 100)
    sample.compare(np.arange(len(ids)), vectors[ids])
    assert sample.recall(index.open_shard(*shard)._searcher) == counts["shards"]["index-00001"]["recall"]


def test_no_cheaper_settings_reach_the_target(root, tmp_path):
    """Compared with all numbers of leaves and candidates."""
    config = dataclasses.replace(CONFIG, recall_target=0.97, index_leaves=60, index_reorder=0)
    build_index(tmp_path / "index", config, root / "embeddings")
    (shard,) = index.index_shards(tmp_path / "index", root / "embeddings")
    searcher, vectors = index.open_shard(*shard), EmbeddingTable(root / "embeddings")
    sample = index.QuerySample(vectors, 5, 100)
    sample.compare(np.arange(KEYS), vectors[:KEYS])
    found = searcher.settings

    def cost(settings):
        return settings.reorder + KEYS * settings.leaves_searched / settings.leaves / scann_search.CODES_A_VECTOR

    costs = []
    for factor in scann_search.CANDIDATES:
        for leaves in range(60, 0, -1):  # the fewest from which on all reach it
            searcher.settings = dataclasses.replace(found, reorder=5 * factor, leaves_searched=leaves)
            if sample.recall(searcher) < 0.97:
                break
            fewest = searcher.settings
        costs.append(cost(fewest))
    assert cost(found) <= min(costs) < max(costs)
    searcher.settings = found
    assert sample.recall(searcher) >= 0.97


@pytest.mark.parametrize(
    ("change", "leaves", "reorder"),
    [
        ({"recall_target": 0.0}, 1, 60),
        ({"recall_target": 0.0, "index_reorder": 0}, 1, 15),
        ({"index_leaves_searched": 2, "recall_target": 1.0}, 2, 60),
        ({"index_leaves_searched": 2, "recall_target": 0.0}, 2, 60),
        ({"recall_target": 1.0, "index_leaves": 20, "index_reorder": 5}, 20, 5),
    ],
)
def test_settings_at_the_ends(root, tmp_path, change, leaves, reorder):
    """The user's settings stay; a target of 0 takes the minimum; all leaves are an exact search."""
    build_index(tmp_path / "index", dataclasses.replace(CONFIG, **change), root / "embeddings")
    facts = read_manifest(tmp_path / "index", "index").counts["shards"]["index-00000"]
    assert (facts["leaves_searched"], facts["reorder"]) == (leaves, reorder)
    assert facts["recall"] >= change["recall_target"] or "index_leaves_searched" in change


def test_subsets_are_nested_and_of_their_size():
    documents = np.random.default_rng(0).integers(0, 2**62, 20_000)
    shares = [in_subset(documents, fraction) for fraction in (0.01, 0.03, 0.1, 0.3, 1.0)]
    for share, fraction in zip(shares, (0.01, 0.03, 0.1, 0.3, 1.0), strict=True):
        assert abs(share.mean() - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / 20_000) + 1e-12
    assert all((~small | large).all() for small, large in zip(shares[:-1], shares[1:], strict=True))
    assert in_subset(np.arange(4), 0.5).tolist() == in_subset(np.arange(9), 0.5)[:4].tolist()


@pytest.mark.parametrize(("config", "shards"), [(EXACT, 1), (EXACT, 3), (CONFIG, 1)])
def test_a_share_of_the_database_is_whole_documents_of_it(root, tmp_path, config, shards):
    """The same embeddings; neighbors are of the share's documents and, with exact search, the nearest of them."""
    config = dataclasses.replace(config, database_fraction=0.5, index_shards=shards)
    manifest = build_index(tmp_path / "index", config, root / "embeddings", root / "chunks")
    build_neighbors(tmp_path / "neighbors", config, root / "chunks", root / "embeddings", tmp_path / "index")
    inside = np.flatnonzero(in_subset(DOCUMENTS[:KEYS], 0.5))
    assert manifest.counts["database_chunks"] == len(inside) and 1200 < len(inside) < 2100
    found = NeighborTable(tmp_path / "neighbors").ids[:]
    assert set(found.ravel().tolist()) <= set(inside.tolist())
    if config.exact_below == EXACT.exact_below:
        nearest, _ = ExactSearcher(VECTORS[inside]).search(VECTORS[KEYS:], 5)  # held-out: no document of their own
        assert np.array_equal(inside[nearest], found[KEYS:])
    else:
        assert isinstance(open_searcher(tmp_path / "index", root / "embeddings")._searcher, scann_search.ScannSearcher)
        assert manifest.counts["recall"]["value"] > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"database_fraction": 0.0}, r"database_fraction=0.0 must lie in \(0, 1\]"),
        ({"recall_target": 1.5}, r"recall_target=1.5 must lie in \[0, 1\]"),
        ({"index_shards": 10**6}, "index_shards=1000000 and there are 3,300 keys"),
    ],
)
def test_numbers_that_cannot_be_meant(root, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        build_index(tmp_path / "index", dataclasses.replace(CONFIG, **change), root / "embeddings", root / "chunks")
    assert not (tmp_path / "index").exists()
