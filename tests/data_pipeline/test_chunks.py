"""Documents on the chunk grid: no token is lost or shared, and [N, F] never leaves a document."""

import dataclasses
import json

import made_up_text
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.chunks import COLUMNS, ChunkTable, build_chunks, cut, document_ranges, values
from data_pipeline.documents.stage import DocumentTable, build_documents
from data_pipeline.stages.run import Shard, StageError, read_manifest, run_stage
from data_pipeline.tokens import Tokenizer
from retro_jax.config import SourceConfig
from retro_jax.data.rows import ShardedRows

M = 8
BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("chunks")
    made_up_text.build(root, M)
    return root


@pytest.fixture(scope="module")
def table(root):
    return ChunkTable(root / "chunks")


def tokens_of(table, document_id):
    rows = table.tokens[np.flatnonzero(np.asarray(table.document_ids) == document_id)]
    return rows[rows != -1].tolist()


def write_table(directory, documents, database, rows_a_shard, chunk_length=4):
    """A ChunkTable of made-up documents (id, tokens); shard borders fall anywhere, also inside a document."""
    rows, lengths = cut([tokens for _, tokens in documents], chunk_length, BOS, EOS)
    ids = np.repeat(np.array([i for i, _ in documents], np.int64), lengths)
    columns = {"tokens": rows, "document_ids": ids, "subsets": np.zeros(len(rows), np.int32)}
    shards = []
    for number, start in enumerate(range(0, len(rows), rows_a_shard)):

        def make(temporary, number=number, start=start):
            for name, column in columns.items():
                np.save(temporary / f"chunks-{number:05d}.{name}.npy", column[start : start + rows_a_shard])
            return {}

        shards.append(Shard(f"{number}", [f"chunks-{number:05d}.{name}.npy" for name in COLUMNS], make))
    counts = {"subsets": ["a"], "chunk_length": chunk_length, "database_chunks": database, "chunks": len(rows)}
    run_stage(directory, "chunks", {}, {}, shards, counts=counts)
    return ChunkTable(directory)


def test_a_table_to_look_at():
    """Each document begins a row of its own; the rest of its last row is padding."""
    rows, lengths = cut([[10, 11, 12], [20], [], [30, 31]], 4, BOS, EOS)
    assert rows.tolist() == [
        [1, 10, 11, 12],
        [2, -1, -1, -1],
        [1, 20, 2, -1],
        [1, 2, -1, -1],
        [1, 30, 31, 2],
    ]
    assert lengths.tolist() == [2, 1, 1, 1]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(3, 99), max_size=30), min_size=1, max_size=8), st.integers(1, 9))
@example([[]], 1)
def test_cutting_loses_nothing(documents, chunk_length):
    rows, lengths = cut(documents, chunk_length, BOS, EOS)
    assert rows.dtype == np.int32 and rows.shape == (lengths.sum(), chunk_length)
    for document, part in zip(documents, np.split(rows, np.cumsum(lengths)[:-1]), strict=True):
        flat = part.reshape(-1)
        size = len(document) + 2
        assert flat[:size].tolist() == [BOS, *document, EOS]
        assert len(flat) - size < chunk_length and (flat[size:] == -1).all()


ODD_TEXTS = [
    "",
    "x",
    "\r",
    "\r\n\r\n",
    "a\rb\u2028c\u0085d",
    "\0",
    "\u2581 \u2581",
    "\ufeff\ufeff",
    "the mill\n" * 3000,
]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.sampled_from(ODD_TEXTS), st.text(st.characters(exclude_categories=["Cs"]))), min_size=1))
@example(ODD_TEXTS)
@example([""])
def test_stages_lose_nothing(root, tmp_path_factory, texts):
    """Any Unicode, empty and huge documents, odd line ends: a document's rows are BOS + encode(text) + EOS."""
    tmp = tmp_path_factory.mktemp("any")
    (tmp / "in.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), newline="")
    config = made_up_text.config(tmp / "in.jsonl", minimum_characters=0)
    build_documents(tmp / "documents", config)
    build_chunks(tmp / "chunks", config, M, tmp / "documents", root / "tokenizer")
    table, tokenizer = ChunkTable(tmp / "chunks"), Tokenizer(root / "tokenizer")
    documents = list(DocumentTable(tmp / "documents").read())
    assert sorted({document.text for document in documents}) == sorted(set(texts))
    for document in documents:
        assert tokens_of(table, document.id) == [BOS, *tokenizer.encode(document.text), EOS]


def test_a_large_document_is_whole(root, tmp_path):
    (tmp_path / "big.txt").write_text(made_up_text.text(0, 120_000))
    config = made_up_text.config(tmp_path / "big.txt", validation_fraction=0.0)
    build_documents(tmp_path / "documents", config)
    manifest = build_chunks(tmp_path / "chunks", config, M, tmp_path / "documents", root / "tokenizer")
    (document,) = DocumentTable(tmp_path / "documents").read()
    tokenizer = Tokenizer(root / "tokenizer")
    assert tokens_of(ChunkTable(tmp_path / "chunks"), document.id) == [BOS, *tokenizer.encode(document.text), EOS]
    assert manifest.counts["by_subset"]["farm"]["train"]["bytes"] == len(document.text.encode()) > 500_000


def test_order_counts_and_types(root, table):
    documents = list(DocumentTable(root / "documents").read())
    ids = np.asarray(table.document_ids)
    first = np.flatnonzero(np.diff(ids, prepend=-1))
    assert ids[first].tolist() == [document.id for document in documents]
    assert (table.tokens[first][:, 0] == BOS).all()
    trained = [document.id for document in documents if document.split == "train"]
    assert set(ids[: table.database_chunks]) == set(trained) and not set(ids[table.database_chunks :]) & set(trained)
    counts = read_manifest(root / "chunks", "chunks").counts
    tokens = np.asarray(table.tokens)
    assert counts["chunks"] == len(table) and counts["tokens"] == (tokens != -1).sum()
    assert counts["documents"] == len(documents) and counts["subsets"] == ["farm"]
    for split in ("train", "validation"):
        part = counts["by_subset"]["farm"][split]
        mine = [document for document in documents if document.split == split]
        assert part["documents"] == len(mine)
        assert part["bytes"] == sum(len(document.text.encode()) for document in mine)
    # Ids stay 64 bits wide; a document id has 63.
    assert table.document_ids.dtype == np.int64 and ids.max() > 2**32
    assert table.tokens.dtype == table.subsets.dtype == np.int32


def test_rows_do_not_depend_on_shards(root, table, tmp_path):
    config = made_up_text.config(root / "text", shard_chunks=10**6)
    build_chunks(tmp_path / "chunks", config, M, root / "documents", root / "tokenizer")
    whole = ChunkTable(tmp_path / "chunks")
    assert len(table.shard_rows) > 4 and len(whole.shard_rows) == 2  # one a split
    for column in ("tokens", "document_ids", "subsets"):
        np.testing.assert_array_equal(np.asarray(getattr(table, column)), np.asarray(getattr(whole, column)))


def test_shards_hold_whole_documents_of_one_split():
    sizes = np.array([10, 10, 10, 5000, 10, 10, 10])
    assert document_ranges(sizes, trained=5, chunk_length=4, shard_chunks=6) == [(0, 3), (3, 4), (4, 5), (5, 7)]
    assert document_ranges(sizes, trained=7, chunk_length=4, shard_chunks=10**6) == [(0, 7)]
    assert document_ranges(sizes, trained=0, chunk_length=4, shard_chunks=10**6) == [(0, 7)]


# Documents 7, 8 and 9 of two, one and two rows; the last row of 8 and the first of 9 touch, and 9 ends the table.
DOCUMENTS = [(7, [10, 11, 12, 13]), (8, [20]), (9, [30, 31, 32])]


@pytest.mark.parametrize("rows_a_shard", [1, 2, 3, 99])
def test_value_is_the_chunk_and_its_continuation(tmp_path, rows_a_shard):
    """Guards against a continuation that runs into the next document or starts over at the table's end; -1 read as a row."""
    table = write_table(tmp_path, DOCUMENTS, 3, rows_a_shard)
    none = [-1] * 4
    expected = [
        [1, 10, 11, 12] + [13, 2, -1, -1],
        [13, 2, -1, -1] + none,  # 8 follows, which is another document
        [1, 20, 2, -1] + none,
        [1, 30, 31, 32] + [2, -1, -1, -1],
        [2, -1, -1, -1] + none,  # the table's end: not row 0
    ]
    assert table.value(np.arange(5)).tolist() == expected
    assert table.value(np.array([[-1, 4], [0, -1]])).tolist() == [[none * 2, expected[4]], [expected[0], none * 2]]
    assert table.value(np.array([-1, -1])).tolist() == [none * 2] * 2
    assert table.value(np.empty((2, 0), np.int64)).shape == (2, 0, 8)
    assert table.value(np.int64(3)).tolist() == expected[3]


def test_a_missing_neighbor_indexes_nothing(tmp_path):
    """Guards against the last chunk (row -1) or chunk 0 in place of a missing neighbor, in any shape."""
    table = write_table(tmp_path, DOCUMENTS, 3, 2)

    class Watched:
        def __init__(self, rows):
            self.rows, self.shape, self.read = rows, rows.shape, []

        def __getitem__(self, wanted):
            self.read += np.ravel(wanted).tolist()
            return self.rows[wanted]

    table.tokens = watched = Watched(table.tokens)
    assert (table.value(np.full((3, 2), -1)) == -1).all()
    assert watched.read == []
    table.value(np.array([-1, 2, -1]))
    assert watched.read == [2]


@pytest.mark.parametrize("ids", [[5], [-2], [0, 99], [2**40]])
def test_an_id_outside_is_refused(tmp_path, ids):
    table = write_table(tmp_path, DOCUMENTS, 3, 2)
    with pytest.raises(ValueError, match="is not a chunk id: ids run from 0 to 4"):
        table.value(np.array(ids))
    with pytest.raises(ValueError, match="integers"):
        table.value(np.array(ids, np.float32))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(1, 5), st.data())
def test_value_holds_only_one_documents_text(lengths, chunk_length, data):
    """Guards against [N, F] of two documents. Its tokens are consecutive tokens of the document of N."""
    documents = [(number, [100 * number + 3 + i for i in range(length)]) for number, length in enumerate(lengths)]
    table, rows = cut([tokens for _, tokens in documents], chunk_length, BOS, EOS)
    document_ids = np.repeat(np.arange(len(documents)), rows)
    ids = np.array(data.draw(st.lists(st.integers(-1, len(table) - 1), min_size=1, max_size=9)))
    for chunk, value in zip(ids, values(table, document_ids, ids), strict=True):
        tokens = value[value != -1].tolist()
        if chunk == -1:
            assert tokens == []
            continue
        document = document_ids[chunk]
        start = (chunk - np.flatnonzero(document_ids == document)[0]) * chunk_length
        whole = [BOS, *documents[document][1], EOS]
        assert tokens == whole[start : start + 2 * chunk_length]
        assert (value[len(tokens) :] == -1).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_sharded_rows_are_indexed_like_an_array(tmp_path_factory, sizes, data):
    tmp, whole = tmp_path_factory.mktemp("rows"), np.arange(sum(sizes) * 3).reshape(-1, 3)
    parts = np.split(whole, np.cumsum(sizes)[:-1])
    paths = [tmp / f"{number}.npy" for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        np.save(path, part)
    rows = ShardedRows(paths)
    assert rows.shape == whole.shape and len(rows) == len(whole) and rows.dtype == whole.dtype
    some = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=6)), np.int64)
    bounds = data.draw(st.tuples(st.integers(0, 30), st.integers(0, 30), st.sampled_from([1, 2])))
    for index in (some, some.reshape(1, -1), slice(*bounds), 0, slice(None)):
        np.testing.assert_array_equal(rows[index], whole[index])
    np.testing.assert_array_equal(np.asarray(rows), whole)
    with pytest.raises(IndexError, match="outside"):
        _ = rows[np.array([-1])]
    with pytest.raises(TypeError, match="integers"):
        _ = rows[np.ones(len(whole), bool)]


def test_subsets_are_numbered_by_name(root, tmp_path):
    for name in ("zebra", "ant"):
        made_up_text.write_folder(tmp_path / name, 6, seed=len(name))
    sources = {name: SourceConfig(path=str(tmp_path / name)) for name in ("zebra", "ant")}
    config = dataclasses.replace(made_up_text.config(tmp_path), sources=sources)
    build_documents(tmp_path / "documents", config)
    build_chunks(tmp_path / "chunks", config, M, tmp_path / "documents", root / "tokenizer")
    table = ChunkTable(tmp_path / "chunks")
    names = {document.id: document.subset for document in DocumentTable(tmp_path / "documents").read()}
    assert table.subset_names == ("ant", "zebra")
    for document_id, subset in zip(np.asarray(table.document_ids), np.asarray(table.subsets), strict=True):
        assert table.subset_names[subset] == names[document_id]


def test_a_tokenizer_that_loses_text_is_refused(root, tmp_path, monkeypatch):
    monkeypatch.setattr(Tokenizer, "encode_all", lambda self, texts: self._reader.encode_all([t[1:] for t in texts]))
    with pytest.raises(StageError, match=r"loses text: its tokens of document '\d+.txt' stand for"):
        build_chunks(tmp_path / "c", made_up_text.config(root / "text"), M, root / "documents", root / "tokenizer")


def test_another_tokenizer_or_chunk_length_is_refused(root):
    """The stage names the differences and changes nothing."""
    before = {path: path.stat().st_mtime_ns for path in (root / "chunks").rglob("*")}
    with pytest.raises(StageError, match=r"config.chunk_length \(there 8, now 16\)"):
        build_chunks(root / "chunks", made_up_text.config(root / "text"), 16, root / "documents", root / "tokenizer")
    assert {path: path.stat().st_mtime_ns for path in (root / "chunks").rglob("*")} == before
