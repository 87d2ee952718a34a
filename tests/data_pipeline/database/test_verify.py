"""`retro database verify`: damage is found and redone alone, and what breaks a promise is named."""

import json
import shutil

import numpy as np
import pytest
from test_build import arguments, contents

from data_pipeline.chunks import ChunkTable
from data_pipeline.database.check_content import check_content
from data_pipeline.documents.stage import DocumentTable
from data_pipeline.encoder.stage import EmbeddingTable, open_encoder
from data_pipeline.stages.run import file_sha256
from launch import build, database

EMBEDDINGS, IDS = "embeddings/embeddings-00001.npy", "neighbors/neighbors-00001.ids.npy"


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def delete(path):
    path.unlink()


def age(path):
    """The manifest of an earlier build with another first shard."""
    facts = json.loads(path.read_text())
    facts["files"][0]["sha256"] = "0" * 64
    del facts["sha256"]
    path.write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("damage", "file", "named", "redone"),
    [
        (flip, EMBEDDINGS, "altered (other sha256) -> redo embeddings-00001", EMBEDDINGS),
        (truncate, IDS, "bytes instead of", "neighbors/neighbors-00001.*"),
        (delete, "chunks/chunks-00000.tokens.npy", "is missing -> redo chunks-00000", "chunks/chunks-00000.*"),
        (age, "chunks/manifest.json", "does not fit the shards: other files -> rewrite manifest.json", ""),
        (delete, "joined/manifest.json", "joined: manifest.json is missing or unreadable", ""),
        (truncate, "embeddings/.parts/embeddings-00000.json", "unreadable -> redo", "embeddings/embeddings-00000.npy"),
        (flip, "documents/part-00000.jsonl", "documents: part-00000.jsonl was altered", "documents/*-00000.*"),
        (
            delete,
            "documents/.parts/dropped.json",
            "dropped.json is missing or unreadable -> redo dropped",
            "documents/dropped.*",
        ),
        (truncate, "tokenizer/plan.json", "tokenizer: ", "tokenizer/tok*"),
    ],
)
def test_damage_is_found_and_redone_alone(work, capsys, damage, file, named, redone):
    before = contents(work)
    times = {path: path.stat().st_mtime_ns for path in (work / "data").rglob("*.*") if path.is_file()}
    damage(work / "data" / file)
    assert database.main(["verify", f"--workdir={work}"]) == 2
    assert named in capsys.readouterr().err
    assert database.main(["verify", "--repair", f"--workdir={work}"]) == 0
    after = contents(work)
    assert {name: after[name] for name in before} == before
    assert all(".damaged-" in name for name in set(after) - set(before))
    stage = file.split("/")[0]
    again = {path for path, time in times.items() if path.exists() and path.stat().st_mtime_ns != time}
    allowed = {work / "data" / stage / name for name in ("manifest.json", "seconds.json", "plan.json")}
    allowed |= set((work / "data").glob(redone)) if redone else set()
    assert {path for path in again if ".parts" not in path.parts} <= allowed
    assert len([path for path in again if ".parts" in path.parts]) <= 1


def test_a_stage_made_from_another_build_is_set_aside_and_made_anew(root, work, capsys):
    other = root / "other"
    assert build.main(arguments(root, other, "--config.data.neighbors_stored=3")) == 0
    before = contents(work)
    shutil.rmtree(work / "data" / "joined")
    shutil.copytree(other / "data" / "joined", work / "data" / "joined")
    assert database.main(["verify", f"--workdir={work}"]) == 2
    assert (
        "joined: it was made from another 'neighbors' than there is -> redo the full stage" in capsys.readouterr().err
    )
    assert database.main(["verify", "--repair", f"--workdir={work}"]) == 0
    after = contents(work)
    assert {name: after[name] for name in before} == before and "data/joined.damaged-0/plan.json" in after


def test_a_real_build_keeps_every_promise(root, work):
    """No neighbor of the query's document, by id and by text; every continuation is the next chunk; exact distances."""
    encoder = open_encoder(work / "data" / "embeddings", root / "encoder")
    damages, facts = check_content(work / "data", encoder)
    chunks = len(ChunkTable(work / "data" / "chunks"))
    assert damages == [] and facts["chunks"] == chunks and facts["neighbors"] == 10 * chunks
    assert facts["recall"] == facts["recall_promised"] == 1.0


def edit(path, change):
    array = np.load(path)
    change(array)
    np.save(path, array)


@pytest.mark.parametrize("what", ["own", "text", "outside", "twice", "distance", "vector", "token", "exact"])
def test_what_breaks_a_promise_is_named(root, work, what):
    """Guards against checks by size alone: sizes stay, the content changes."""
    data = work / "data"
    table = ChunkTable(data / "chunks")
    ids, distances = data / "neighbors/neighbors-00000.ids.npy", data / "neighbors/neighbors-00000.distances.npy"
    vectors = EmbeddingTable(data / "embeddings")

    def put(row, id):
        edit(ids, lambda array: array[row].__setitem__(0, id))
        distance = np.square(vectors[np.array([row])] - vectors[np.array([id])]).sum()
        edit(distances, lambda array: array[row].__setitem__(0, distance))

    if what == "own":
        put(5, 6)
        named = "row 5 has a neighbor of the query's own document"
    elif what == "text":  # another document's id on the same text
        row, id = 5, int(np.load(ids)[5, 0])
        documents = list(DocumentTable(data / "documents").read())
        other = [document.id for document in documents].index(table.document_ids[np.array([id])][0])
        path = data / "documents" / "part-00000.jsonl"
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines[other]["sha256"] = lines[0]["sha256"]
        assert table.document_ids[np.array([row])][0] == lines[0]["id"]
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        named = "has a neighbor from a document of the query's text"
    elif what == "outside":
        edit(ids, lambda array: array[5].__setitem__(0, len(table) - 1))
        named = "row 5 has a neighbor outside the database"
    elif what == "twice":
        edit(ids, lambda array: array[5].__setitem__(1, array[5, 0]))
        edit(distances, lambda array: array[5].__setitem__(1, array[5, 0]))
        named = "row 5 is not nearest first, each id once"
    elif what == "distance":
        edit(distances, lambda array: array[5].__setitem__(9, array[5, 9] + 0.01))
        named = "row 5 has a distance that is not that of the vectors"
    elif what == "vector":
        edit(data / "embeddings" / "embeddings-00000.npy", lambda array: array[0].__setitem__(slice(None), -array[0]))
        named = "row 0 has cosine -1.0"
    elif what == "token":
        edit(data / "chunks" / "chunks-00000.tokens.npy", lambda array: array[2].__setitem__(3, array[2, 3] + 1))
        named = "are not the text of document"
    else:  # good neighbors of the second rank put first are missing at the end
        edit(ids, lambda array: array.__setitem__((slice(None), slice(0, 9)), array[:, 1:].copy()))
        edit(distances, lambda array: array.__setitem__((slice(None), slice(0, 9)), array[:, 1:].copy()))
        named = "has other neighbors than exact search"
    encoder = open_encoder(data / "embeddings", root / "encoder")
    found = [str(damage) for damage in check_content(data, encoder)[0]]
    assert any(named in line for line in found), found
    shard = {"vector": "embeddings-00000", "token": "chunks-00000"}.get(what, "neighbors-00000")
    assert any(line.endswith(f"redo {shard}") for line in found)


def renew_checksums(path):
    """The record of a shard with one file, or with its distances."""
    stage = path.parent
    for book in (stage / ".parts" / f"{path.name.partition('.')[0]}.json", stage / "manifest.json"):
        facts = json.loads(book.read_text())
        for file in facts["files"]:
            if file["name"] == path.name:
                file["sha256"] = file_sha256(path)
        del facts["sha256"]
        book.write_text(json.dumps(facts))


def test_wrong_content_under_right_checksums_is_redone_too(root, work, capsys):
    """Damage from before the checksum was taken, as by a faulty machine."""
    before = contents(work)
    data = work / "data"
    edit(data / IDS, lambda array: array[0].__setitem__(0, array[1, 0]))
    renew_checksums(data / IDS)
    shutil.rmtree(data / "joined")
    assert build.main([f"--config={'configs/own_text.py:' + str(root / 'text')}", *arguments(root, work)[1:]]) == 0
    capsys.readouterr()
    assert database.main(["verify", f"--workdir={work}"]) == 2
    assert "neighbors: row" in capsys.readouterr().err
    assert database.main(["verify", "--repair", f"--workdir={work}"]) == 0
    after = contents(work)
    assert {name: after[name] for name in before} == before
