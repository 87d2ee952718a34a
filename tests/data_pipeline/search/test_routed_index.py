"""Routed index shards: what a key is assigned to, what a query visits, and the same neighbors in any arrangement."""

import dataclasses
import shutil

import numpy as np
import pytest
from file_contents import contents
from made_up_vectors import clustered, write_chunks, write_embeddings
from test_engine import LARGEST, Traveling

import data_pipeline.search.chunk_search as chunk_search
import data_pipeline.search.routed_index as routed_index
from data_pipeline.chunks import ChunkTable
from data_pipeline.database.check_assignment import check_assignment
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.search.chunk_search import find_neighbors
from data_pipeline.search.exact import ExactSearcher, PlacedSearcher
from data_pipeline.search.neighbors import NeighborTable, build_neighbors
from data_pipeline.search.recall import QuerySample
from data_pipeline.search.router import Router, learn, nearest
from data_pipeline.search.routes import Route, search_visited
from data_pipeline.search.stage import build_index, count_shards, index_shards, open_searcher, open_shard
from data_pipeline.search.subset import in_subset
from data_pipeline.stages import summaries
from data_pipeline.stages.engine import using
from data_pipeline.stages.run import read_manifest
from retro_jax.config import DataConfig

KEYS, HELD_OUT, SHARDS = 3300, 60, 5
DOCUMENTS = np.repeat(np.arange(100, 100 + (KEYS + HELD_OUT) // 12), 12)
VECTORS = clustered(KEYS + HELD_OUT, clusters=60)
CONFIG = DataConfig(exact_below=1000, recall_sample=200, neighbors_stored=5, index_shards=SHARDS)
EXACT = dataclasses.replace(CONFIG, exact_below=10**6, index_shards=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("routed")
    chunks = write_chunks(root / "chunks", DOCUMENTS, KEYS, 100)
    write_embeddings(root / "embeddings", VECTORS, KEYS, chunks.fingerprint)
    build_index(root / "index", CONFIG, root / "embeddings", root / "chunks")
    build_neighbors(root / "neighbors", CONFIG, root / "chunks", root / "embeddings", root / "index")
    build_index(root / "exact", EXACT, root / "embeddings")
    return root


def router_of(keys, shards):
    router = learn(keys, shards)
    return router, router._centers * router.step, router._prices * router.step**2


def test_a_key_lies_where_the_plain_rule_puts_it():
    """Guards against an assignment to another shard: the nearest center, then SOAR's rule, in a loop and in float64."""
    keys = clustered(400)
    router, centers, prices = router_of(keys, 6)
    owners = router.owners(keys)
    for key, found in zip(np.rint(keys.astype(float) / router.step) * router.step, owners, strict=True):
        squared = [((key - center) ** 2).sum() + price for center, price in zip(centers, prices, strict=True)]
        first = int(np.argmin(squared))
        residual = key - centers[first]
        unit = residual / np.linalg.norm(residual)
        costs = [
            cost + np.dot(key - center, unit) ** 2 if number != first else np.inf
            for number, (cost, center) in enumerate(zip(squared, centers, strict=True))
        ]
        assert found.tolist() == [first, int(np.argmin(costs))]


def test_an_assignment_and_a_visit_do_not_depend_on_the_batch():
    """Bit for bit, although matmuls of other shapes round differently: on the grid they are exact."""
    keys = clustered(300, width=384)
    router = learn(keys, 7)
    together = router.owners(keys), router.distances(keys)
    for size in (1, 7, 100):
        parts = [slice(start, start + size) for start in range(0, len(keys), size)]
        assert np.array_equal(np.concatenate([router.owners(keys[part]) for part in parts]), together[0])
        assert np.array_equal(np.concatenate([router.distances(keys[part]) for part in parts]), together[1])


def test_shards_hold_nearly_as_many_keys_each():
    """Guards against shards of the sizes of clusters, the largest of which would set the memory."""
    keys = np.concatenate([clustered(2000), clustered(600, clusters=2, seed=3)])
    router, centers, prices = router_of(keys, 8)
    held, plain = (np.bincount(one.owners(keys).ravel()) for one in (router, Router(centers, 0 * prices)))
    assert held.sum() == 2 * len(keys) and held.max() < 1.1 * held.mean() < plain.max()


def test_two_shards_do_not_both_hold_all_keys():
    assert np.unique(learn(clustered(100), 2).owners(clustered(100))).tolist() == [0, 1]
    assert learn(clustered(100), 2).copies == 1 and learn(clustered(100), 3).copies == 2


def test_visits_to_look_at():
    distances = np.array([[1.0, 2.0, 4.0], [5.0, 3.0, 3.5]])
    assert nearest(distances, 1.0).tolist() == [[True, True, False], [False, True, True]]
    assert nearest(distances, 0.0).tolist() == [[True, False, False], [False, True, False]]
    assert nearest(distances, 0.0, visits=2).tolist() == [[True, True, False], [False, True, True]]


def test_all_shards_together_are_the_search_over_all_keys(root):
    """Guards against a key of two shards that counts as two neighbors."""
    exact = ExactSearcher(VECTORS[:KEYS])
    owners = learn(VECTORS[:KEYS], SHARDS).owners(VECTORS[:KEYS])
    parts = []
    for number in range(SHARDS):
        ids = np.flatnonzero((owners == number).any(1))
        parts.append(PlacedSearcher(ExactSearcher(VECTORS[ids]), ids))
    for k in (1, 5, 40):
        found = search_visited(parts, np.ones((30, SHARDS), bool), VECTORS[KEYS : KEYS + 30], k)
        assert all(map(np.array_equal, found, exact.search(VECTORS[KEYS : KEYS + 30], k)))


def test_the_manifest_promises_what_exact_search_confirms(root):
    """Recall over held-out queries against the slow search over all keys; and a query does not visit all shards."""
    manifest = read_manifest(root / "index", "index")
    recall, routing = manifest.counts["recall"], manifest.counts["routing"]
    assert recall["value"] >= CONFIG.recall_target and 1 < routing["visits"] < SHARDS - 1
    assert f" of {SHARDS} shards visited, recall@5 0.9" in summaries.index(manifest.counts, manifest.config)
    keys = [facts["keys"] for facts in manifest.counts["shards"].values()]
    assert sum(keys) == 2 * KEYS and routing["keys_read"] < sum(keys)
    assert {facts["kind"] for facts in manifest.counts["shards"].values()} == {"scann"}
    queries = clustered(KEYS + 500, clusters=60)[KEYS:]
    ids, distances = open_searcher(root / "index", root / "embeddings").search(queries, 5)
    true, farthest = ExactSearcher(VECTORS[:KEYS]).search(queries, 5)
    assert (distances <= farthest[:, -1:]).mean() > CONFIG.recall_target - 0.04
    assert all(len(set(row)) == 5 for row in ids.tolist())


def test_two_shards_are_set_by_the_queries_of_all_texts(tmp_path):
    """Guards against shards that are set by queries of their own keys alone: without a copy, others find too few there."""
    keys, spread = 2112, np.random.default_rng(2).normal(size=(KEYS + HELD_OUT, 16))
    spread /= np.linalg.norm(spread, axis=1, keepdims=True)
    vectors = np.concatenate([VECTORS[:keys], spread[keys:].astype(np.float32)])  # queries of other texts than the keys
    chunks = write_chunks(tmp_path / "chunks", DOCUMENTS, keys, 100)
    write_embeddings(tmp_path / "embeddings", vectors, keys, chunks.fingerprint)
    config = dataclasses.replace(CONFIG, index_shards=2)
    counts = build_index(tmp_path / "index", config, tmp_path / "embeddings", tmp_path / "chunks").counts
    assert counts["recall"]["value"] >= config.recall_target
    sums = 0
    for shard in index_shards(tmp_path / "index", tmp_path / "embeddings"):
        ids, searcher = np.load(shard[0] / "ids.npy"), open_shard(*shard)
        sample = QuerySample(EmbeddingTable(tmp_path / "embeddings"), config.neighbors_stored, config.recall_sample)
        sample.compare(ids, VECTORS[ids])
        assert sample.recall(searcher) == pytest.approx(shard[2]["recall"]) and shard[2]["recall"] >= 0.975
        sums += len(ids)
    assert sums == keys


def test_no_smaller_margin_reaches_the_target(root):
    """Against the recall of each number of visits, counted from answers that are merged here."""
    config = dataclasses.replace(CONFIG, recall_target=0.965)
    vectors, sample = EmbeddingTable(root / "embeddings"), routed_index.QuerySample(VECTORS, 5, 200)
    answers = []
    for shard in index_shards(root / "index", root / "embeddings"):
        *_, facts, _, _ = shard
        answers.append(open_shard(*shard).search(sample.queries, 6))
    sample.compare(np.arange(KEYS), vectors[:KEYS])
    distances = Route(root / "index").router.distances(sample.queries)
    margin = routed_index._smallest_margin(sample, answers, distances, config.recall_target)

    def recall(margin):
        visited, ids = nearest(distances, margin), np.full((len(distances), 6), -1)
        measured = np.full(ids.shape, np.inf, np.float32)
        for number, (found, their) in enumerate(answers):
            rows = np.flatnonzero(visited[:, number])
            routed_index.merge_at(ids, measured, rows, found[rows], their[rows])
        return sample.report((ids, measured))["value"]

    assert recall(margin) >= 0.965 > recall(np.nextafter(margin, 0))


def test_every_chunk_has_the_neighbors_of_the_searcher(root):
    """The stage, shard by shard, finds what one search over the opened index does, and nothing of the own document."""
    found = NeighborTable(root / "neighbors")
    searcher = open_searcher(root / "index", root / "embeddings")
    rows = np.arange(0, KEYS + HELD_OUT, 7)
    ids, distances = find_neighbors(searcher, VECTORS[rows], DOCUMENTS[rows], DOCUMENTS[:KEYS], 5)
    assert (found.ids[rows] == ids).all(1).mean() > 0.9  # a shard alone fetches more than all shards together
    assert (found.distances[rows] <= distances).all()
    assert (DOCUMENTS[found.ids[:]] != DOCUMENTS[:, None]).all() and (found.ids[:] >= 0).all()
    exact, _ = find_neighbors(ExactSearcher(VECTORS[:KEYS]), VECTORS[rows], DOCUMENTS[rows], DOCUMENTS[:KEYS], 5)
    assert np.mean([len({*a} & {*b}) / 5 for a, b in zip(exact, found.ids[rows], strict=True)]) > 0.92


@pytest.mark.parametrize("change", ["groups", "batch", "restart"])
def test_nothing_of_the_arrangement_changes_a_byte(root, tmp_path, monkeypatch, change):
    """Chunks searched together, queries at once, and a search that begins again at every shard of chunks."""
    if change == "groups":
        monkeypatch.setattr(chunk_search.Index, "together", property(lambda self: 7))
    elif change == "batch":
        monkeypatch.setattr(chunk_search, "QUERIES_AT_ONCE", 11)
        monkeypatch.setattr(chunk_search, "ROWS_ROUTED", 13)
    else:
        monkeypatch.setattr(chunk_search, "ANSWERS_AT_ONCE", 1)
    build_neighbors(tmp_path / "neighbors", CONFIG, root / "chunks", root / "embeddings", root / "index")
    assert contents(tmp_path / "neighbors") == contents(root / "neighbors")


def test_every_build_gives_the_same_bytes(root, tmp_path, monkeypatch):
    """In ranges of another size too, except for the files of the ranges."""
    build_index(tmp_path / "index", CONFIG, root / "embeddings", root / "chunks")
    assert contents(tmp_path / "index") == contents(root / "index")
    monkeypatch.setattr(routed_index, "ROWS_ASSIGNED", 500)
    build_index(tmp_path / "ranges", CONFIG, root / "embeddings", root / "chunks")
    found, expected = contents(tmp_path / "ranges"), contents(root / "index")
    assert len([name for name in found if name.startswith("assigned-")]) == 14
    assert all(found[name] == expected[name] for name in expected if name.startswith(("index-", "router")))


def test_shards_that_travel_change_no_byte(root, tmp_path):
    """As to the nodes of a cluster: in another order, one made twice, and none carries vectors."""
    engine = Traveling()
    with using(engine):
        build_index(tmp_path / "index", CONFIG, root / "embeddings", root / "chunks")
        build_neighbors(tmp_path / "neighbors", CONFIG, root / "chunks", root / "embeddings", tmp_path / "index")
    for stage in ("index", "neighbors"):
        assert contents(tmp_path / stage) == contents(root / stage)
    assert set(engine.opened) == {f"index shard {number}" for number in range(SHARDS)}
    assert max(engine.sizes.values()) < LARGEST, engine.sizes


def test_a_killed_build_continues(root, tmp_path):
    """Without its last two shards and its record, as after a kill."""
    shutil.copytree(root / "index", tmp_path / "index")
    for name in ("manifest.json", ".parts/index-00003.json", ".parts/recall.json"):
        (tmp_path / "index" / name).unlink()
    shutil.rmtree(tmp_path / "index" / "index-00003")
    build_index(tmp_path / "index", CONFIG, root / "embeddings", root / "chunks")
    assert contents(tmp_path / "index") == contents(root / "index")


def test_neighbors_beyond_the_visited_shards(tmp_path):
    """Guards against missing neighbors of chunks whose shard holds their own document alone."""
    source = np.random.default_rng(0)
    vectors = np.concatenate([clustered(200, clusters=1), 5 + clustered(40, clusters=8)]).astype(np.float32)
    documents = np.concatenate([np.full(200, 7), 10 + np.arange(40)])
    chunks = write_chunks(tmp_path / "chunks", documents, 240, 50)
    write_embeddings(tmp_path / "embeddings", vectors, 240, chunks.fingerprint)
    config = dataclasses.replace(CONFIG, exact_below=0, index_shards=4, index_shards_visited=1, recall_sample=20)
    monkey = pytest.MonkeyPatch()
    monkey.setattr("data_pipeline.search.stage.choose_kind", lambda *rest, **more: ("scann", "test"))
    with monkey.context():
        build_index(tmp_path / "index", config, tmp_path / "embeddings")
    monkey.undo()
    build_neighbors(tmp_path / "neighbors", config, tmp_path / "chunks", tmp_path / "embeddings", tmp_path / "index")
    found = NeighborTable(tmp_path / "neighbors")
    rows = source.choice(200, 20, replace=False)
    exact, _ = find_neighbors(ExactSearcher(vectors), vectors[rows], documents[rows], documents, 5)
    assert np.array_equal(found.ids[rows], exact)


def test_added_keys_go_to_the_shards_of_the_build(root, tmp_path):
    added = clustered(700, clusters=60, seed=0)[400:]
    chunks = write_chunks(tmp_path / "chunks", np.arange(len(added)) + 5000, len(added), 100)
    write_embeddings(tmp_path / "embeddings", added, len(added), chunks.fingerprint)
    config = dataclasses.replace(CONFIG, index_shards=0)
    manifest = build_index(tmp_path / "index", config, tmp_path / "embeddings", like=root / "index")
    router, before = Route(root / "index").router, read_manifest(root / "index", "index")
    assert manifest.inputs["router"] == before.fingerprint
    assert manifest.counts["routing"]["margin"] == before.counts["routing"]["margin"]
    owners = router.owners(added)
    for number in range(SHARDS):
        ids = np.load(tmp_path / "index" / f"index-{number:05d}" / "ids.npy")
        assert ids.tolist() == np.flatnonzero((owners == number).any(1)).tolist()
    assert list(check_assignment(tmp_path, ChunkTable(tmp_path / "chunks"))) == []
    exact = build_index(tmp_path / "other", config, tmp_path / "embeddings", like=root / "exact")
    assert "routing" not in exact.counts and "router" not in exact.inputs


def test_an_addition_smaller_than_the_shards_is_searched(root, tmp_path):
    """Guards against an index error where a shard of the build gets no key of an addition."""
    added = clustered(402, clusters=60, seed=0)[400:]
    chunks = write_chunks(tmp_path / "chunks", np.arange(2) + 5000, 2, 100)
    write_embeddings(tmp_path / "embeddings", added, 2, chunks.fingerprint)
    config = dataclasses.replace(CONFIG, index_shards=0)
    build_index(tmp_path / "index", config, tmp_path / "embeddings", like=root / "index")
    assert any(not len(np.load(path)) for path in (tmp_path / "index").glob("index-*/ids.npy"))
    found, distances = open_searcher(tmp_path / "index", tmp_path / "embeddings").search(added, 3)
    assert found[:, 0].tolist() == [0, 1] and (found[:, 2] == -1).all() and np.isinf(distances[:, 2]).all()


def test_a_key_in_a_wrong_shard_is_damage(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    data, table = tmp_path / "data", ChunkTable(root / "chunks")
    assert list(check_assignment(data, table, everything=True)) == []
    path = data / "index" / "index-00000" / "ids.npy"
    ids = np.load(path)
    lost, other = ids[5], np.setdiff1d(np.arange(KEYS), ids)[0]
    for wrong, named in (
        (np.sort(np.append(ids[ids != lost], other)), f"key {min(lost, other)} is in it, or is not"),
        (np.append(ids[:1], ids[:-1]), "each once"),
    ):
        np.save(path, wrong)
        found = [str(damage) for damage in check_assignment(data, table, everything=True)]
        assert named in found[0] and found[0].endswith("redo index-00000")
        assert found[-1].endswith("redo the full stage")


def test_a_share_has_a_router_of_its_own(root, tmp_path):
    config = dataclasses.replace(CONFIG, database_fraction=0.5, index_shards=3)
    manifest = build_index(tmp_path / "index", config, root / "embeddings", root / "chunks")
    inside = np.flatnonzero(in_subset(DOCUMENTS[:KEYS], 0.5))
    assert (
        manifest.counts["database_chunks"] == len(inside) == len(open_searcher(tmp_path / "index", root / "embeddings"))
    )
    build_neighbors(tmp_path / "neighbors", config, root / "chunks", root / "embeddings", tmp_path / "index")
    assert set(NeighborTable(tmp_path / "neighbors").ids[:].ravel().tolist()) <= set(inside.tolist())
    assert manifest.counts["recall"]["value"] >= 0.95


def test_how_many_shards():
    assert [count_shards(keys, 0) for keys in (1, 1 << 21, (1 << 21) + 1, 10 << 21)] == [1, 1, 3, 20]
    assert count_shards(5, 5) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index_shards": 4000}, "index_shards=4000 and there are 3,300 keys; take fewer"),
        ({"index_shards_visited": 6}, "index_shards_visited=6 and there are 5; take fewer, or 0"),
        ({"index_shards": 0, "index_shards_visited": 2}, "index_shards_visited=2 and there are 1"),
        ({"database_fraction": 0.02, "index_shards": 200}, "index_shards=200 and there are [0-9]+ keys"),
    ],
)
def test_numbers_that_cannot_be_meant(root, tmp_path, change, message):
    """Guards against a router of fewer keys than shards and visits beyond the shards; nothing is written."""
    with pytest.raises(ValueError, match=message):
        build_index(tmp_path / "index", dataclasses.replace(CONFIG, **change), root / "embeddings", root / "chunks")
    assert not (tmp_path / "index").exists()
    with pytest.raises(ValueError, match="index_shards=9 and there are 8 keys"):
        learn(VECTORS[:8], 9)


def test_a_given_number_of_visits(root, tmp_path):
    config = dataclasses.replace(CONFIG, index_shards_visited=2)
    routing = build_index(tmp_path / "index", config, root / "embeddings").counts["routing"]
    assert routing["visits"] == routing["most_visits"] == 2
    assert Route(tmp_path / "index").visited(VECTORS[:50], 5).sum(1).tolist() == [2] * 50


def test_a_query_for_many_neighbors_visits_more(root):
    """So a row is full until k exceeds the keys of the database."""
    searcher = open_searcher(root / "index", root / "embeddings")
    for k in (1000, KEYS, KEYS + 5):
        ids, distances = searcher.search(VECTORS[:3], k)
        assert ((ids >= 0).sum(1) == min(k, KEYS)).all() and np.isfinite(distances[:, : min(k, KEYS)]).all()
