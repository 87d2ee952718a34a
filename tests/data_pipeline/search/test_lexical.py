"""BM25 of token ids against the formula in a loop, and reranking of candidates."""

import json
import math

import numpy as np
import pytest
from made_up_vectors import write_chunks

from data_pipeline.chunks import ChunkTable
from data_pipeline.search.bm25 import Lexical, build_lexical
from data_pipeline.stages.run import Shard, run_stage
from retro_jax.core.files import write_json

ROWS = [[1, 5, 5, 7], [5, 6, -1, -1], [1, 8, 9, 9], [6, 6, 6, -1], [1, 5, 9, 2]]  # the last is held out
DATABASE = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two shards of chunks with the tokens above."""
    root = tmp_path_factory.mktemp("lexical")
    columns = {"tokens": np.array(ROWS, np.int32), "document_ids": np.arange(5), "subsets": np.zeros(5, np.int32)}

    def shard(number, rows):
        def make(folder):
            for name, column in columns.items():
                np.save(folder / f"{number}.{name}.npy", column[rows])
            return {}

        return Shard(str(number), [f"{number}.{name}.npy" for name in columns], make)

    counts = {"subsets": ["farm"], "chunk_length": 4, "database_chunks": DATABASE, "chunks": 5}
    run_stage(root / "chunks", "chunks", {}, {}, [shard(0, slice(0, 3)), shard(1, slice(3, 5))], counts=counts)
    build_lexical(root / "lexical", root / "chunks", 10, ())
    return root


def plain(query, chunk, database):
    """Okapi BM25 with k1 = 1.2, b = 0.75 and Lucene's idf; each query token counts once."""
    real = [[token for token in row if token != -1] for row in database]
    average = sum(map(len, real)) / len(real)
    words, score = [token for token in chunk if token != -1], 0.0
    for token in {token for token in query if token != -1}:
        holds = sum(token in row for row in real)
        weight = math.log(1 + (len(real) - holds + 0.5) / (holds + 0.5))
        count = words.count(token)
        score += weight * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(words) / average))
    return score


def test_scores_are_those_of_the_formula(root):
    """Held-out chunks are not in the statistics; padding does not count."""
    words = Lexical(root / "lexical")
    for query in (*ROWS, [5, 5, 9, -1], [3, -1, -1, -1]):
        expected = [plain(query, chunk, ROWS[:DATABASE]) for chunk in ROWS]
        np.testing.assert_allclose(words.scores(np.array(query), np.array(ROWS)), expected, rtol=1e-12)


def test_tokens_beyond_the_vocabulary_are_named(root, tmp_path):
    with pytest.raises(ValueError, match="Tokens of the chunks for frequencies-00000, .*: 9 is not a valid id"):
        build_lexical(tmp_path / "lexical", root / "chunks", 8, ())
    words, tokens = Lexical(root / "lexical"), ChunkTable(root / "chunks").tokens
    with pytest.raises(ValueError, match="Tokens of a query for .*: 10 is not a valid id"):
        words.rerank(np.array([[1, 10]]), np.zeros((1, 2), int), np.zeros((1, 2)), tokens, 1)


def test_candidates_that_share_rare_words_come_first(root):
    """Distances move with their ids; equal scores stay in the order of distance; missing ones stay last."""
    words, tokens = Lexical(root / "lexical"), ChunkTable(root / "chunks").tokens
    queries = np.array([[1, 5, 9, 2], [3, 3, 3, 3], [7, -1, -1, -1]], np.int32)
    ids = np.array([[1, 0, 2, 3], [3, 1, 0, 2], [2, 0, -1, -1]])
    distances = np.array([[1, 2, 3, 4], [1, 2, 2, 4], [1, 2, np.inf, np.inf]], np.float32)
    found, measured = words.rerank(queries, ids, distances, tokens, 3)
    assert found.tolist() == [[2, 0, 1], [3, 0, 1], [0, 2, -1]]
    assert measured.tolist() == [[3, 2, 1], [1, 2, 2], [2, 1, np.inf]]


def test_the_statistics_do_not_depend_on_the_shards(tmp_path):
    for rows in (7, 50):
        write_chunks(tmp_path / f"chunks-{rows}", np.repeat(np.arange(10), 5), 41, rows)
        build_lexical(tmp_path / f"lexical-{rows}", tmp_path / f"chunks-{rows}", 600, ())
    few, many = (Lexical(tmp_path / f"lexical-{rows}") for rows in (50, 7))
    assert np.array_equal(few._weights, many._weights) and few._average == many._average == 4


def test_bos_and_eos_are_no_words(root, tmp_path):
    """Guards against first chunks that draw each other by their BOS; a stage of an earlier version keeps its ranking."""
    build_lexical(tmp_path / "lexical", root / "chunks", 10, (1, 2))
    words, before = Lexical(tmp_path / "lexical"), Lexical(root / "lexical")
    assert words._weights[[1, 2]].tolist() == [0.0, 0.0] and np.array_equal(words._weights[3:], before._weights[3:])
    query, chunks = np.array([1, 5, 9, 2]), np.array(ROWS)
    np.testing.assert_array_equal(words.scores(query, chunks), words.scores(np.array([5, 9, -1, -1]), chunks))
    plan = tmp_path / "lexical" / "plan.json"
    facts = json.loads(plan.read_text())
    del facts["sha256"], facts["config"]["special"]
    write_json(plan, facts, seal=True)
    (tmp_path / "lexical" / "manifest.json").unlink()
    build_lexical(tmp_path / "lexical", root / "chunks", 10, (1, 2))
    assert np.array_equal(Lexical(tmp_path / "lexical")._weights, before._weights)
