"""Files in a store: listed and read like local ones, with retries, and errors that name the remedy."""

import gzip
import hashlib
import io
import json
import os
from functools import partial

import fsspec
import made_up_encoder
import made_up_text
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFileSystem
from test_build import arguments, contents

from data_pipeline.documents.stage import DocumentTable, build_documents
from data_pipeline.formats import files
from data_pipeline.formats.files import digest_files, open_file
from data_pipeline.sources.listing import list_files
from data_pipeline.sources.readers import read_source
from data_pipeline.stages.run import StageError
from launch import build
from retro_jax.config import DataConfig, SourceConfig


class Flaky(MemoryFileSystem):
    """A store in memory whose reads fail: the next `failures` of them, and all of a name in `broken`."""

    protocol = "flaky"
    store, pseudo_dirs = {}, [""]
    failures, broken, opened = 0, "", []

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://"))

    def open(self, path, mode="rb", **options):
        cls, file = type(self), super().open(path, mode, **options)
        if mode == "rb":
            cls.opened.append(path)
            read = partial(type(file).read, file)  # a store in memory opens one object again and again

            def failing(size=-1):
                if cls.failures > 0 or (cls.broken and cls.broken in path):
                    cls.failures -= 1
                    raise ConnectionResetError("https://user:secret@store")
                return read(min(size, 1000))  # stores answer with less than was asked for

            file.read = failing
        return file


@pytest.fixture
def store(monkeypatch):
    """Puts {name: bytes} into the store; `waits` collects the pauses."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.store.clear()
    Flaky.failures, Flaky.broken, Flaky.opened = 0, "", []
    Flaky.waits = []
    monkeypatch.setattr(files.time, "sleep", Flaky.waits.append)
    Flaky.put_all = lambda contents: [Flaky().pipe(f"/{name}", content) for name, content in contents.items()]
    return Flaky


def _raise(error):
    if error:
        raise error


def listed(path):
    return list(list_files(path, "w.path", any_ending=True).files)


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def test_a_store_is_listed_like_a_folder(store):
    store.put_all({"b/x/1.jsonl": lines("one"), "b/2.txt": b"two", "b/3.md": b"three", "c/4.txt": b"four"})
    source = SourceConfig(path="flaky://b")
    assert [(raw.name, raw.text) for raw in read_source("s", source)] == [("2.txt", "two"), ("x/1.jsonl:1", "one")]
    assert [f.name for f in listed("flaky://b/*.md")] == ["3.md"]
    assert [f.name for f in listed("flaky://*/*.txt")] == ["b/2.txt", "c/4.txt"]
    (file,) = listed("flaky://b/2.txt")
    assert (file.url, file.name, file.bytes) == ("flaky:///b/2.txt", "2.txt", 3)


def test_a_failed_read_goes_on_where_it_stopped(store):
    content = bytes(range(256)) * 40
    store.put_all({"b/data.bin": content})
    (file,) = listed("flaky://b/data.bin")
    with open_file(file) as stream:
        start = stream.read(3000)
        store.failures = 4
        assert start + stream.read() == content
        assert store.waits == [2.0, 4.0, 8.0, 16.0]
        stream.seek(5000)
        assert stream.read(10) == content[5000:5010]


def test_a_store_that_never_answers_is_said_without_its_secrets(store):
    store.put_all({"b/data.jsonl": lines("one")})
    store.broken = "data"
    with pytest.raises(StageError) as caught:
        list(read_source("s", SourceConfig(path="flaky://b")))
    message = str(caught.value)
    assert "flaky:///b/data.jsonl, byte 0, cannot be read: 5 attempts failed, the last with ConnectionReset" in message
    assert "run the same command again" in message and "secret" not in message


def test_an_object_that_ends_early_is_no_end(store):
    store.put_all({"b/a.jsonl": lines("one")})
    (file,) = listed("flaky://b/a.jsonl")
    longer = files.SourceFile(file.url, file.name, file.bytes + 1)
    with pytest.raises(StageError, match="byte 16, cannot be read: 5 attempts failed, the last with EOFError"):
        open_file(longer).read()


def test_a_build_that_stopped_on_errors_reads_only_what_is_missing(store, tmp_path, monkeypatch):
    """The store fails at the third of five files; the next run reads the last three and gives the same bytes."""
    monkeypatch.setattr("data_pipeline.sources.readers.UNIT_FILES", 1)
    texts = [" ".join([f"word{n}"] * 20) for n in range(5)]
    store.put_all({f"b/{n}.jsonl": lines(text) for n, text in enumerate(texts)})
    config = DataConfig(sources={"s": SourceConfig(path="flaky://b")}, validation_fraction=0.0)
    whole = build_documents(tmp_path / "whole", config)
    store.broken = "2.jsonl"
    with pytest.raises(StageError, match="2.jsonl, byte 0, cannot be read"):
        build_documents(tmp_path / "stopped", config)
    store.broken, store.opened = "", []
    assert build_documents(tmp_path / "stopped", config) == whole
    assert store.opened == [f"/b/{n}.jsonl" for n in (2, 3, 4)]
    assert {d.text for d in DocumentTable(tmp_path / "stopped").read()} == set(texts)
    names = [sorted(p.name for p in (tmp_path / folder).iterdir()) for folder in ("whole", "stopped")]
    assert names[0] == names[1] and ".read" not in names[0]


PACKED = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}


def packed(form, texts):
    if form in PACKED:
        return PACKED[form](lines(*texts))
    table, buffer = pa.table({"text": texts}), io.BytesIO()
    if form == "parquet":
        pq.write_table(table, buffer, row_group_size=500)
    else:
        with (pa.ipc.new_stream if "stream" in form else pa.ipc.new_file)(buffer, table.schema) as writer:
            writer.write_table(table, max_chunksize=500)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["txt", *PACKED, "parquet", "arrow", "stream.arrow"])
def test_every_form_is_read_through_failures_and_given_up_cleanly(store, form):
    """A store that fails sometimes costs time; for one that stays away the error blames the store, not the file."""
    texts = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(5000)]
    store.put_all({f"b/a.{form}": "".join(texts).encode() if form == "txt" else packed(form, texts)})
    source, found = SourceConfig(path="flaky://b"), []
    for raw in read_source("s", source):
        found.append(raw.text)
        store.failures = 4
    assert found == (["".join(texts)] if form == "txt" else texts)
    for after in (0, 50) if form != "txt" else (0,):
        store.failures, store.broken, store.waits[:] = 0, "" if after else "a.", []
        with pytest.raises(StageError, match=rf"a.{form}, byte [0-9,]+, cannot be read: 5 attempts failed.*again"):
            for number, _ in enumerate(read_source("s", source)):
                store.broken = "a." if number >= after else ""
        assert store.waits == [2.0, 4.0, 8.0, 16.0]


@pytest.mark.parametrize("call", ["find", "info"])
def test_a_store_that_cannot_be_listed(store, tmp_path, monkeypatch, call):
    """Listing and fingerprints are retried too, and nothing is written before they succeed."""
    store.put_all({"b/0.jsonl": lines("word " * 20)})
    config = DataConfig(sources={"s": SourceConfig(path="flaky://b")}, validation_fraction=0.0)
    real, failures = getattr(Flaky, call), [4]

    def failing(self, *arguments, **options):
        failures[0] -= 1
        if failures[0] >= 0:
            raise TimeoutError("https://user:secret@store")
        return real(self, *arguments, **options)

    monkeypatch.setattr(Flaky, call, failing)
    whole = build_documents(tmp_path / "whole", config)
    assert whole.counts["documents"] == 1 and store.waits[:4] == [2.0, 4.0, 8.0, 16.0]
    failures[0] = 1000
    with pytest.raises(StageError, match="cannot be read: 5 attempts failed, the last with TimeoutError") as caught:
        build_documents(tmp_path / "stopped", config)
    assert "flaky://" in str(caught.value) and "secret" not in str(caught.value)
    assert not (tmp_path / "stopped").exists()
    failures[0] = 0
    assert build_documents(tmp_path / "stopped", config) == whole


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("in", "ab"),
        ("in/*/*.txt", "ab"),
        ("in/**/*.txt", "ab"),
        ("in/**", "ab"),
        ("*/b/*.txt", "b"),
        ("*/*/doc.txt", "ab"),
    ],
)
def test_a_folder_that_cannot_be_listed_is_not_left_out(tmp_path, monkeypatch, path, names):
    """Guards against a smaller corpus: a local folder without permission or on a failing disk is an error, also in a glob."""
    path = f"{tmp_path}/{path}"
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "doc.txt").write_text(name)
    real, failures = os.scandir, [PermissionError(13, "b", f"{tmp_path}/in/b")]

    def failing(path):
        if str(path).endswith("/b") and failures:
            raise failures[0]
        return real(path)

    monkeypatch.setattr("data_pipeline.sources.walk.os.scandir", failing)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    with pytest.raises(StageError, match=r"w.path=.* cannot be read: permission denied \(.*/in/b\). Change its"):
        listed(path)
    failures[0] = OSError("input/output error")
    with pytest.raises(StageError, match="w.path=.* cannot be read: 5 attempts failed, the last with OSError"):
        listed(path)
    failures.clear()
    found = [file.url for file in listed(path)]
    assert found == [f"{tmp_path}/in/{name}/doc.txt" for name in names]


def test_the_command_stops_cleanly_and_the_same_command_goes_on(store, tmp_path, monkeypatch, capsys):
    """`retro build` from a store that fails after the documents' first units: exit code, one message, then all stages."""
    monkeypatch.setattr("data_pipeline.sources.readers.UNIT_FILES", 5)
    made_up_encoder.write(tmp_path / "encoder")
    texts = [made_up_text.text(number, 60 + 7 * number) for number in range(24)]
    store.put_all({f"b/{number:03d}.txt": text.encode() for number, text in enumerate(texts)})
    (tmp_path / "text").mkdir()
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    command = arguments(tmp_path, stopped)
    command[0] = "--config=configs/own_text.py:flaky://b"
    store.broken = "012"
    assert build.main(command) == 2
    said = capsys.readouterr().err.partition("retro build: ")[2]
    assert said.startswith("flaky:///b/012.txt, byte 0, cannot be read") and "same command again" in said
    assert "Traceback" not in said
    assert not (stopped / "data" / "tokenizer").exists()
    store.broken, store.opened = "", []
    assert build.main(command) == 0
    assert store.opened == [f"/b/{number:03d}.txt" for number in range(10, 24)], "what was read whole is not read again"
    assert build.main([command[0], f"--workdir={whole}", *command[2:]]) == 0
    assert contents(stopped) == contents(whole)


def test_the_digest_of_an_object_is_what_the_store_says(store, monkeypatch):
    store.put_all({"b/a.txt": b"one"})
    objects = listed("flaky://b")
    first = digest_files(objects)
    answers = iter([TimeoutError] * 4)
    with monkeypatch.context() as patch:
        real = Flaky.info
        patch.setattr(Flaky, "info", lambda self, path: _raise(next(answers, None)) or real(self, path))
        assert digest_files(objects) == first and store.waits == [2.0, 4.0, 8.0, 16.0]
    assert digest_files(listed("flaky://b")) == first and store.opened == []
    store.put_all({"b/a.txt": b"two"})
    assert digest_files(listed("flaky://b")) != first


@pytest.mark.parametrize(
    "url, message",
    [
        ("gs://bucket/text", r"gs:// needs a package that is not installed \(.*pip install gcsfs"),
        ("nope://bucket", "nope://bucket cannot be opened: Protocol not known"),
        ("memory://none", "path='memory://none' does not exist"),
    ],
)
def test_a_url_that_cannot_be_opened_is_said(url, message):
    with pytest.raises(StageError, match=message):
        list(read_source("s", SourceConfig(path=url)))
