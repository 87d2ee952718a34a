"""`retro database`: removed text never returns, added text is searched."""

import json
import shutil

import made_up_encoder
import made_up_text
import numpy as np
import pytest
from recording import OF_RECORDS, assert_reads, recorded
from test_build import arguments, contents
from test_verify import delete, edit, flip, renew_checksums, truncate

from data_pipeline.chunks import ChunkTable
from data_pipeline.database import changes
from data_pipeline.database.changes import make_addition
from data_pipeline.database.database import Database, KeptSearcher
from data_pipeline.database.provenance import Provenance
from data_pipeline.database.searched import View, rows_in_view
from data_pipeline.documents.stage import DocumentTable
from data_pipeline.encoder.stage import EmbeddingTable, open_encoder
from data_pipeline.search.chunk_search import find_neighbors
from data_pipeline.search.exact import ExactSearcher
from data_pipeline.search.neighbors import NeighborTable
from data_pipeline.stages.run import StageError, read_manifest
from launch import build, database
from launch.__main__ import main
from launch.command.arguments import parse
from retro_jax.evaluate.results import database_facts

# Settings that an addition has values of its own for; without held-out documents nothing is near one.
ITS_OWN = {"data.validation_fraction", "data.near_duplicate_jaccard", "data.embedding_dtype"}
ITS_OWN |= {"data.index_shards", "data.index_shards_visited"}


@pytest.mark.parametrize("action", database.ACTIONS)
def test_the_example_of_every_action_parses(action, capsys):
    assert main(["database", action, "--help"]) == 0
    text = capsys.readouterr().out
    example = next(line for line in text.splitlines() if line.strip().startswith(f"retro database {action} --"))
    assert parse(database.ACTIONS[action][0], example.split()[3:]).run.data.sources
    assert main(["database"]) == 2 and example.strip() in capsys.readouterr().err


def test_a_searcher_without_removed_keys_is_exact_search_over_the_others():
    source = np.random.default_rng(0)
    keys = source.integers(-3, 4, (60, 3)).astype(np.float32)
    for gone in (0, 1, 30, 58, 60):
        kept = np.ones(60, bool)
        kept[source.permutation(60)[:gone]] = False
        searcher = KeptSearcher(ExactSearcher(keys), kept)
        ids, distances = searcher.search(keys[:7], 4)
        assert len(searcher) == 60 - gone
        for row in range(7):
            squared = sorted((float(((keys[row] - keys[id]) ** 2).sum()), id) for id in np.flatnonzero(kept).tolist())[
                :4
            ]
            squared += [(np.inf, -1)] * (4 - len(squared))
            assert list(zip(distances[row].tolist(), ids[row].tolist(), strict=True)) == squared


@pytest.mark.parametrize("chunk", [-1, -2, 10**6])
def test_a_chunk_that_is_not_there_has_no_document(root, chunk):
    """Guards against row -1 or a row beyond the end, which NumPy reads as the last document."""
    now = Database(root / "whole" / "data")
    with pytest.raises(ValueError, match=f"{chunk} is not a chunk of .*: ids run from 0 to {len(now.table) - 1}"):
        now.document(chunk)
    with pytest.raises(ValueError, match=f"{chunk} is not a chunk: ids run"):
        Provenance(root / "whole" / "data" / "documents", root / "whole" / "data" / "tokenizer", now.table).pieces(
            chunk
        )
    with pytest.raises(ValueError, match="numbered from 0, but document -1"):
        DocumentTable(root / "whole" / "data" / "documents").lines(-1)


def test_what_is_removed_is_never_returned(root, work, capsys):
    data = work / "data"
    table, stored = ChunkTable(data / "chunks"), NeighborTable(data / "neighbors")
    before = contents(work)
    used = np.unique(table.document_ids[np.unique(stored.ids[table.database_chunks :])])[:3].tolist()
    (work / "ids.txt").write_text("\n".join(map(str, used[1:])))
    assert database.main(["remove", f"--workdir={work}", f"--documents={used[0]}"]) == 0
    first = Database(data).version
    assert database.main(["remove", f"--workdir={work}", f"--documents=@{work / 'ids.txt'}"]) == 0
    assert "3 documents" in capsys.readouterr().out
    after = contents(work)
    assert {name for name in after if after[name] != before.get(name)} == {
        "data/removed.json",
        "data/removed.copy.json",
        "ids.txt",
    }
    now = Database(data)
    assert now.version != first and now.facts()["removed_documents"] == 3
    rows = np.arange(table.database_chunks, len(table))
    ids, distances = now.neighbors(rows, 10)
    assert not np.isin(table.document_ids[ids], used).any()
    left = ~np.isin(table.document_ids[: table.database_chunks], used)
    vectors = EmbeddingTable(data / "embeddings")
    exact = find_neighbors(
        KeptSearcher(ExactSearcher(vectors.database()), left),
        vectors[rows],
        table.document_ids[rows],
        table.document_ids[: table.database_chunks],
        10,
    )
    assert np.array_equal(ids, exact[0]) and np.array_equal(distances, exact[1])


def test_a_database_without_a_document_finds_nothing(work, capsys):
    assert database.main(["remove", f"--workdir={work}", "--source=own"]) == 0
    ids, distances = Database(work / "data").neighbors(np.arange(3), 2)
    assert ids.tolist() == [[-1, -1]] * 3 and np.isinf(distances).all()


def test_a_share_of_the_database_has_changes_of_its_own(root, tmp_path, capsys):
    """All by --workdir alone; index shards are those of the build, not of the addition."""
    work = tmp_path / "run"
    flags = ("--config.data.database_fraction=0.5", "--config.data.index_shards=3")
    assert build.main(arguments(root, work, *flags)) == 0
    before = contents(work)
    assert database.main(["verify", f"--workdir={work}"]) == 0
    made_up_text.write_folder(tmp_path / "new", documents=2, seed=5)
    assert database.main(["add", f"--workdir={work}", f"--config.data.sources.new.path={tmp_path / 'new'}"]) == 0
    assert "added 2 documents" in capsys.readouterr().out
    share = work / "data" / "subset-0.5"
    now = Database(share)
    assert now.facts()["additions"] == 1 and not (work / "data" / "additions").exists()
    added = ChunkTable(share / "additions/00000/chunks")
    assert len(read_manifest(share / "additions/00000/index", "index").config["ranges"]) == 1
    searched = read_manifest(share / "index", "index").counts["database_chunks"]
    assert len(now) == searched + len(added) == len(rows_in_view(now, View())[0])
    assert database_facts(share)["chunks"] == searched and "documents" not in database_facts(share)
    assert {name: content for name, content in contents(work).items() if "additions" not in name} == before
    flip(next(share.glob("neighbors/*.ids.npy")))
    assert database.main(["verify", f"--workdir={work}"]) == 2
    assert database.main(["verify", "--repair", f"--workdir={work}"]) == 0
    assert database.main(["remove", f"--workdir={work}", "--source=new"]) == 0
    assert {name: content for name, content in contents(work).items() if "additions" not in name} == {
        **before,
        **{f"data/subset-0.5/{name}": (share / name).read_bytes() for name in ("removed.json", "removed.copy.json")},
    }
    assert database.main(["info", f"--workdir={work}"]) == 0
    other = ("--config.data.database_fraction=0.25",)
    assert build.main(arguments(root, work, *other)) == 0
    capsys.readouterr()
    assert database.main(["info", f"--workdir={work}"]) == 2
    assert "holds 2 shares of a database, so --config is needed" in capsys.readouterr().err


def test_a_lost_stage_of_words_is_missed(root, tmp_path, capsys):
    work = tmp_path / "run"
    assert build.main(arguments(root, work, "--config.data.rerank=bm25")) == 0
    before = contents(work)
    shutil.rmtree(work / "data" / "lexical")
    assert database.main(["verify", f"--workdir={work}"]) == 2
    assert "lexical: " in capsys.readouterr().err
    assert database.main(["verify", "--repair", f"--workdir={work}"]) == 0
    assert contents(work) == before


@pytest.mark.parametrize("lost", ["removed.json", "removed.copy.json"])
@pytest.mark.parametrize("damage", [delete, truncate, flip])
def test_what_is_removed_does_not_come_back_where_one_of_its_files_is_lost(work, lost, damage, capsys):
    data = work / "data"
    ids = [document.id for document in DocumentTable(data / "documents").read(0, 2)]
    assert database.main(["remove", f"--workdir={work}", f"--documents={ids[0]}"]) == 0
    version = Database(data).version
    damage(data / lost)
    assert Database(data).version == version and Database(data).facts()["removed_documents"] == 1
    assert database.main(["remove", f"--workdir={work}", f"--documents={ids[1]}"]) == 0
    assert (data / "removed.json").read_bytes() == (data / "removed.copy.json").read_bytes()
    assert json.loads((data / lost).read_bytes())["documents"] == sorted(ids)


def test_an_addition_counts_where_its_last_note_is_lost(root, work, tmp_path):
    made_up_text.write_folder(tmp_path / "new", documents=2, seed=5)
    assert database.main(["add", f"--workdir={work}", f"--config.data.sources.new.path={tmp_path / 'new'}"]) == 0
    version = Database(work / "data").version
    (work / "data" / "additions" / "00000" / "finished.json").unlink()
    assert Database(work / "data").version == version


def test_mistakes_in_removing_are_named_and_change_nothing(work, capsys):
    data = work / "data"
    held_out = next(
        document.id for document in DocumentTable(data / "documents").read() if document.split == "validation"
    )
    for flag, named in (
        ("--documents=12", "12. Ids are those of"),
        (f"--documents={held_out}", "are not in the database"),
        ("--documents=a", "whole numbers"),
        ("--source=x", "has no source 'x'; it has own"),
        ("--source=", "Nothing to remove"),
    ):
        assert database.main(["remove", f"--workdir={work}", flag]) == 2
        assert named in capsys.readouterr().err
    assert not (data / "removed.json").exists()
    (data / "removed.json").write_text('{"documents": [1')
    with pytest.raises(StageError, match="removed.json is cut off, and there is no whole copy"):
        Database(data)


def test_the_verbs_read_the_settings_that_their_table_names(work):
    document = str(ChunkTable(work / "data" / "chunks").document_ids[:1][0])
    for action, *more in (["info"], ["verify"], ["remove", f"--documents={document}"]):
        with recorded() as recorder:
            assert database.main([action, f"--workdir={work}", *more]) == 0
        assert_reads(f"database {action}", recorder.keys)


def test_a_mistake_in_adding_is_told_before_anything_is_written(root, work, capsys):
    """Guards against a half-made addition after another encoder or a source whose records lack the key."""
    made_up_encoder.write(work / "other", seed=1)
    (work / "news.jsonl").write_text(json.dumps({"body": "text"}) + "\n")
    source = "--config.data.sources.news.path="
    wrong = {
        "encoder": ([f"{source}{root / 'text'}", f"--config.data.encoder={work / 'other'}"], "does not match"),
        "key": ([f"{source}{work / 'news.jsonl'}"], "has no key 'text'"),
        "path": ([f"{source}{work / 'none'}"], "config.data.sources.news.path="),
    }
    for change, message in wrong.values():
        assert database.main(["add", f"--workdir={work}", *change]) == 2
        assert message in capsys.readouterr().err
        assert not (work / "data" / "additions").exists()


def test_what_is_added_counts_at_once_and_changes_no_id(root, work, capsys, monkeypatch):
    data, folder = work / "data", work / "new"
    made_up_text.write_folder(folder, documents=3, seed=77)
    shutil.copy(root / "text" / "003.txt", folder / "copy.txt")
    before = contents(work)
    source = f"--config.data.sources.news.path={folder}"
    with recorded() as recorder:
        build_documents = changes.build_documents  # the first that reads the settings that an addition has changed
        monkeypatch.setattr(
            changes,
            "build_documents",
            lambda at, config, **more: build_documents(at, recorder.watch(config, "data."), **more),
        )
        assert database.main(["add", f"--workdir={work}", source]) == 0
    assert_reads("database add", recorder.keys - ITS_OWN, besides=OF_RECORDS)
    assert "added 4 documents" in (out := capsys.readouterr().out) and "1 of them copies" in out
    after = contents(work)
    assert {name: after[name] for name in before} == before
    now, table = Database(data), ChunkTable(data / "chunks")
    text = now.document(len(table)).text
    assert now.document(0).text == next(DocumentTable(data / "documents").read()).text
    encoder = open_encoder(data / "embeddings", root / "encoder")
    added = ChunkTable(data / "additions/00000/chunks")
    copy = next(d.id for d in DocumentTable(data / "additions/00000/documents").read() if d.name == "copy.txt")
    pieces = b"".join(now.pieces(len(table))).decode()
    assert text.startswith(pieces)
    words = now.tokens[np.array([len(table)])]
    ids, distances = now.nearest(encoder.embed([pieces]), words, np.array([-1]), 5)
    assert len(table) in ids[0][distances[0] < 1e-6]
    assert (now.value(np.array([len(table)]))[0] == added.value(np.array([0]))[0]).all()
    everything, _ = now.nearest(encoder.embed([pieces]), words, np.array([-1]), len(now) + 9)
    there = everything[0][everything[0] >= 0]
    assert len(there) == len(now) and len(set(there.tolist())) == len(there)
    owners = np.concatenate([table.document_ids[:], added.document_ids[:]])[there]
    assert copy not in owners and not ((there >= table.database_chunks) & (there < len(table))).any()
    assert database.main(["add", f"--workdir={work}"]) == 2
    assert "There is no new source" in capsys.readouterr().err
    flip(data / "additions/00000/embeddings/embeddings-00000.npy")
    assert database.main(["verify", f"--workdir={work}"]) == 2
    assert "additions/00000/embeddings: embeddings-00000.npy was altered" in capsys.readouterr().err
    assert database.main(["verify", "--repair", f"--workdir={work}"]) == 0
    assert contents(work) == after
    path = data / "additions/00000/embeddings/embeddings-00000.npy"  # wrong under right checksums
    edit(path, lambda array: array.__setitem__(0, -array[0]))
    renew_checksums(path)
    shutil.rmtree(data / "additions/00000/index")
    make_addition(data, data / "additions/00000", root / "encoder")
    assert database.main(["verify", f"--workdir={work}"]) == 2
    assert "additions/00000/embeddings: row 0 has cosine" in capsys.readouterr().err
    assert database.main(["verify", "--repair", f"--workdir={work}"]) == 0
    assert {name: content for name, content in contents(work).items() if ".damaged-" not in name} == after
    # A later addition with the same text: its copy goes, and repairing the first takes nothing more away.
    gone = json.loads((data / "removed.json").read_text())["documents"]
    (work / "later").mkdir()
    shutil.copy(folder / "000.txt", work / "later" / "same.txt")
    assert database.main(["add", f"--workdir={work}", f"--config.data.sources.later.path={work / 'later'}"]) == 0
    then = json.loads((data / "removed.json").read_text())["documents"]
    assert len(then) == len(gone) + 1
    flip(data / "additions/00000/embeddings/embeddings-00000.npy")
    assert database.main(["verify", "--repair", f"--workdir={work}"]) == 0
    assert json.loads((data / "removed.json").read_text())["documents"] == then
    capsys.readouterr()
    assert database.main(["info", f"--workdir={work}"]) == 0
    assert "2 additions of" in capsys.readouterr().out
