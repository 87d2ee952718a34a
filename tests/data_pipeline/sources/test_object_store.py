"""Sources in an S3 store over HTTP, with moto's server and s3fs. `make test-store`."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import made_up_text
import pytest
from test_files import PACKED, packed

from data_pipeline.documents.stage import DocumentTable, build_documents
from data_pipeline.formats import files
from data_pipeline.stages.run import StageError
from retro_jax.config import DataConfig, SourceConfig

pytestmark = pytest.mark.store
TEXTS = [made_up_text.text(seed, 60) for seed in range(40)]
FORMS = ("txt", *PACKED, "parquet", "arrow")


class Server:
    """moto's server on a free port; its content is lost when it is killed."""

    def __init__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = None

    def start(self, content: dict[str, bytes]):
        command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    break
            time.sleep(0.1)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        store = s3fs.S3FileSystem()
        store.mkdir("texts")
        for name, data in content.items():
            store.pipe(f"texts/{name}", data)
        s3fs.S3FileSystem.clear_instance_cache()  # with what it remembers of listings

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(monkeypatch):
    server = Server()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
        "AWS_ACCESS_KEY_ID": "a-key",
        "AWS_SECRET_ACCESS_KEY": "not-to-be-shown",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    yield server
    server.kill()


def content() -> dict[str, bytes]:
    """All formats, in two folders."""
    found = {f"b/{form}/{n:02d}.txt": TEXTS[n].encode() for n, form in enumerate(("x", "y"))}
    return found | {f"a.{form}": packed(form, TEXTS[5 * n : 5 * n + 5]) for n, form in enumerate(FORMS) if n}


def documents(directory, path):
    source = SourceConfig(path=str(path), license="CC0")
    manifest = build_documents(directory, DataConfig(sources={"farm": source}, validation_fraction=0.2))
    return manifest.counts, list(DocumentTable(directory).read())


def test_a_store_gives_what_a_folder_gives(server, tmp_path):
    """A bucket, a prefix, one object and globs."""
    for name, data in content().items():
        (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / name).write_bytes(data)
    server.start(content())
    for number, path in enumerate(("", "/b", "/b/x/00.txt", "/*.jsonl*", "/b/*/*.txt")):
        here = documents(tmp_path / f"local-{number}", f"{tmp_path}/local{path}")
        assert documents(tmp_path / f"store-{number}", f"s3://texts{path}") == here and here[1]


def test_a_store_that_dies_half_way(server, tmp_path, monkeypatch):
    """Retries, then a clean stop; when the store is back, the same command reads the rest and gives the same bytes."""
    monkeypatch.setattr("data_pipeline.sources.readers.UNIT_FILES", 1)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    held = content()  # once: gzip writes the time
    server.start(held)
    whole = documents(tmp_path / "whole", "s3://texts")
    opened, open_one = [], files.RetryingFile.__init__

    def opening(self, file):
        opened.append(file.name)
        if len(opened) == 4:
            server.kill()
        open_one(self, file)

    monkeypatch.setattr(files.RetryingFile, "__init__", opening)
    with pytest.raises(StageError, match="cannot be read: 5 attempts failed.*run the same command again") as caught:
        documents(tmp_path / "stopped", "s3://texts")
    assert "not-to-be-shown" not in str(caught.value)
    read = opened[:3]
    opened[:] = [""] * 4
    server.start(held)
    assert documents(tmp_path / "stopped", "s3://texts") == whole
    assert not set(read) & set(opened)
    for name in ("part-00000.jsonl", "lines-00000.npy"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_is_not_there(server, tmp_path):
    server.start(content())
    for path, message in (
        ("s3://texts/nothing", "does not exist"),
        ("s3://no-bucket-of-ours/x", "does not exist"),
        ("s3://texts/*.csv", "matches no file"),
    ):
        with pytest.raises(StageError, match=message):
            documents(tmp_path / "d", path)
