"""A build with config.data.database searches the database of another build and reads its text in its own tokens."""

import json
import pickle
import shutil
from dataclasses import replace

import joined_set
import made_up_encoder
import made_up_text
import made_up_tokenizer
import numpy as np
import pytest
from file_contents import contents
from joined_set import pile, write_records
from test_join import OtherProcess
from test_verify import flip

from data_pipeline.chunks import ChunkTable, cut
from data_pipeline.database.changes import add, remove
from data_pipeline.database.check_content import check_content
from data_pipeline.database.copies import Copies
from data_pipeline.database.database import Database
from data_pipeline.database.retokenized import Retokenized
from data_pipeline.documents.stage import DocumentTable
from data_pipeline.encoder.bert import encoder_directory
from data_pipeline.encoder.dtype import fastest_dtype
from data_pipeline.encoder.stage import open_encoder
from data_pipeline.evaluation.join import join, join_neighbors
from data_pipeline.evaluation.sets import open_set
from data_pipeline.pipeline import build
from data_pipeline.search.neighbors import NeighborTable
from data_pipeline.stages.engine import using
from data_pipeline.stages.run import StageError, read_facts, read_manifest
from data_pipeline.tokens import Tokenizer, build_tokenizer
from launch import database as verb
from retro_jax.config import DataConfig, SourceConfig
from retro_jax.data.joined import open_split

PADDING = -1
ODD = "grain \U0001f33e\U0001f33e\U0001f33e mill é–é \u2581 wheel \u2009\U0001f33e"
M = joined_set.MODEL.chunk_length
FASTER = fastest_dtype()  # of this machine; the database is of the other one
SLOWER = {"float32": "bfloat16", "bfloat16": "float32"}[FASTER]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A build `a` with a SentencePiece model; some letters are several byte tokens, so that chunks cut them."""
    root = tmp_path_factory.mktemp("other")
    made_up_text.write_folder(root / "text", documents=20)
    for number in range(4):
        (root / "text" / f"odd-{number}.txt").write_text(
            ODD * (3 + number) + made_up_text.text(77 + number, 20), newline=""
        )
    return root


@pytest.fixture(scope="module")
def run_a(root):
    sources = {"farm": SourceConfig(path=str(root / "text"), license="CC0")}
    return joined_set.make_build(root / "a", sources=sources, encoder_dtype=SLOWER)


@pytest.fixture(scope="module")
def run_b(root, run_a):
    """The config of a build of text of its own with a byte-level tokenizer, half of it under other ids in `a`."""
    (root / "own").mkdir()
    for number in range(8):
        shutil.copy(root / "text" / f"{number:03d}.txt", root / "own")
    made_up_text.write_folder(root / "own" / "more", documents=8, seed=4)
    return of_other(run_a, root / "a" / "data", root / "own", byte_level(root / "tokenizer"))


def of_other(run, database, text, tokenizer=None):
    sources = {"own": SourceConfig(path=str(text))}
    facts = {"sources": sources, "database": str(database), "tokenizer": str(tokenizer or "")}
    data = replace(run.data, **facts, encoder_dtype="auto")
    vocabulary = made_up_tokenizer.VOCABULARY if tokenizer else run.model.vocabulary
    return replace(run, data=data, model=replace(run.model, vocabulary=vocabulary))


def byte_level(folder, **changes):
    return made_up_tokenizer.write_tokenizer(folder, **changes)


@pytest.fixture(scope="module")
def b(root, run_b):
    """The data directory of a finished build; asserts that nothing of the other one changed."""
    before = contents(root / "a" / "data")
    build(run_b, root / "b")
    assert contents(root / "a" / "data") == before
    return root / "b" / "data"


def characters(document, reader, length):
    """[(text of the characters that begin in a chunk)] of a document, by the places of its tokens in the text alone."""
    content = document.text.encode()
    sizes = [0, *(len(reader.pieces[token]) for token in reader.encode(document.text)), 0]
    edges = np.cumsum([0, *sizes])
    found = []
    for first in range(0, len(sizes), length):
        start, stop = edges[first], edges[min(first + length, len(sizes))]
        begins, at = [], 0
        for letter in document.text:
            if start <= at < stop:
                begins.append(letter)
            at += len(letter.encode())
        found.append("".join(begins))
        assert at == len(content)
    return found


def slow_rows(documents, written, read, length, width):
    """[N, width] of all chunks, one by one."""
    rows = []
    for document in documents:
        texts = characters(document, written, length)
        for number, text in enumerate(texts):
            tokens = [read.bos] * (number == 0) + read.encode(text) + [read.eos] * (number == len(texts) - 1)
            rows.append((tokens + [PADDING] * width)[:width])
    return np.array(rows)


def slow_value(rows, owners, ids):
    """[N, F] of ids, one by one."""
    width, found = rows.shape[1], []
    for id in ids.reshape(-1).tolist():
        follows = id >= 0 and id + 1 < len(rows) and owners[id + 1] == owners[id]
        first = rows[id] if id >= 0 else np.full(width, PADDING)
        found.append(np.concatenate([first, rows[id + 1] if follows else np.full(width, PADDING)]))
    return np.array(found).reshape(*ids.shape, 2 * width)


def test_the_text_of_every_neighbor_is_that_of_the_slow_form(root, b):
    """Guards against text that is lost or doubled where a chunk cuts a letter, and a continuation that is not at M."""
    a, reader = root / "a" / "data", Tokenizer(b / "tokenizer")
    written, table = Tokenizer(a / "tokenizer"), ChunkTable(a / "chunks")
    rows = slow_rows(DocumentTable(a / "documents").read(), written, reader, M, M)
    assert len(rows) == len(table) and (rows[:, -1] == PADDING).any() and (rows[:, -1] != PADDING).any()
    owners = np.asarray(table.document_ids[:])
    seen = 0
    for split in ("train", "validation"):
        for example in open_split(b / "joined", split)[0]:
            ids = example["neighbor_ids"]
            assert np.array_equal(example["neighbor_tokens"], slow_value(rows, owners, ids))
            seen += (ids >= 0).sum()
    assert seen > 500
    assert np.array_equal(Database(a, reader=b).text.tokens[np.arange(len(table))], rows)


@pytest.mark.parametrize("length", [2, 3, 5])
@pytest.mark.parametrize("width", [2, 7, 40])
def test_chunks_that_cut_letters_into_three(root, b, length, width):
    """Guards against a letter of four byte tokens that ends two chunks later."""
    written, reader = Tokenizer(root / "a" / "data" / "tokenizer"), Tokenizer(b / "tokenizer")
    documents = [d for d in DocumentTable(root / "a" / "data" / "documents").read() if "\U0001f33e" in d.text]
    table, counts = cut([written.encode(d.text) for d in documents], length, written.bos, written.eos)
    owners = np.repeat(np.arange(len(documents)), counts)
    rows = Retokenized(table, owners, written, reader, width)
    expected = slow_rows(documents, written, reader, length, width)
    asked = np.random.default_rng(0).permutation(len(table))
    assert rows.shape == expected.shape and np.array_equal(rows[asked], expected[asked])
    assert np.array_equal(rows[asked.reshape(-1, 1)][:, 0], expected[asked])
    assert rows[np.empty((0, 3), np.int64)].shape == (0, 3, width)
    whole = rows.encoded(np.arange(len(table)))
    texts = [
        "".join(reader.decode(ids) for ids, o in zip(whole, owners, strict=True) if o == d)
        for d in range(len(documents))
    ]
    assert texts == [d.text for d in documents]


def test_letters_that_the_model_cannot_write_are_left_out(root, tmp_path):
    vocab = made_up_tokenizer.facts()["model"]
    del vocab["vocab"]["\u0104"]  # how a byte-level piece writes 0x04
    path = byte_level(tmp_path, model=vocab)
    build_tokenizer(tmp_path / "tokenizer", DataConfig(tokenizer=str(path)), made_up_tokenizer.VOCABULARY, tmp_path)
    reader, written = Tokenizer(tmp_path / "tokenizer"), Tokenizer(root / "a" / "data" / "tokenizer")
    assert reader.lacking == {4}
    table, _ = cut([written.encode("mill\x04 of\x04")], 16, written.bos, written.eos)
    row = Retokenized(table, np.zeros(len(table), int), written, reader, 16)[np.array(0)]
    assert reader.decode(row[row != PADDING]) == "mill of"


def test_with_the_same_tokenizer_the_shards_have_the_bytes_of_the_other_build(root, run_a, b):
    """Guards against tokens that are made again though nothing differs: cutting a chunk's text alone gives others."""
    a = root / "a" / "data"
    given = replace(of_other(run_a, a, root / "text").data, sources=run_a.data.sources)
    given = replace(given, tokenizer=str(a / "tokenizer" / "tokenizer.model"))
    build(replace(run_a, data=given), root / "same")
    same = root / "same" / "data"
    for stage, pattern in (("joined", "*[0-9]"), ("joined", "*s*.json"), ("neighbors", "*.npy")):
        files = [path.name for path in sorted((a / stage).glob(pattern)) if path.name not in OWN]
        assert files and [path.name for path in sorted((same / stage).glob(pattern)) if path.name not in OWN] == files
        assert all((same / stage / name).read_bytes() == (a / stage / name).read_bytes() for name in files)
    assert Database(a, reader=same).text.tokens is not Database(a, reader=b).text.tokens
    assert not (same / "index").exists() and "retokenized" not in read_facts(same / "joined").counts


OWN = ("manifest.json", "seconds.json", "plan.json")


def test_no_neighbor_is_of_the_same_text_under_another_id(root, b):
    """Guards against a text that finds itself in the other database, because another source gave it another id."""
    mine = {d.id: d.text for d in DocumentTable(b / "documents").read()}
    there = {d.text: d.id for d in DocumentTable(root / "a" / "data" / "documents").read() if d.split == "train"}
    twice = {id: there[text] for id, text in mine.items() if text in there}
    assert 3 < len(twice) < len(mine) and all(id != other for id, other in twice.items())
    assert read_facts(b / "copies").counts["in_both"] == len(twice)
    table, found = ChunkTable(b / "chunks"), NeighborTable(b / "neighbors")
    owners = np.asarray(ChunkTable(root / "a" / "data" / "chunks").document_ids[:])
    for row, id in enumerate(np.asarray(table.document_ids[:]).tolist()):
        ids = found.ids[row]
        assert (ids >= 0).all() and twice.get(id) not in owners[ids]
    copies = Copies(b / "copies")
    assert dict(copies.own(np.array(list(twice)))) == twice
    assert copies.own(np.array([5]))[0].tolist() == [5, PADDING]


def test_held_out_text_is_scored_with_the_neighbors_of_the_build(root, b):
    """Also when more of them are searched; random ones are never of the document's copy."""
    mine = open_set(b, "held_out")
    stored, rows = mine.neighbors(), np.arange(mine.edges[-1])
    assert stored.directory == b / "neighbors" and stored.facts["database"] == str(root / "a" / "data")
    more = join_neighbors(b, "held_out", k=6)
    ids, distances = stored.find(rows)
    assert np.array_equal(more.find(rows)[0][:, :4], ids) and np.array_equal(more.find(rows)[1][:, :4], distances)
    reader = Tokenizer(b / "tokenizer")
    for id in ids[0].tolist():
        row = stored.value(np.array(id))[:M]
        assert b"".join(stored.pieces(id)).decode() == reader.decode(row[row != PADDING])
    own = Copies(b / "copies").own(mine.document_ids[np.searchsorted(mine.edges, rows, side="right") - 1])
    owners = np.asarray(Database(root / "a" / "data").document_ids[:])
    drawn = owners[more.draw(rows, np.full(len(rows), 50), 50)]
    assert not (drawn[:, :, None] == own[:, None]).any()


def test_a_set_is_joined_and_a_changed_database_is_searched_again(root, run_b, b, tmp_path, capsys):
    """An addition needs no other files; its text is read in the model's tokens too."""
    a = tmp_path / "a" / "data"
    shutil.copytree(root / "a" / "data", a)
    data = tmp_path / "b" / "data"
    shutil.copytree(b, data, symlinks=True)
    moved = replace(run_b, data=replace(run_b.data, database=str(a)))
    build(moved, tmp_path / "b")
    assert (data / "database").resolve() == a
    write_records(tmp_path / "val.jsonl")
    join(moved, data, "pile", pile(tmp_path / "val.jsonl"))
    before = open_set(data, "pile").neighbors()
    made_up_text.write_folder(tmp_path / "new", documents=3, seed=9)
    gone = int(DocumentTable(a / "documents").records().__next__()["id"])
    with pytest.raises(StageError, match="has none of its own; change that one"):
        remove(data, [gone])
    remove(a, [gone])
    sources = {"valley": SourceConfig(path=str(tmp_path / "new"))}
    with pytest.raises(StageError, match="has none of its own; change that one"):
        add(data, moved, sources, encoder_directory(moved.data))
    add(a, moved, sources, encoder_directory(moved.data))
    with pytest.raises(StageError, match="retro join .*--set=pile"):
        open_set(data, "pile").neighbors()
    after = join_neighbors(data, "pile")
    database, reader = Database(a, reader=data), Tokenizer(data / "tokenizer")
    added = np.arange(database.first[1], database.first[2])
    rows = slow_rows(
        DocumentTable(a / "additions" / "00000" / "documents").read(), Tokenizer(a / "tokenizer"), reader, M, M
    )
    assert np.array_equal(database.value(added)[:, :M], rows)
    found = np.unique(after.find(np.arange(open_set(data, "pile").edges[-1]))[0])
    assert np.isin(found, added).any() and not (database.document_ids[found[found >= 0]] == gone).any()
    assert before.fingerprint != after.fingerprint
    with pytest.raises(StageError, match="held_out.*retro join"):
        open_set(data, "held_out").neighbors()
    shards = contents(data / "joined")
    assert verb.main(["verify", f"--workdir={tmp_path / 'b'}"]) == 0  # what was found in the earlier version stays
    flip(next((data / "neighbors").glob("*.ids.npy")))
    capsys.readouterr()
    assert verb.main(["verify", "--repair", f"--workdir={tmp_path / 'b'}"]) == 2
    assert "the database that it was searched in has changed since" in capsys.readouterr().err
    assert contents(data / "joined") == shards


def own_text(data, database, rows, owners, ids) -> int:
    """How many neighbors are of the text of the document that they are neighbors of."""
    text = {document.id: document.text for document in DocumentTable(data / "documents").read()}
    there = {id: database.document(id).text for id in np.unique(ids[ids >= 0]).tolist()}
    return sum(there[id] == text[owners[row]] for row in rows for id in ids[row].tolist() if id >= 0)


def test_a_copy_that_came_with_an_addition_is_no_neighbor(root, run_b, b, tmp_path):
    """Guards against held-out text that finds itself: its text is added to the database after the build."""
    a, data = tmp_path / "a" / "data", tmp_path / "b" / "data"
    shutil.copytree(root / "a" / "data", a)
    shutil.copytree(b, data, symlinks=True)
    moved = replace(run_b, data=replace(run_b.data, database=str(a)))
    build(moved, tmp_path / "b")
    there = {document.text for document in DocumentTable(a / "documents").read()}
    held = [one for one in DocumentTable(data / "documents").read() if one.split != "train" and one.text not in there]
    (tmp_path / "new").mkdir()
    for number, document in enumerate(held):
        (tmp_path / "new" / f"{number}.txt").write_text(document.text, newline="")
    add(a, moved, {"valley": SourceConfig(path=str(tmp_path / "new"))}, encoder_directory(moved.data))
    found, database = join_neighbors(data, "held_out"), Database(a)
    mine = open_set(data, "held_out")
    rows = np.arange(mine.edges[-1])
    owners = np.repeat(mine.document_ids, np.diff(mine.edges))
    assert held and own_text(data, database, rows, owners, found.find(rows)[0]) == 0
    drawn = found.draw(rows, np.full(len(rows), 40), 40)
    assert own_text(data, database, rows, owners, drawn) == 0
    assert open_set(data, "held_out").neighbors().fingerprint == found.fingerprint


def test_every_copy_of_a_text_is_left_out(root, run_a, run_b, tmp_path):
    """Guards against the one copy of an addition that is removed at once, in place of the one that is searched."""
    a, data = tmp_path / "a" / "data", tmp_path / "b" / "data"
    shutil.copytree(root / "a" / "data", a)
    (tmp_path / "new").mkdir()
    for number in range(8):
        shutil.copy(root / "text" / f"{number:03d}.txt", tmp_path / "new" / f"again{number}.txt")
    moved = replace(run_b, data=replace(run_b.data, database=str(a)))
    add(a, moved, {"valley": SourceConfig(path=str(tmp_path / "new"))}, encoder_directory(moved.data))
    build(moved, tmp_path / "b")
    table, found = ChunkTable(data / "chunks"), NeighborTable(data / "neighbors")
    owners = np.asarray(table.document_ids[:])
    assert own_text(data, Database(a), range(len(table)), owners, np.asarray(found.ids[:])) == 0


def test_a_set_is_compared_with_the_documents_of_the_other_database(root, run_b, b, tmp_path):
    """Guards against a clean database that still holds the text of the set, because only the build's text was looked at."""
    there = next(d for d in DocumentTable(root / "a" / "data" / "documents").read() if d.name.endswith("odd-1.txt"))
    (tmp_path / "copy.txt").write_text(there.text, newline="")
    join(run_b, b, "copy", replace(pile(tmp_path / "copy.txt"), subset_key=""))
    found = open_set(b, "copy")
    assert found.contaminated(0.8).all() and there.id in found.overlapping_documents(0.8)
    clean = join_neighbors(b, "copy", without=found.overlapping_documents(0.8))
    owners, rows = Database(root / "a" / "data").document_ids, np.arange(found.edges[-1])
    assert (owners[found.neighbors().find(rows)[0]] == there.id).any()
    assert not (owners[clean.find(rows)[0]] == there.id).any()


def test_manifests_name_both_tokenizers_and_verify_compares_them(root, run_b, b, tmp_path, capsys):
    a = root / "a" / "data"
    inputs = read_facts(b / "joined").inputs
    for name, place in (("tokenizer", b), ("tokenizer of the database", a), ("chunks of the database", a)):
        stage = name.split()[0]
        assert inputs[name] == read_manifest(place / stage, stage).fingerprint
    assert read_facts(b / "embeddings").config == read_facts(a / "embeddings").config  # the dtype of the database
    sample = read_facts(b / "joined").counts["retokenized"]
    assert sample["cut"] > 0 and sample["longer"] < sample["chunks"] <= sample["tokens"]
    assert verb.main(["verify", "--all", f"--workdir={b.parent}"]) == 0
    assert json.loads(capsys.readouterr().out.split("intact: ")[1])["rows_as_exact"] == len(ChunkTable(b / "chunks"))
    assert verb.main(["info", f"--workdir={b.parent}"]) == 0
    assert f"of {a}, whose text is tokenized again" in capsys.readouterr().out
    other = replace(run_b.data, database="", sources={"own": SourceConfig(path=str(root / "text"))})
    build(replace(run_b, data=other), tmp_path / "other")
    shutil.copytree(b, tmp_path / "b" / "data", symlinks=True)
    (tmp_path / "b" / "data" / "database").unlink()
    (tmp_path / "b" / "data" / "database").symlink_to(tmp_path / "other" / "data")
    assert verb.main(["verify", f"--workdir={tmp_path / 'b'}"]) == 2
    said = capsys.readouterr().err
    assert "joined: it was made from another 'chunks of the database, tokenizer of the database' than there is" in said
    (tmp_path / "b" / "data" / "database").unlink()
    (tmp_path / "b" / "data" / "database").symlink_to(tmp_path / "nowhere")
    assert verb.main(["verify", f"--workdir={tmp_path / 'b'}"]) == 2
    assert f"come from the database {tmp_path / 'nowhere'}, which is not there" in capsys.readouterr().err


def test_a_wrong_neighbor_text_is_found(root, b, tmp_path, capsys):
    """Guards against a check that reads the text of the own chunks instead."""
    data = tmp_path / "b" / "data"
    shutil.copytree(b, data, symlinks=True)
    ids = sorted((data / "neighbors").glob("*.ids.npy"))[0]
    table = np.load(ids)
    table[3, 0] = Database(root / "a" / "data").table.database_chunks  # of held-out text
    np.save(ids, table)
    encoder = open_encoder(b / "embeddings", root / "a" / "encoder")
    found = [str(damage) for damage in check_content(data, encoder)[0]]
    assert any("row 3 has a neighbor outside the database" in damage for damage in found)


def test_other_processes_make_the_same_bytes(root, run_b, b):
    """Guards against shards that hold a table: Ray sends them to other machines."""
    made = shutil.ignore_patterns("copies", "neighbors", "joined", "evaluation")
    shutil.copytree(b, root / "elsewhere" / "data", symlinks=True, ignore=made)
    with using(OtherProcess()):
        build(run_b, root / "elsewhere")
    there, here = contents(root / "elsewhere" / "data"), contents(b)
    stages = [name for name in here if name.startswith(("copies/", "neighbors/", "joined/"))]
    assert len(stages) > 9 and all(there[name] == here[name] for name in stages)
    assert len(pickle.dumps(Database(root / "a" / "data", reader=b).text)) < 5_000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"database": "nowhere"}, "is no data directory of a finished build"),
        ({"database": "OWN"}, "is this build's own data directory"),
        ({"database": "LINKED"}, "has no database of its own; it searches"),
        ({"database_fraction": 0.5}, "database_fraction=0.5 is of a build's own database"),
        ({"rerank": "bm25"}, "was built with config.data.rerank=none, but here it is bm25"),
        ({"embedding_dtype": "float16"}, "stores its vectors as float32, but config.data.embedding_dtype=float16"),
        ({"encoder_dtype": FASTER}, f"config.data.encoder_dtype={FASTER} was asked for and .* was made with {SLOWER}"),
        ({"encoder": "OTHER"}, "was embedded with another encoder than config.data.encoder="),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_written(root, run_b, b, tmp_path, changes, words):
    made_up_encoder.write(tmp_path / "encoder", seed=5)
    places = {"OWN": root / "a" / "data", "LINKED": b, "OTHER": tmp_path / "encoder"}
    changes = {key: str(places[value]) if value in places else value for key, value in changes.items()}
    workdir = root / "a" if changes.get("database") == str(places["OWN"]) else tmp_path / "run"
    before = contents(root / "a" / "data")
    with pytest.raises(ValueError, match=words):
        build(replace(run_b, data=replace(run_b.data, **changes)), workdir)
    assert contents(root / "a" / "data") == before and not (tmp_path / "run").exists()


def test_neighbors_by_words_need_the_same_tokenizer(root, run_a, run_b):
    ranked = replace(run_a, data=replace(run_a.data, rerank="bm25"))
    build(ranked, root / "ranked")
    place = str(root / "ranked" / "data")
    with pytest.raises(StageError, match="re-ranked by bm25, which compares tokens, but .* has another tokenizer"):
        build(replace(run_b, data=replace(run_b.data, rerank="bm25", database=place)), root / "by-words")
    given = replace(ranked.data, database=place, tokenizer=str(root / "a" / "data" / "tokenizer" / "tokenizer.model"))
    build(replace(ranked, data=given), root / "same-words")
    for column in ("ids", "distances"):
        there, here = (
            getattr(NeighborTable(root / w / "data" / "neighbors"), column) for w in ("ranked", "same-words")
        )
        assert np.array_equal(there[:], here[:])


def test_a_build_does_not_lose_its_database(root, run_b, b):
    with pytest.raises(StageError, match="searches the database .*; give config.data.database, or build into another"):
        build(replace(run_b, data=replace(run_b.data, database="")), b.parent)


def test_a_refused_database_changes_nothing(root, run_a, tmp_path):
    """Guards against a finished build that searches another database from then on."""
    made_up_text.write_folder(tmp_path / "text", documents=8, seed=6)
    run = joined_set.make_build(tmp_path / "c", sources={"own": SourceConfig(path=str(tmp_path / "text"))})
    before = contents(tmp_path / "c" / "data")
    with pytest.raises(StageError, match="another config"):
        build(replace(run, data=replace(run.data, database=str(root / "a" / "data"))), tmp_path / "c")
    assert contents(tmp_path / "c" / "data") == before and not (tmp_path / "c" / "data" / "database").exists()
    build(run, tmp_path / "c")
