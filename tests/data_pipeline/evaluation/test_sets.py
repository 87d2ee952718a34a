"""Sets as evaluation reads them: held-out text and joined sets alike, with neighbors by number, share and database."""

import shutil
from dataclasses import replace

import joined_set
import made_up_encoder
import made_up_text
import numpy as np
import pytest
from file_contents import contents
from joined_set import TEXTS, pile, write_records

from data_pipeline.chunks import ChunkTable
from data_pipeline.database import changes
from data_pipeline.database.database import Database
from data_pipeline.documents.stage import DocumentTable
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.evaluation.join import join, join_neighbors
from data_pipeline.evaluation.sets import open_set
from data_pipeline.pipeline import build
from data_pipeline.search.neighbors import NeighborTable
from data_pipeline.search.subset import in_subset
from data_pipeline.stages.run import StageError
from retro_jax.config import SourceConfig
from retro_jax.data.rows import first_rows


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="module")
def run(root):
    found = joined_set.make_build(root)
    join(found, root / "data", "pile", pile(write_records(root / "val.jsonl")))
    return found


@pytest.fixture
def data(root, run, tmp_path):
    """A copy of the build, to change."""
    shutil.copytree(root / "data", tmp_path / "data")
    return tmp_path / "data"


def nearest(data, name, k, allowed):
    """Ids of the k nearest allowed chunks of the database for each chunk of a set, by every distance."""
    table, vectors = ChunkTable(data / "chunks"), EmbeddingTable(data / "embeddings")
    held_out = name == "held_out"
    queries = (
        vectors[table.database_chunks :] if held_out else EmbeddingTable(data / "evaluation" / name / "embeddings")[:]
    )
    keys = vectors[: table.database_chunks][allowed]
    rows = np.flatnonzero(allowed)
    found = np.full((len(queries), k), np.inf)
    for row, query in enumerate(queries):
        squared = np.sort(((keys - query) ** 2).sum(axis=1))[:k]
        found[row, : len(squared)] = squared
    return rows, found


def test_a_joined_set_is_what_its_file_holds(data):
    found = open_set(data, "pile")
    kept = [(text, subset) for text, subset in TEXTS if text is not None]
    assert len(found) == len(kept) and found.protocol == "documents" and found.chunk_length == 8
    assert [found.subset_names[number] for number in found.subsets] == [subset for _, subset in kept]
    facts = found.documents(0, len(found))
    assert [(one.name, one.bytes, one.words) for one in facts[:2]] == [
        ("val.jsonl:1", 0, 0),
        ("val.jsonl:2", len(kept[1][0].encode()), 0),
    ]
    assert found.documents(1, 3) == facts[1:3] and all(one.scored in ((), ((0, one.bytes),)) for one in facts)
    for number, (text, _) in enumerate(kept):
        rows = range(found.edges[number], found.edges[number + 1])
        assert b"".join(piece for row in rows for piece in found.pieces(row)).decode() == text
        tokens = found.tokens(np.array(rows))
        flat = tokens[tokens >= 0]
        assert flat[0] == 1 and flat[-1] == 2  # BOS, EOS
    assert (found.tokens(np.array([-1])) == -1).all()
    assert found.document(int(found.edges[1])).text == kept[1][0]


def test_the_held_out_split_is_a_set(data):
    table, found = ChunkTable(data / "chunks"), open_set(data, "held_out")
    first = table.database_chunks
    assert np.array_equal(found.tokens(np.arange(found.edges[-1])), table.tokens[first : len(table)])
    owners = table.document_ids[first : len(table)]
    assert np.array_equal(found.edges[:-1], first_rows(owners)) and found.edges[-1] == len(owners)
    assert np.array_equal(found.document_ids, owners[found.edges[:-1]])
    documents = [one for one in DocumentTable(data / "documents").read() if one.split == "validation"]
    assert [one.name for one in found.documents(0, len(found))] == [one.name for one in documents]
    stored = NeighborTable(data / "neighbors")
    ids, distances = found.neighbors().find(np.arange(len(owners)))
    assert np.array_equal(ids, stored.ids[first : len(table)]) and np.array_equal(distances, stored.distances[first:])
    assert found.neighbors().facts["database"] == "" and found.neighbors().stored == 4
    assert found.fingerprint == open_set(data, "held_out").fingerprint != open_set(data, "pile").fingerprint


class OtherChunks:
    """The slow, obvious form: uniform draws from the database, never of the chunk's own document; a function of seed
    and chunk id alone."""

    def __init__(self, table, seed: int, removed=None):
        self.value = table.value
        self._seed, self._size = seed, table.database_chunks
        self._document_ids = np.asarray(table.document_ids[:])
        self._removed = np.zeros(len(self._document_ids), bool) if removed is None else removed
        self._gone = int(self._removed[: self._size].sum())
        ids, counts = np.unique(self._document_ids[: self._size], return_counts=True)
        self._own = dict(zip(ids.tolist(), counts.tolist(), strict=True))

    def draw(self, chunk_ids, counts, width):
        """`counts` different database chunks for each chunk id, then -1 up to `width` (fewer in a tiny database)."""
        drawn = np.full((*chunk_ids.shape, width), -1, np.int64)
        for place in np.argwhere((chunk_ids != -1) & (counts > 0)):
            place = tuple(place)
            document = int(self._document_ids[chunk_ids[place]])
            generator = np.random.default_rng([self._seed, int(chunk_ids[place])])
            # Enough draws that, were all of the document's own chunks among them, the others suffice.
            wanted = min(self._size, int(counts[place]) + self._own.get(document, 0) + self._gone)
            candidates = generator.choice(self._size, wanted, replace=False)
            others = (self._document_ids[candidates] != document) & ~self._removed[candidates]
            candidates = candidates[others][: counts[place]]
            drawn[place][: len(candidates)] = candidates
        return drawn


def test_draws_for_held_out_text_are_those_of_other_chunks(data):
    """Draws equal the slow form: after a removal, for padding rows, and for counts beyond the size of the database."""
    table = ChunkTable(data / "chunks")
    rows = np.concatenate([np.arange(20), [-1]])
    chunk_ids = np.where(rows >= 0, rows + table.database_chunks, -1)
    for seed in (0, 3):
        counts = np.arange(21) % 4
        expected = OtherChunks(table, seed).draw(chunk_ids, counts, 5)
        assert np.array_equal(open_set(data, "held_out").neighbors().draw(rows, counts, 5, seed), expected)
    gone = [int(table.document_ids[5]), int(table.document_ids[300])]
    changes.remove(data, gone)
    others = OtherChunks(table, 1, Database(data).removed)
    found = join_neighbors(data, "held_out")
    assert np.array_equal(found.draw(rows, counts, 5, 1), others.draw(chunk_ids, counts, 5))
    many = found.draw(rows[:1], np.array([len(table)]), len(table), 1)[0]
    assert np.array_equal(np.sort(many[many >= 0]), np.flatnonzero(~Database(data).removed[: table.database_chunks]))


@pytest.mark.parametrize("name", ["pile", "held_out"])
def test_more_neighbors_serve_for_fewer(data, name):
    found = open_set(data, name)
    rows = np.arange(found.edges[-1])
    with pytest.raises(
        StageError, match=rf"no 9 neighbors stored .*retro join --workdir=.* --set={name} --neighbors=9"
    ):
        found.neighbors(k=9)
    nine = join_neighbors(data, name, k=9)
    folders = sorted(path.name for path in (data / "evaluation" / name).glob("neighbors*"))
    for k in (9, 6, 4, 1):
        some = found.neighbors(k=k)
        assert some.stored == k and np.array_equal(some.find(rows)[0], nine.find(rows)[0][:, :k])
        assert some.find(rows)[0].shape == (len(rows), k)
    assert join_neighbors(data, name, k=7).directory == nine.directory
    assert sorted(path.name for path in (data / "evaluation" / name).glob("neighbors*")) == folders
    assert found.neighbors(k=9).fingerprint != found.neighbors(k=6).fingerprint
    ids, distances = nine.find(np.array([[0, -1]]))
    assert (ids[0, 1] == -1).all() and np.isinf(distances[0, 1]).all()


@pytest.mark.parametrize("name", ["pile", "held_out"])
def test_a_share_is_nested_and_searched_alone(data, name):
    table, found = ChunkTable(data / "chunks"), open_set(data, name)
    owners = table.document_ids[: table.database_chunks]
    rows = np.arange(found.edges[-1])
    for share in (0.25, 0.6):
        some = join_neighbors(data, name, k=3, share=share)
        inside, expected = nearest(data, name, 3, in_subset(owners, share))
        ids, distances = some.find(rows)
        assert np.isin(ids, inside).all()
        np.testing.assert_allclose(distances, expected, atol=1e-5)
        assert some.facts["share"] == share and some.facts["chunks"] == len(inside)
        drawn = some.draw(rows[:30], np.full(30, 2), 3)
        assert (drawn[:, :2] >= 0).all() and np.isin(drawn[:, :2], inside).all() and (drawn[:, 2] == -1).all()
    indexes = sorted(path.name[:10] for path in (data / "evaluation" / ".indexes").iterdir())
    assert indexes == ["share-0.25", "share-0.6-"]


@pytest.mark.parametrize("name", ["pile", "held_out"])
def test_a_changed_database_is_noticed_and_searched_anew(data, root, run, name, tmp_path):
    found, table = open_set(data, name), ChunkTable(data / "chunks")
    rows = np.arange(found.edges[-1])
    before, _ = found.neighbors().find(rows)
    owners = table.document_ids[before[before >= 0]]
    gone = sorted(set(owners.tolist()), key=owners.tolist().count)[-3:]
    changes.remove(data, gone)
    with pytest.raises(StageError, match=r"3 documents removed\)\. Search them: retro join"):
        found.neighbors()
    ids, distances = join_neighbors(data, name).find(rows)
    kept = ~np.isin(table.document_ids[: table.database_chunks], gone)
    _, expected = nearest(data, name, 4, kept)
    np.testing.assert_allclose(distances, expected, atol=1e-5)
    assert np.isin(ids, np.flatnonzero(kept)).all()
    first = found.edges[1] if name == "pile" else 0
    text = found.document(int(first)).text
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "later.txt").write_text(
        made_up_text.text(77, 30) + text + made_up_text.text(78, 30), newline=""
    )
    new = {"news": SourceConfig(path=str(tmp_path / "new"))}
    changes.add(data, replace(run, data=replace(run.data, sources=new)), new, root / "encoder")
    with pytest.raises(StageError, match="1 additions of"):
        found.neighbors()
    again = join_neighbors(data, name)
    ids, later = again.find(rows)
    assert (later <= distances).all() and (ids >= len(table)).any() and not np.isin(ids, np.flatnonzero(~kept)).any()
    added = ids[ids >= len(table)]
    assert (again.value(added) == Database(data).value(added)).all()
    assert again.document(int(added[0])).subset == "news" and b"".join(again.pieces(int(added[0]))).decode()
    everything = again.draw(rows[:1], np.array([10**6]), len(Database(data).tokens))[0]
    assert (everything >= len(table)).any() and not np.isin(everything, np.flatnonzero(~kept)).any()
    later = DocumentTable(data / "additions" / "00000" / "documents").read()
    (other,) = [document.id for document in later]
    share = max(share for share in (0.2, 0.35, 0.5, 0.65, 0.8) if not in_subset(np.array([other]), share)[0])
    ids, _ = join_neighbors(data, name, share=share).find(rows)
    owners = Database(data).document_ids[ids[ids >= 0]]
    assert in_subset(owners, share).all() and not np.isin(owners, gone).any()


def test_documents_can_be_left_out_of_the_database_for_a_set(data):
    found, table = open_set(data, "pile"), ChunkTable(data / "chunks")
    gone = frozenset(np.unique(table.document_ids[:400]).tolist())
    with pytest.raises(StageError, match="Search them"):
        found.neighbors(without=gone)
    some = join_neighbors(data, "pile", without=gone)
    ids, _ = some.find(np.arange(found.edges[-1]))
    assert not np.isin(table.document_ids[ids], list(gone)).any() and some.facts["left_out_documents"] == len(gone)
    assert not np.isin(table.document_ids[some.draw(np.arange(9), np.full(9, 3), 3)], list(gone)).any()
    assert np.array_equal(found.neighbors(without=gone).find(np.array([0]))[0], ids[:1])
    assert found.neighbors().facts["left_out_documents"] == 0


def test_another_database_of_the_same_encoder(data, root, run, tmp_path):
    made_up_text.write_folder(tmp_path / "text", documents=9, seed=3)
    sources = {"valley": SourceConfig(path=str(tmp_path / "text"))}
    given = replace(run.data, sources=sources, tokenizer=str(data / "tokenizer" / "tokenizer.model"))
    build(replace(run, data=given), tmp_path / "other")
    other = tmp_path / "other" / "data"
    before = contents(other)
    found, rows = open_set(data, "pile"), np.arange(5)
    with pytest.raises(StageError, match=f"--set=pile --database={other}"):
        found.neighbors(database=str(other))
    there = join_neighbors(data, "pile", database=str(other))
    ids, _ = there.find(rows)
    assert there.facts["database"] == str(other) and there.document(int(ids[0, 0])).subset == "valley"
    assert np.array_equal(there.value(ids), ChunkTable(other / "chunks").value(ids))
    assert np.array_equal(found.neighbors(database=str(other)).find(rows)[0], ids)
    assert contents(other) == before
    third = tmp_path / "third" / "data"
    build(replace(run, data=replace(run.data, sources=sources)), third.parent)
    read = join_neighbors(data, "pile", database=str(third))
    ids, _ = read.find(rows)
    assert np.array_equal(read.value(ids), Database(third, reader=data).value(ids))  # in the tokens of the set
    assert not np.array_equal(read.value(ids), Database(third).value(ids))
    made_up_encoder.write(tmp_path / "encoder", seed=5)
    fourth = replace(run, data=replace(run.data, sources=sources, encoder=str(tmp_path / "encoder")))
    build(fourth, tmp_path / "fourth")
    with pytest.raises(StageError, match=r"fourth/data has another encoder than .*config.data.encoder"):
        join_neighbors(data, "pile", database=str(tmp_path / "fourth" / "data"))
