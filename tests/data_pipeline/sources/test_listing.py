"""Files of a folder that are read and left out, with reasons in the listing and the manifest."""

import json
import os
import socket

import made_up_text
import pyarrow as pa
import pytest
from made_up_text import text

from data_pipeline.database.check_files import check_stage
from data_pipeline.documents.stage import build_documents
from data_pipeline.pipeline import describe
from data_pipeline.sources.listing import describe_counts, list_files
from data_pipeline.sources.readers import list_source, read_source
from data_pipeline.stages.run import StageError, read_manifest
from retro_jax.config import DataConfig, SourceConfig
from retro_jax.core.files import read_json


def listed(path, **options):
    listing = list_source("mine", SourceConfig(path=str(path), **options))
    return [file.name for file in listing.files], {reason: count for reason, (count, _) in listing.left_out.items()}


def put(folder, *names, content="word " * 20):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def test_every_file_is_read_or_left_out_with_its_reason(tmp_path):
    put(tmp_path, "a.txt", "b.TXT", "c/d.txt", "e.csv", "f.CSV", "g.pdf", "h.tar.gz", "README", "i.txt.bak")
    put(tmp_path, ".DS_Store", "._a.txt", ".git/x.txt", "c/.ipynb_checkpoints/d-checkpoint.txt", "__MACOSX/._a.txt")
    names, left_out = listed(tmp_path)
    assert names == ["a.txt", "b.TXT", "c/d.txt"]
    hidden = {"hidden files": 2} | {
        f"hidden folders ({name})": 1 for name in (".git", ".ipynb_checkpoints", "__MACOSX")
    }
    assert left_out == {".csv": 2, ".pdf": 1, ".tar.gz": 1, ".bak": 1, "without an ending": 1, **hidden}
    top = {reason: count for reason, count in left_out.items() if "ipynb" not in reason}
    assert listed(f"{tmp_path}/*") == (["a.txt", "b.TXT"], top), "a glob leaves out the same"


def test_the_build_says_what_it_leaves_out_and_the_manifest_keeps_it(tmp_path, capsys):
    for number in range(3):
        put(tmp_path / "in", f"{number}.txt", content=text(number))
    put(tmp_path / "in", "a.csv", "b.csv", ".hidden.txt", content="12345")
    put(tmp_path / "in", "empty.txt", content="")
    config = DataConfig(sources={"s": SourceConfig(path=str(tmp_path / "in"))}, validation_fraction=0.0)
    counts = build_documents(tmp_path / "d", config).counts
    size = sum(len(text(number).encode()) for number in range(3))
    left_out = {".csv": [2, 10], "hidden files": [1, 5]}
    assert counts["source_files"] == {"s": {"read": {".txt": [4, size]}, "left_out": left_out, "empty": 1}}
    said = capsys.readouterr().err
    assert "s: reads 4 .txt (0.0 MB), 1 of them empty; left out: 2 .csv, 1 hidden files\n" in said
    assert "left out 3 files: 2 .csv, 1 hidden files" in describe("documents", counts, {})
    (tmp_path / "in" / "c.csv").write_text("another file that is not read is no other input")
    assert build_documents(tmp_path / "d", config).counts == counts


def test_a_manifest_of_before_is_described(tmp_path):
    config = made_up_text.config(made_up_text.write_folder(tmp_path / "text", 4))
    build_documents(tmp_path / "d", config)
    path = tmp_path / "d" / "manifest.json"
    facts = read_json(path, "")
    del facts["counts"]["source_files"]
    path.write_text(json.dumps(facts))
    manifest = read_manifest(tmp_path / "d", "documents")
    assert "left out" not in describe("documents", manifest.counts, manifest.config)
    again = build_documents(tmp_path / "d", config)
    assert again == manifest, "it is accepted as it is"
    new = build_documents(tmp_path / "new", config)
    assert again.fingerprint == new.fingerprint, "and what was made from it is not of another stage"


def test_files_that_are_left_out_decide_nothing(tmp_path):
    """Guards against a listing that a later README changes: a repaired stage would differ from the build."""
    config = made_up_text.config(made_up_text.write_folder(tmp_path / "text", 4))
    first = build_documents(tmp_path / "d", config)
    put(tmp_path / "text", "README.md")
    (tmp_path / "d" / ".parts" / "part-00000.json").unlink()
    (tmp_path / "d" / "manifest.json").unlink()
    second = build_documents(tmp_path / "d", config)
    assert second.counts != first.counts and second.fingerprint == first.fingerprint
    assert check_stage(tmp_path, "d", {}) == ([], first.fingerprint)


@pytest.mark.parametrize(
    "name, message",
    [
        ("a.csv", r"mine.path='.*a.csv' has the unknown ending .csv. Known are .txt, .jsonl, .*mine.format \(text, "),
        ("a.md", "has the unknown ending .md"),
        ("README", "has no ending"),
        ("a.tar.gz", r"is an archive \(.tar.gz\). Unpack it"),
        ("a.zip", r"is an archive \(.zip\)"),
        ("a.parquet.gz", "has the unknown ending .parquet.gz"),
    ],
)
def test_a_single_file_of_an_unknown_ending_is_refused(tmp_path, name, message):
    put(tmp_path, name)
    with pytest.raises(StageError, match=message):
        listed(tmp_path / name)
    assert listed(tmp_path / name, format="text") == ([name], {})
    with pytest.raises(StageError, match=r"is a glob that matches no file that is read. It holds 1 "):
        listed(f"{tmp_path}/*")
    assert listed(f"{tmp_path}/*", format="text")[0] == [name]


def test_a_folder_with_nothing_to_read_says_what_it_holds(tmp_path):
    put(tmp_path, "a.csv", "b.zip")
    with pytest.raises(
        StageError, match=r"folder without any file that is read. It holds 1 .csv, 1 .zip; read are .txt"
    ):
        listed(tmp_path)
    with pytest.raises(StageError, match=r"It holds 1 .csv, 1 .zip; read are .parquet."):
        listed(tmp_path, format="parquet")


def test_links(tmp_path):
    """Links in a circle, to a folder above, to themselves, twice to one file, into another folder, to nothing."""
    put(tmp_path, "in/a.txt", "in/b/c.txt", "outside/d.txt")
    for link, target in (("in/up", "."), ("in/b/top", ".."), ("in/self.txt", "self.txt"), ("in/again.txt", "a.txt")):
        (tmp_path / link).symlink_to(target)
    (tmp_path / "in" / "other").symlink_to(tmp_path / "outside")
    (tmp_path / "in" / "bb").symlink_to("b")
    names, left_out = listed(tmp_path / "in")
    assert names == ["a.txt", "b/c.txt", "other/d.txt"]
    assert left_out.pop("links in a circle") >= 3 and left_out == {"links to files of the same source": 2}
    assert [raw.name for raw in read_source("s", SourceConfig(path=f"{tmp_path}/in/*.txt"))] == ["a.txt"]
    (tmp_path / "in" / "gone.csv").symlink_to("nowhere")
    assert listed(tmp_path / "in")[0] == names
    (tmp_path / "in" / "gone.txt").symlink_to("nowhere")
    with pytest.raises(
        StageError, match="gone.txt of the source is a link to nowhere, which does not exist. Correct the link"
    ):
        listed(tmp_path / "in")
    with pytest.raises(StageError, match="gone.txt' is a link to nowhere, which does not exist"):
        listed(tmp_path / "in" / "gone.txt")


def test_a_pipe_is_never_waited_for(tmp_path):
    """Guards against opening a pipe, which blocks until somebody writes."""
    put(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "b.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "c.txt"))
        assert listed(tmp_path) == (["a.txt"], {"pipes, sockets or devices": 2})
        for name in ("b.txt", "c.txt"):
            with pytest.raises(StageError, match=f"{name}' is not a file but a pipe, socket or device"):
                listed(tmp_path / name)
    with pytest.raises(StageError, match="is not a file but a pipe, socket or device"):
        listed("/dev/null")


def test_a_name_that_is_no_text_is_named(tmp_path):
    put(tmp_path, "a.txt")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:
        file.write("x")
    with pytest.raises(StageError, match=r"whose name is not UTF-8: b'caf\\xe9.txt'. Rename it"):
        listed(tmp_path)


def test_names_with_the_characters_of_globs_and_urls(tmp_path):
    put(tmp_path, "in[1]/a::b.txt", "in[1]/c*d.txt", "in1/no.txt")
    assert listed(tmp_path / "in[1]")[0] == ["a::b.txt", "c*d.txt"]
    assert [raw.text for raw in read_source("s", SourceConfig(path=str(tmp_path / "in[1]" / "c*d.txt")))] == [
        "word " * 20
    ]


def test_home_and_file_urls_are_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path, "in/a b.txt")
    assert listed("~/in") == listed(f"file://{tmp_path}/in") == (["a b.txt"], {})
    assert listed(f"file://{tmp_path}/in/a%20b.txt")[0] == ["a b.txt"]
    with pytest.raises(StageError, match=r"did you mean .*/in\?"):
        listed("$HOME/in")


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path):
    """Guards against a file that changed after its fingerprint was taken."""
    put(tmp_path, "a.jsonl", content="".join(json.dumps({"text": text(n)}) + "\n" for n in range(3)))
    for change in (lambda path: path.write_text(path.read_text() * 2), lambda path: path.unlink()):
        raws = read_source("s", SourceConfig(path=str(tmp_path / "a.jsonl")))
        next(raws)
        change(tmp_path / "a.jsonl")
        with pytest.raises(StageError, match="a.jsonl (changed|was deleted) while it was read.*the same command again"):
            list(raws)


def test_numbered_files_of_which_some_are_missing_are_noted(tmp_path):
    put(tmp_path, "c4.00000-of-00001.jsonl", *(f"d-{n:05d}-of-00004.jsonl" for n in (0, 3)), content='{"text": "a"}')
    listing = list_files(str(tmp_path), "w.path")
    assert listing.notes == ("d-*.jsonl has 2 of 4 files; missing: 00001, 00002",)


def arrow(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def saved(folder, *names):
    """A folder of `datasets.save_to_disk` that names these files."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text('{"features": {}}')
    return state


def test_of_a_saved_data_set_its_own_files_are_read(tmp_path):
    """Guards against reading the caches of `map` and `shuffle`, which hold the rows again."""
    for split in ("train", "test"):
        saved(tmp_path / split, "data-00000-of-00001.arrow")
        arrow(tmp_path / split / "data-00000-of-00001.arrow", text=[split])
    arrow(tmp_path / "train" / "cache-2d0a802b78a30b76.arrow", text=["TRAIN"])
    arrow(tmp_path / "train" / "cache-77a1e05d2f0c9911_00000_of_00002.arrow", indices=[0])
    arrow(tmp_path / "train" / "other.arrow", text=["left by another program"])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert [raw.text for raw in read_source("s", SourceConfig(path=str(tmp_path)))] == ["test", "train"]
    assert listed(tmp_path)[1] == {"caches of the datasets library": 3, "metadata of data sets": 5}
    assert listed(f"{tmp_path}/*/*.arrow")[1] == {"caches of the datasets library": 2}, "a glob chooses by names alone"


def test_a_saved_data_set_that_is_not_whole_is_refused(tmp_path):
    state = saved(tmp_path / "a", "data-00000-of-00002.arrow", "data-00001-of-00002.arrow")
    arrow(tmp_path / "a" / "data-00000-of-00002.arrow", text=["a"])
    with pytest.raises(StageError, match=r"state.json names the file 'data-00001-of-00002.arrow' .* is missing"):
        listed(tmp_path / "a")
    arrow(tmp_path / "a" / "data-00001-of-00002.arrow", text=["b"])
    assert len(listed(tmp_path / "a")[0]) == 2
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["a", "b"]}')
    with pytest.raises(StageError, match=r"dataset_dict.json names the folder 'b' .* is missing"):
        listed(tmp_path)
    (tmp_path / "a" / "state.json").write_text(json.dumps(state | {"_indices_data_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(StageError, match=r"a selection of rows .*flatten_indices\(\).save_to_disk"):
        listed(tmp_path / "a")
    (tmp_path / "a" / "state.json").write_text(json.dumps(state)[:20])
    with pytest.raises(StageError, match=r"state.json is damaged .* Fetch or make it again"):
        listed(tmp_path / "a")


def test_the_summary_of_counts():
    counts = {"read": {".txt": [1200, 3_000_000]}, "left_out": {".csv": [2, 10]}}
    assert describe_counts(counts) == "1,200 .txt (3.0 MB); left out: 2 .csv"


def test_links_to_files_that_are_not_read_are_read(tmp_path):
    """Guards against text that is nowhere in the database: in a cache of Hugging Face every file to read is such a link."""
    put(tmp_path, "hub/blobs/0deadbeef", "hub/blobs/1deadbeef", "mixed/a.txt", "mixed/b.bak")
    (tmp_path / "hub" / "snapshots").mkdir()
    for number in range(2):
        (tmp_path / "hub" / "snapshots" / f"{number}.txt").symlink_to(f"../blobs/{number}deadbeef")
    (tmp_path / "hub" / "snapshots" / "again.txt").symlink_to("../blobs/1deadbeef")
    names, left_out = listed(tmp_path / "hub")
    assert names == ["snapshots/0.txt", "snapshots/1.txt"] and left_out["links to files of the same source"] == 1
    (tmp_path / "mixed" / "b.txt").symlink_to("b.bak")
    assert listed(tmp_path / "mixed")[0] == ["a.txt", "b.txt"]
