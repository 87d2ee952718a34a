"""Documents: each is kept or counted, ids and splits are stable, bad input is refused with its place."""

import dataclasses
import hashlib
import json
import random

import made_up_text
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import stage as documents
from data_pipeline.documents.stage import DocumentTable, build_documents, document_id, split_of
from data_pipeline.stages.run import StageError, read_manifest
from retro_jax.config import DataConfig, SourceConfig


def write_jsonl(path, texts, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, **more}) + "\n" for text in texts))
    return path


def build(tmp_path, texts, name="documents", source=None, **changes):
    """The stage over one JSONL file of these texts."""
    path = write_jsonl(tmp_path / "in" / f"{name}.jsonl", texts)
    settings = {"minimum_characters": 0, "validation_fraction": 0.3, **changes}
    source = SourceConfig(path=str(path), **(source or {}))
    manifest = build_documents(tmp_path / name, DataConfig(sources={"mine": source}, **settings))
    return manifest, list(DocumentTable(tmp_path / name).read())


def content(found):
    return [(d.id, d.subset, d.split, d.text) for d in found]


def adds_up(counts):
    """documents read = kept + dropped, in every subset, and the totals are the sums of the subsets."""
    kept = 0
    for subset in counts["subsets"].values():
        here = sum(subset[split]["documents"] for split in ("train", "validation"))
        assert subset["read"] == here + sum(subset["dropped"].values())
        kept += here
    assert counts["documents"] == kept
    parts = [subset[split]["bytes"] for subset in counts["subsets"].values() for split in ("train", "validation")]
    assert counts["bytes"] == sum(parts)
    return True


def test_the_id_of_a_document_is_written_down():
    """Guards against renumbering every database: an id is 63 bits of BLAKE2b over subset and key."""
    assert document_id("wiki", "Mill") == document_id("wiki", "Mill") != document_id("wikiM", "ill")
    assert document_id("wiki", "Mill") == 2290367819967431987
    assert 0 <= document_id("wiki", "Mill") < 2**63


def test_the_split_follows_the_fraction():
    ids = [document_id("s", str(number)) for number in range(20_000)]
    for fraction in (0.0, 0.05, 0.5):
        share = np.mean([split_of(i, fraction) == "validation" for i in ids])
        assert abs(share - fraction) < 0.01
    held_out = {i for i in ids if split_of(i, 0.05) == "validation"}
    assert held_out < {i for i in ids if split_of(i, 0.1) == "validation"}, "a larger fraction keeps what was held out"


TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=15)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(TEXTS, st.integers(0, 8), st.sampled_from([0, 12]), st.sampled_from([0, 40]))
def test_every_document_is_kept_or_counted(tmp_path_factory, texts, shortest, longest, room):
    tmp_path = tmp_path_factory.mktemp("d")
    limits = {"max_document_bytes": longest, "max_train_bytes": room, "max_validation_bytes": room}
    try:
        manifest, found = build(tmp_path, texts, source=limits, minimum_characters=shortest)
    except StageError as error:
        assert "No document is left" in str(error)
        return
    assert adds_up(manifest.counts) and manifest.counts["subsets"]["mine"]["read"] == len(texts)
    kept = {text for text in texts if len(text) >= shortest and not 0 < longest < len(text.encode())}
    assert {d.text for d in found} <= kept
    if not room:
        assert {d.text for d in found} == kept
    assert len({d.text for d in found}) == len(found) == manifest.counts["documents"]
    for split in ("train", "validation"):
        size = sum(len(d.text.encode()) for d in found if d.split == split)
        assert size == manifest.counts["subsets"]["mine"][split]["bytes"] <= (room or size)


def test_reasons_are_told_apart(tmp_path):
    texts = ["a" * 10, "b" * 100, "c" * 1000, "b" * 100, "d" * 200, "e" * 150]
    source = {"max_document_bytes": 500, "max_train_bytes": 350}
    manifest, found = build(tmp_path, texts, source=source, minimum_characters=64, validation_fraction=0.0)
    dropped = {"short": 1, "long": 1, "duplicate": 1, "budget": 1}
    assert {k: n for k, n in manifest.counts["subsets"]["mine"]["dropped"].items() if n} == dropped
    assert len(found) == 2 and adds_up(manifest.counts)


def test_order_of_the_input_changes_no_split_and_no_id(tmp_path):
    """Guards against ids by place: shuffled lines in other files of the same source give the same documents in the same order."""
    texts = [made_up_text.text(seed, 30) for seed in range(60)]
    limits = {"max_train_bytes": 4000, "max_validation_bytes": 1500}
    _, found = build(tmp_path, texts, "first", limits)
    shuffled = random.Random(1).sample(texts, len(texts))
    _, again = build(tmp_path, shuffled, "second", limits)
    folder = tmp_path / "many"
    for number in range(6):
        write_jsonl(folder / f"{number}.jsonl", shuffled[number::6])
    config = DataConfig(
        sources={"mine": SourceConfig(path=str(folder), **limits)}, minimum_characters=0, validation_fraction=0.3
    )
    build_documents(tmp_path / "third", config)
    assert content(found) == content(again) == content(DocumentTable(tmp_path / "third").read())
    assert {d.split for d in found} == {"train", "validation"}
    assert [d.split for d in found] == sorted(d.split for d in found)
    for split in ("train", "validation"):
        ids = [d.id for d in found if d.split == split]
        assert ids == sorted(ids)


def test_more_documents_move_no_document_to_the_other_split(tmp_path):
    texts = [made_up_text.text(seed, 30) for seed in range(40)]
    few = {d.id: d.split for d in build(tmp_path, texts[:20], "few")[1]}
    many = {d.id: d.split for d in build(tmp_path, texts, "many")[1]}
    assert few.items() < many.items()


def test_of_exact_duplicates_the_lowest_id_stays(tmp_path):
    """Guards against a text in both splits, over all subsets and whichever source is read first."""
    same = made_up_text.text(1)
    for order in (("a", "b"), ("b", "a")):
        for name in order:
            (tmp_path / "".join(order) / f"{name}.txt").parent.mkdir(exist_ok=True)
            (tmp_path / "".join(order) / f"{name}.txt").write_text(same)
    sources = {"left": SourceConfig(path=str(tmp_path / "ab")), "right": SourceConfig(path=str(tmp_path / "ba"))}
    manifest = build_documents(tmp_path / "d", DataConfig(sources=sources, validation_fraction=0.5))
    ids = {(subset, name): document_id(subset, name) for subset in sources for name in ("a.txt", "b.txt")}
    (document,) = DocumentTable(tmp_path / "d").read()
    assert (document.subset, document.name) == min(ids, key=ids.get)
    assert sum(s["dropped"]["duplicate"] for s in manifest.counts["subsets"].values()) == 3 and adds_up(manifest.counts)


def test_what_is_stored(tmp_path):
    text = "Grain — the mill\r\n\ttwice\u2028 \0 \u2581\n"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one.txt").write_bytes(text.encode())
    source = SourceConfig(path=str(tmp_path / "in"), license="CC0")
    config = DataConfig(sources={"farm": source}, minimum_characters=1, validation_fraction=0.0)
    manifest = build_documents(tmp_path / "d", config)
    (line,) = (tmp_path / "d" / "part-00000.jsonl").read_bytes().split(b"\n")[:-1]
    assert json.loads(line) == {
        "id": document_id("farm", "one.txt"),
        "subset": "farm",
        "name": "one.txt",
        "split": "train",
        "license": "CC0",
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "text": text,
    }
    assert manifest.counts["subsets"]["farm"]["license"] == "CC0"
    assert str(tmp_path) not in (tmp_path / "d" / "manifest.json").read_text(), (
        "the result does not say where it was made"
    )


def test_a_range_of_documents_is_read(tmp_path):
    _, found = build(tmp_path, [made_up_text.text(seed, 20) for seed in range(9)])
    directory = tmp_path / "documents"
    assert list(DocumentTable(directory).read(3, 6)) == found[3:6]
    assert list(DocumentTable(directory).read(8)) == found[8:] and list(DocumentTable(directory).read(9)) == []
    assert DocumentTable(directory).bytes.tolist() == [len(d.text.encode()) for d in found]


def test_parts_are_the_documents_in_one_order(tmp_path, monkeypatch):
    """Parts of about 1,000 bytes, each begun at the first line past that size; only a lost one is copied again."""
    texts = [made_up_text.text(seed, 5 + 9 * (seed % 4)) for seed in range(40)]
    _, whole = build(tmp_path, texts, "whole")
    monkeypatch.setattr(documents, "PART_BYTES", 1000)
    manifest, found = build(tmp_path, texts, "parts")
    assert content(found) == content(whole) and manifest.counts["documents"] == len(whole)
    parts = sorted((tmp_path / "parts").glob("part-*.jsonl"))
    sizes = [path.stat().st_size for path in parts]
    assert len(parts) > 5 and min(sizes) > 0 and sum(sizes) == (tmp_path / "whole" / "part-00000.jsonl").stat().st_size
    table = DocumentTable(tmp_path / "parts")
    assert table.bytes.tolist() == [len(d.text.encode()) for d in whole]
    for start in range(len(whole) + 1):
        assert list(table.read(start, start + 3)) == found[start : start + 3]

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*-*")}
    (tmp_path / "parts" / "manifest.json").unlink()
    (tmp_path / "parts" / ".parts" / "part-00002.json").unlink()
    assert build(tmp_path, texts, "parts") == (manifest, found)
    redone = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert redone == {"part-00002.jsonl", "lines-00002.npy"} and not (tmp_path / "parts" / ".read").exists()


def test_part_ranges():
    assert documents.part_ranges(np.array([4, 4, 4, 30, 1, 1]), 10) == [(0, 3), (3, 4), (4, 6)]
    assert documents.part_ranges(np.array([100]), 10) == [(0, 1)]


def test_building_twice_does_nothing_and_gives_the_same(tmp_path):
    config = made_up_text.config(made_up_text.write_folder(tmp_path / "text"))
    first = build_documents(tmp_path / "d", config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "d").rglob("*")}
    assert build_documents(tmp_path / "d", config) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "d").rglob("*")} == before
    (tmp_path / "text").rename(tmp_path / "moved")
    again = dataclasses.replace(config, sources={"farm": SourceConfig(path=str(tmp_path / "moved"), license="CC0")})
    assert build_documents(tmp_path / "elsewhere", again).fingerprint == first.fingerprint


def test_changed_text_is_another_input(tmp_path):
    config = made_up_text.config(made_up_text.write_folder(tmp_path / "text"))
    build_documents(tmp_path / "d", config)
    (tmp_path / "text" / "003.txt").write_text("changed " * 20)
    with pytest.raises(StageError, match="from another config or input; what differs: inputs.source farm"):
        build_documents(tmp_path / "d", config)
    read_manifest(tmp_path / "d", "documents")


@pytest.mark.parametrize(
    "texts, changes, message",
    [
        (["short"], {"minimum_characters": 64}, r"No document is left: mine: 1 read, dropped {'short': 1}. Give more"),
        ([], {}, "No document is left: nothing was read"),
        (["x"], {"validation_fraction": 1.0}, r"validation_fraction=1.0 must lie in \[0, 1\)"),
    ],
)
def test_nothing_left_is_said(tmp_path, texts, changes, message):
    with pytest.raises(StageError, match=message):
        build(tmp_path, texts, **changes)
    assert not (tmp_path / "documents" / "manifest.json").exists()


def test_no_sources_is_said(tmp_path):
    with pytest.raises(StageError, match="config.data.sources is empty"):
        build_documents(tmp_path, DataConfig())


def test_two_texts_of_one_name_are_refused(tmp_path, monkeypatch):
    """Guards against one id for two documents; since files have distinct names, the hash is made to collide."""
    folder = made_up_text.write_folder(tmp_path / "text", 3)
    monkeypatch.setattr(documents, "document_id", lambda subset, key: 7)
    with pytest.raises(StageError, match="have the same name or id but different texts .*Rename one"):
        build_documents(tmp_path / "d", made_up_text.config(folder))


def write_records(path, *records):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return SourceConfig(path=str(path.parent), id_key="id", subset_key="set")


def test_ids_of_records(tmp_path):
    """Two texts of one id are refused, within a file and across files; a copy is dropped and counted."""
    one, two = made_up_text.text(1), made_up_text.text(2)
    first = {"id": 7, "set": "a", "text": one}
    source = write_records(tmp_path / "in" / "0.jsonl", first, first, {**first, "id": 8}, {**first, "set": "b"})
    config = DataConfig(sources={"mine": source}, near_duplicate_jaccard=0, validation_fraction=0)
    counts = build_documents(tmp_path / "copies", config).counts
    assert counts["documents"] == 1 and adds_up(counts)
    assert sum(subset["dropped"]["duplicate"] for subset in counts["subsets"].values()) == 3
    for other in (tmp_path / "in" / "0.jsonl", tmp_path / "in" / "1.jsonl"):
        write_records(tmp_path / "in" / "0.jsonl", first, {**first, "id": "x", "set": "b"})
        with open(other, "a") as file:
            file.write(json.dumps({"id": "7", "set": "a", "text": two}) + "\n")
        message = rf"same name or id but .*: '0.jsonl:1' of subset 'a' and '{other.name}:\d' of subset 'a'. Rename"
        with pytest.raises(StageError, match=message):
            build_documents(tmp_path / f"d{other.name}", config)
        without = dataclasses.replace(config, sources={"mine": dataclasses.replace(source, id_key="")})
        found = build_documents(tmp_path / f"w{other.name}", without).counts
        assert found["documents"] == 2 and adds_up(found), "without ids a record is what its text is"


def test_the_id_of_a_record_outlives_its_text(tmp_path):
    """A corrected text keeps its id and split, and the same id is another document in another subset."""
    ids = []
    for number, text in enumerate((made_up_text.text(1), made_up_text.text(2))):
        rows = [{"id": "x", "set": "a", "text": text}, {"id": "x", "set": "b", "text": text + "more"}]
        source = write_records(tmp_path / f"in{number}" / "r.jsonl", *rows)
        build_documents(tmp_path / f"{number}", DataConfig(sources={"mine": source}, near_duplicate_jaccard=0))
        ids.append({(d.id, d.subset, d.split) for d in DocumentTable(tmp_path / f"{number}").read()})
    assert ids[0] == ids[1] and len({id for id, _, _ in ids[0]}) == 2
    assert {id for id, _, _ in ids[0]} == {document_id("a", "x"), document_id("b", "x")}


def test_files_of_one_name_in_two_folders_are_two_documents(tmp_path):
    for number, folder in enumerate(("x", "y", "y/z")):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / "doc.txt").write_text(made_up_text.text(number))
    config = DataConfig(sources={"mine": SourceConfig(path=str(tmp_path / "in"))}, near_duplicate_jaccard=0)
    assert build_documents(tmp_path / "d", config).counts["documents"] == 3
    assert {d.name for d in DocumentTable(tmp_path / "d").read()} == {"x/doc.txt", "y/doc.txt", "y/z/doc.txt"}


def test_a_build_of_before_ids_is_the_same(tmp_path):
    config = made_up_text.config(made_up_text.write_folder(tmp_path / "text"))
    assert "id_key" not in build_documents(tmp_path / "d", config).config["sources"]["farm"]


def test_subsets_of_the_pile(tmp_path):
    """JSONL in the Pile's form: the subset is under meta.pile_set_name."""
    path = tmp_path / "pile.jsonl"
    rows = [("Github", made_up_text.text(1)), ("FreeLaw", made_up_text.text(2)), ("Github", made_up_text.text(3))]
    path.write_text("".join(json.dumps({"text": t, "meta": {"pile_set_name": s}}) + "\n" for s, t in rows))
    source = SourceConfig(path=str(path), subset_key="meta.pile_set_name")
    manifest = build_documents(tmp_path / "d", DataConfig(sources={"pile": source}))
    assert {name: count["read"] for name, count in manifest.counts["subsets"].items()} == {"FreeLaw": 1, "Github": 2}
    assert {(d.subset, d.text) for d in DocumentTable(tmp_path / "d").read()} == set(rows)
