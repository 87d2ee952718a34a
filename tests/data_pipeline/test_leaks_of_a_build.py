"""Leaks of a full `retro build` with SCaNN: every chunk, by independent loops, from the texts to the shards."""

import json
import shutil
from collections import Counter

import made_up_encoder
import made_up_text
import numpy as np
import pytest
from test_build import arguments

from data_pipeline.chunks import ChunkTable
from data_pipeline.database.check_content import check_content
from data_pipeline.documents.stage import DocumentTable
from data_pipeline.encoder.stage import EmbeddingTable, open_encoder
from data_pipeline.joined import build_joined
from data_pipeline.search.neighbors import NeighborTable
from data_pipeline.search.stage import open_searcher
from data_pipeline.stages.run import read_manifest
from data_pipeline.tokens import Tokenizer
from launch import build, database
from retro_jax.data.joined import open_split

LENGTH, STORED = 8, 10


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Copies, near copies and documents of one chunk among the texts; few leaves searched, so that SCaNN misses some."""
    root = tmp_path_factory.mktemp("leaks")
    made_up_encoder.write(root / "encoder")
    made_up_text.write_folder(root / "text", documents=36)
    for number in (3, 20, 30):
        text = (root / "text" / f"{number:03d}.txt").read_text()
        (root / "text" / f"copy-{number}.txt").write_text(text, newline="")
        (root / "text" / f"near-{number}.txt").write_text(text.replace("mill", "barn"), newline="")
    (root / "text" / "short.txt").write_text("grain " * 12)
    settings = ["--config.data.exact_below=0", "--config.data.index_leaves_searched=2", "--config.data.index_shards=1"]
    settings += ["--config.data.near_duplicate_jaccard=0", "--config.data.recall_sample=300"]
    assert build.main(arguments(root, root / "run", *settings)) == 0
    return root


@pytest.fixture(scope="module")
def data(root):
    return root / "run" / "data"


@pytest.fixture(scope="module")
def rows(data):
    """The document of each chunk, and its tokens with those of the next chunk, made from the texts alone."""
    reader, found = Tokenizer(data / "tokenizer"), []
    for document in DocumentTable(data / "documents").read():
        tokens = [reader.bos, *reader.encode(document.text), reader.eos]
        cut = [tokens[start : start + LENGTH] for start in range(0, len(tokens), LENGTH)] + [[]]
        cut = [chunk + [-1] * (LENGTH - len(chunk)) for chunk in cut]
        found += [(document, chunk + following) for chunk, following in zip(cut, cut[1:], strict=False)]
    return found


def test_the_index_is_scann_and_misses_some(data):
    counts = read_manifest(data / "index", "index").counts
    assert counts["kind"] == "scann" and 0.3 < counts["recall"]["value"] < 0.99
    searcher = open_searcher(data / "index", data / "embeddings")
    assert type(searcher).__name__ == "ScannSearcher" and searcher.settings.leaves > 2 * 2


def test_no_neighbor_is_of_the_querys_document(data, rows):
    """By id and by text, of every chunk, in the neighbors and in the shards."""
    ids = NeighborTable(data / "neighbors").ids[:]
    assert ids.shape == (len(rows), STORED) and (ids >= 0).all()
    for query, found in enumerate(ids.tolist()):
        document = rows[query][0]
        for id in found:
            other = rows[id][0]
            assert other.split == "train" and other.id != document.id and other.text != document.text, (query, id)
    texts = Counter(document.text for document in DocumentTable(data / "documents").read())
    assert max(texts.values()) == 1, "of copies one is left, so an id tells texts apart"


def test_every_continuation_is_the_true_next_chunk(data, rows):
    """The model's input for each neighbor, in every sequence of both splits, against the texts."""
    expected = np.array([value for _, value in rows])
    assert np.array_equal(ChunkTable(data / "chunks").value(np.arange(len(rows))), expected)
    seen = set()
    for split in ("train", "validation"):
        for example in open_split(data / "joined", split)[0]:
            ids = example["neighbor_ids"]
            there = ids >= 0
            assert np.array_equal(example["neighbor_tokens"][there], expected[ids[there]])
            assert (example["neighbor_tokens"][~there] == -1).all()
            for chunk, document, found in zip(
                example["tokens"].reshape(-1, LENGTH).tolist(), example["document_ids"].tolist(), ids, strict=True
            ):
                assert (document == -1) == (found == -1).all() == (chunk == [-1] * LENGTH)
                assert all(rows[id][0].id != document for id in found[found >= 0])
                seen.add((document, *chunk))
    assert seen - {(-1, *[-1] * LENGTH)} == {(document.id, *value[:LENGTH]) for document, value in rows}


def test_what_scann_gives_stands_where_exact_search_has_it(data, rows):
    """Every distance is exact in float64 and ids are ordered as in exact search: an index may only lose recall."""
    vectors = EmbeddingTable(data / "embeddings")[: len(rows)].astype(np.float64)
    keys = ChunkTable(data / "chunks").database_chunks
    owner = np.array([document.id for document, _ in rows])
    table = NeighborTable(data / "neighbors")
    ids, distances, hits = table.ids[:], table.distances[:], 0
    for query in range(len(rows)):
        squared = np.square(vectors[:keys] - vectors[query]).sum(axis=1)
        squared[owner[:keys] == owner[query]] = np.inf
        assert np.allclose(squared[ids[query]], distances[query], rtol=1e-5, atol=1e-6), query
        steps = np.diff(distances[query])
        assert ((steps > 0) | ((steps == 0) & (np.diff(ids[query]) > 0))).all(), query
        hits += int((squared[ids[query]] <= np.sort(squared)[STORED - 1] + 1e-6).sum())
    recall = read_manifest(data / "index", "index").counts["recall"]["value"]
    assert abs(hits / ids.size - recall) < 0.1 and hits < ids.size


def test_verify_all_looks_at_every_chunk(root, rows, capsys):
    assert database.main(["verify", "--all", f"--workdir={root / 'run'}"]) == 0
    facts = json.loads(capsys.readouterr().out.split(" is intact: ")[1])
    for name in ("chunks", "embedded_again", "queries_searched"):
        assert facts[name] == len(rows), name
    assert facts["joined_chunks"] >= len(rows) and 0 < facts["rows_as_exact"] < len(rows)
    assert abs(facts["recall"] - facts["recall_promised"]) < 0.1


def test_verify_all_finds_what_a_sample_does_not(root, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    copy = tmp_path / "data"
    encoder = open_encoder(copy / "embeddings", root / "encoder")
    path = copy / "embeddings" / "embeddings-00000.npy"
    vectors = np.load(path)
    vectors[1] += 0.2 * np.random.default_rng(0).normal(size=vectors.shape[1])
    np.save(path, vectors)
    assert not [damage for damage in check_content(copy, encoder)[0] if damage.stage == "embeddings"]
    found = [str(damage) for damage in check_content(copy, encoder, everything=True)[0]]
    assert any(line.startswith("embeddings: row 1 has cosine 0.") for line in found), found


@pytest.mark.parametrize("what", ["ids", "continuations"])
def test_verify_all_finds_shards_of_other_neighbors(root, data, tmp_path, monkeypatch, what):
    """Shards with right checksums that were joined wrongly."""
    shutil.copytree(data, tmp_path / "data")
    copy = tmp_path / "data"
    shutil.rmtree(copy / "joined")
    table, stored = ChunkTable(copy / "chunks"), NeighborTable(copy / "neighbors")
    encoder = open_encoder(copy / "embeddings", root / "encoder")
    with monkeypatch.context() as patch:
        if what == "ids":
            others = stored.ids[:]
            others[7] = others[7, ::-1]
            stored.ids = others
            named = "train sequence 1 has other neighbor_ids than its chunks -> redo retro_joined-train-00000-of-"
        else:
            real = table.value
            patch.setattr(table, "value", lambda ids: np.where(np.ndim(ids) == 2, real(ids)[..., ::-1], real(ids)))
            named = "train sequence 0 has other neighbor_tokens than its chunks -> redo retro_joined-train-00000-of-"
        settings = read_manifest(data / "joined", "joined").config
        build_joined(
            copy / "joined",
            table,
            stored,
            sequence_length=settings["sequence_length"],
            vocabulary=settings["vocabulary"],
            shard_sequences=settings["shard_sequences"],
            inputs={"chunks": table.fingerprint, "neighbors": stored.fingerprint},
        )
    assert check_content(copy, encoder)[0] == []
    found = [str(damage) for damage in check_content(copy, encoder, everything=True)[0]]
    assert any(named in line for line in found) and all(line.startswith("joined: ") for line in found), found
