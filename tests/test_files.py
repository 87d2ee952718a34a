"""Files in a store: listed and read like local ones, again after errors, and given up with a way to go on."""

import json

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_pipeline import files
from data_pipeline.documents import build_documents, read_documents
from data_pipeline.files import digest_files, list_files, open_file
from data_pipeline.manifests import StageError
from data_pipeline.readers import read_source
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
            read = file.read

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


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def test_a_store_is_listed_like_a_folder(store):
    store.put_all({"b/x/1.jsonl": lines("one"), "b/2.txt": b"two", "b/3.md": b"three", "c/4.txt": b"four"})
    source = SourceConfig(path="flaky://b")
    assert [(raw.name, raw.text) for raw in read_source("s", source)] == [("2.txt", "two"), ("x/1.jsonl:1", "one")]
    assert [f.name for f in list_files("flaky://b/*.md", (), "w")] == ["3.md"]
    assert [f.name for f in list_files("flaky://*/*.txt", (), "w")] == ["b/2.txt", "c/4.txt"]
    (file,) = list_files("flaky://b/2.txt", (), "w")
    assert (file.url, file.name, file.bytes) == ("flaky:///b/2.txt", "2.txt", 3)


def test_a_failed_read_goes_on_where_it_stopped(store):
    content = bytes(range(256)) * 40
    store.put_all({"b/data.bin": content})
    (file,) = list_files("flaky://b/data.bin", (), "w")
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
    (file,) = list_files("flaky://b/a.jsonl", (), "w")
    longer = files.SourceFile(file.url, file.name, file.bytes + 1)
    with pytest.raises(StageError, match="byte 16, cannot be read: 5 attempts failed, the last with EOFError"):
        open_file(longer).read()


def test_a_build_that_stopped_on_errors_reads_only_what_is_missing(store, tmp_path, monkeypatch):
    """The store breaks at the third of five files; the next run reads the last three and gives the same bytes."""
    monkeypatch.setattr("data_pipeline.readers.UNIT_FILES", 1)
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
    assert {d.text for d in read_documents(tmp_path / "stopped")} == set(texts)
    names = [sorted(p.name for p in (tmp_path / folder).iterdir()) for folder in ("whole", "stopped")]
    assert names[0] == names[1] and ".read" not in names[0]


def test_the_digest_of_an_object_is_what_the_store_says(store):
    store.put_all({"b/a.txt": b"one"})
    first = digest_files(list_files("flaky://b", (".txt",), "w"))
    assert digest_files(list_files("flaky://b", (".txt",), "w")) == first and store.opened == []
    store.put_all({"b/a.txt": b"two"})
    assert digest_files(list_files("flaky://b", (".txt",), "w")) != first


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
