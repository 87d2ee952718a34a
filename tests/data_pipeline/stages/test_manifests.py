"""Stages survive a kill at any point, refuse input that does not fit, and never change files that they only read."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import made_up_text
import numpy as np
import pytest
from places import FIXTURES

from data_pipeline.chunks import ChunkTable, build_chunks
from data_pipeline.documents.stage import DocumentTable
from data_pipeline.stages.run import (
    Shard,
    StageError,
    atomic_path,
    file_sha256,
    read_manifest,
    read_seconds,
    require_fingerprint,
    run_stage,
)
from data_pipeline.tokens import Tokenizer

# Runs a stage again and again in forked children, each of which kills itself with SIGKILL at its own n-th event; an
# event is every sync and every rename (before and after), and the middle of every file. After each kill the stage is
# run once more and must leave the bytes of an undisturbed one.
KILLER = """
import os, pathlib, signal, shutil, sys, hashlib
import numpy as np
from data_pipeline.stages import run as manifests

countdown = None
def event():
    global countdown
    if countdown is not None:
        countdown -= 1
        if countdown < 0:
            os.kill(os.getpid(), signal.SIGKILL)

def around(function):
    def wrapped(*arguments):
        event()
        result = function(*arguments)
        event()
        return result
    return wrapped

os.replace, os.fsync = around(os.replace), around(os.fsync)

def shard(number):
    def make(temporary):
        for name in ("a", "b"):
            with open(temporary / f"{number}.{name}", "wb") as file:
                file.write(bytes([number]) * 3000)
                file.flush()
                event()
                file.write(name.encode() * 3000)
        return {"rows": number, "by": {name: {"n": 1} for name in ("all", str(number))}}
    return manifests.Shard(f"s{number}", [f"{number}.a", f"{number}.b"], make)

def made_up(directory):
    manifests.run_stage(directory, "made-up", {"a": 1}, {"text": "0"}, [shard(n) for n in range(3)])

def real(directory):
    sys.path.insert(0, TESTS)
    import made_up_text
    from data_pipeline import chunks, tokens
    from data_pipeline.documents import stage as documents
    root = pathlib.Path(ROOT)
    config = made_up_text.config(root / "text", shard_chunks=700, near_duplicate_jaccard=0.8)
    documents.build_documents(directory / "documents", config)
    tokens.build_tokenizer(directory / "tokenizer", config, made_up_text.VOCABULARY, directory / "documents")
    chunks.build_chunks(directory / "chunks", config, 8, directory / "documents", directory / "tokenizer")

def digest(directory):
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(directory.rglob("*"))
        if path.name != "seconds.json"
    }

def killed(stage, directory, after):
    global countdown
    child = os.fork()
    if child == 0:
        sys.stderr = open(os.devnull, "w")
        countdown = after
        stage(directory)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

def main(stage, work, step):
    stage(work / "whole")
    wanted = digest(work / "whole")
    after = kills = 0
    while True:
        directory = work / f"killed-{after}"
        if not killed(stage, directory, after):
            assert digest(directory) == wanted, "undisturbed in a child"
            break
        kills += 1
        killed(stage, directory, 5)  # and once more during the repair
        stage(directory)
        found = digest(directory)
        assert found == wanted, (after, {k for k in {*found, *wanted} if found.get(k) != wanted.get(k)})
        shutil.rmtree(directory)
        after += step
    print(kills)
"""


def run_killer(tmp_path, stage, step):
    program = f"TESTS, ROOT = {str(FIXTURES)!r}, {str(tmp_path)!r}\n{KILLER}"
    program += f"\nmain({stage}, pathlib.Path({str(tmp_path / 'work')!r}), {step})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout)


def test_killed_at_every_point_the_bytes_are_the_same(tmp_path):
    """Guards against a killed build that ends with other bytes.

    SIGKILL in and between shards, around each rename, twice.
    """
    assert run_killer(tmp_path, "made_up", 1) > 50


def test_the_text_stages_survive_kills(tmp_path):
    """Guards against a killed build that ends with other bytes, for documents, tokenizer and chunks."""
    made_up_text.write_folder(tmp_path / "text")
    assert run_killer(tmp_path, "real", 9) > 5


def fill(number, log=None):
    def make(temporary):
        if log is not None:
            log.append(number)
        np.save(temporary / f"{number}.npy", np.full(10, number))
        return {"rows": 10, "by": {str(number): {"n": 1}, "all": {"n": 1}}, "kind": "made up"}

    return Shard(f"s{number}", [f"{number}.npy"], make)


def stage(directory, log=None, config=None, inputs=None, shards=3):
    config, inputs = config or {"length": 4}, inputs or {"text": "aa"}
    return run_stage(directory, "made-up", config, inputs, [fill(number, log) for number in range(shards)])


def state(directory):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in Path(directory).rglob("*")}


def test_counts_of_shards_are_added(tmp_path):
    counts = stage(tmp_path).counts
    each = {str(number): {"n": 1} for number in range(3)}
    assert counts == {"rows": 30, "by": {**each, "all": {"n": 3}}, "kind": "made up"}


def test_only_missing_shards_are_made(tmp_path):
    stage(tmp_path)
    whole = (tmp_path / "manifest.json").read_bytes()
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "1.npy").unlink()
    log = []
    stage(tmp_path, log)
    assert log == [1] and (tmp_path / "manifest.json").read_bytes() == whole
    log.clear()
    stage(tmp_path, log)
    assert log == []


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b'{"stage": "made-u', b"{}", b"[1]", None])
@pytest.mark.parametrize("name", ["plan.json", "manifest.json", "seconds.json"])
def test_damaged_bookkeeping_of_a_finished_stage_is_made_again_with_a_line(tmp_path, name, content, capsys):
    """The shards are intact, so they are not made again, and the user need not act."""
    stage(tmp_path)
    whole = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "seconds.json"}
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    capsys.readouterr()
    log = []
    stage(tmp_path, log)
    assert log == [] and {path: path.read_bytes() for path in whole} == whole
    assert name in capsys.readouterr().err or name == "seconds.json" or (name, content) == ("manifest.json", None)


@pytest.mark.parametrize("name", [".parts/s1.json", "1.npy"])
@pytest.mark.parametrize("at", [0, 40, -2])
def test_a_shard_damaged_between_two_starts_is_made_again_alone(tmp_path, name, at, capsys):
    """Guards against a file of the right size with other bytes, as after a crash before they reached the disk."""
    stage(tmp_path)
    whole = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "seconds.json"}
    content = bytearray((tmp_path / name).read_bytes())
    content[at] ^= 2
    (tmp_path / name).write_bytes(content)
    (tmp_path / "manifest.json").unlink()
    log = []
    stage(tmp_path, log)
    assert log == [1] and {path: path.read_bytes() for path in whole} == whole
    assert "the shard s1 of" in capsys.readouterr().err


def test_shards_whose_plan_is_lost_are_not_taken_for_ours(tmp_path):
    stage(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "plan.json").write_bytes(b"")
    before = state(tmp_path)
    with pytest.raises(
        StageError, match=r"plan.json is missing or damaged, so the config .* is unknown. Nothing was changed"
    ):
        stage(tmp_path)
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    "change, message",
    [
        ({"config": {"length": 8}}, r"what differs: config.length \(there 4, now 8\)"),
        ({"inputs": {"text": "bb"}}, r"what differs: inputs.text \(there 'aa', now 'bb'\)"),
        ({"shards": 4}, "what differs: shards"),
    ],
)
def test_another_config_or_input_is_refused_and_nothing_touched(tmp_path, change, message):
    """Guards against deleting shards that do not fit. They are an error."""
    stage(tmp_path)
    before = state(tmp_path)
    with pytest.raises(StageError, match=message + ".*Nothing was changed"):
        stage(tmp_path, **change)
    assert state(tmp_path) == before


def test_a_truncated_altered_or_missing_file_is_named(tmp_path):
    stage(tmp_path)
    path = tmp_path / "1.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(
        StageError, match=r"1.npy is truncated or extended: it has 207 bytes, but the manifest says 208"
    ):
        read_manifest(tmp_path, "made-up", verify=False)
    path.write_bytes(content[:-1] + b"!")
    read_manifest(tmp_path, "made-up", verify=False)
    with pytest.raises(StageError, match=r"1.npy was altered: its sha256 is .* verify --repair"):
        read_manifest(tmp_path, "made-up")
    path.unlink()
    with pytest.raises(StageError, match=r"1.npy is missing, but .* lists it .* verify --repair"):
        read_manifest(tmp_path, "made-up", verify=False)


def test_no_half_and_broken_manifests_are_named(tmp_path):
    with pytest.raises(StageError, match=r"does not exist: it has no manifest.json. Run `retro build`"):
        read_manifest(tmp_path / "none", "made-up")
    stage(tmp_path)
    with pytest.raises(StageError, match="holds the stage 'made-up', but 'chunks' is needed"):
        read_manifest(tmp_path, "chunks")
    (tmp_path / "manifest.json").write_text('{"stage": ')
    with pytest.raises(StageError, match=r"manifest.json is cut off. `retro build` again, .* rewrites it"):
        read_manifest(tmp_path, "made-up")
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(StageError, match="is half-written"):
        read_manifest(tmp_path, "made-up")


def test_a_full_disk_costs_no_whole_shard(tmp_path):
    """The second shard meets a disk without space (the device /dev/full); the first stays, the message says what to do."""

    def make(temporary):
        with open("/dev/full", "wb") as file:
            np.save(file, np.zeros(10_000))
        return {}

    with pytest.raises(StageError, match=r"The disk of .* is full \(.*\). Free some space and run `retro build` again"):
        run_stage(tmp_path, "made-up", {"length": 4}, {"text": "aa"}, [fill(0), Shard("s1", ["1.npy"], make), fill(2)])
    log = []
    repaired = stage(tmp_path, log)
    assert log == [1, 2]
    assert repaired.files == stage(tmp_path.with_name("undisturbed")).files


def test_other_errors_of_the_system_are_not_taken_for_a_full_disk(tmp_path):
    def make(temporary):
        raise PermissionError(13, "no entry")

    with pytest.raises(PermissionError):
        run_stage(tmp_path, "made-up", {}, {}, [Shard("s", ["s"], make)])


def test_the_fingerprint_is_of_what_counts(tmp_path):
    one = stage(tmp_path / "one")
    assert stage(tmp_path / "two").fingerprint == one.fingerprint
    assert stage(tmp_path / "three", inputs={"text": "bb"}).fingerprint != one.fingerprint
    facts = json.loads((tmp_path / "one" / "manifest.json").read_text())
    facts["versions"]["numpy"] = "0"
    with pytest.raises(StageError, match=r"manifest.json was altered"):
        (tmp_path / "one" / "manifest.json").write_text(json.dumps(facts))
        read_manifest(tmp_path / "one", "made-up")
    del facts["sha256"]  # as earlier builds wrote it
    (tmp_path / "one" / "manifest.json").write_text(json.dumps(facts))
    assert read_manifest(tmp_path / "one", "made-up").fingerprint == one.fingerprint
    with pytest.raises(StageError, match="tokenizer does not match: found fingerprint a…, but b… is expected. Train"):
        require_fingerprint("tokenizer", "a", "b", "Train again.")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "x").read_text() == "old" and os.listdir(tmp_path) == ["x"]


def test_reading_changes_nothing(tmp_path):
    """Guards against opening finished stages that changes a size or a time of modification."""
    made_up_text.build(tmp_path)
    before = state(tmp_path)
    checksum = file_sha256(tmp_path / "chunks" / "chunks-00000.tokens.npy")
    table = ChunkTable(tmp_path / "chunks", verify=True)
    assert table.value(np.arange(len(table))).shape == (len(table), 16)
    assert Tokenizer(tmp_path / "tokenizer").vocabulary and len(list(DocumentTable(tmp_path / "documents").read()))
    with pytest.raises(ValueError, match="read-only"):
        table.tokens._parts[0][0, 0] = 7
    assert file_sha256(tmp_path / "chunks" / "chunks-00000.tokens.npy") == checksum and state(tmp_path) == before


def test_a_stage_checks_the_stages_it_reads(tmp_path):
    """An altered tokenizer or document file stops the chunks stage before it writes anything."""
    settings = made_up_text.build(tmp_path)
    for name in ("tokenizer/tokenizer.model", "documents/part-00000.jsonl"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-1] + b"!")
        with pytest.raises(StageError, match=f"{name} was altered"):
            build_chunks(tmp_path / "new", settings, 8, tmp_path / "documents", tmp_path / "tokenizer")
        (tmp_path / name).write_bytes(content)
    assert not (tmp_path / "new").exists()


def test_the_time_before_an_interruption_counts(tmp_path, monkeypatch):
    """Guards against a build of ten hours that says one."""
    now, stopped = [0.0], [True]
    monkeypatch.setattr("data_pipeline.stages.run.time", types.SimpleNamespace(monotonic=lambda: now[0]))

    def make(name):
        def work(folder):
            now[0] += 100.0
            if name == "two" and stopped:
                raise KeyboardInterrupt
            (folder / name).write_text(name)
            return {}

        return Shard(name, [name], work)

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path / "s", "s", {}, {}, [make("one"), make("two")])
    stopped.clear()
    run_stage(tmp_path / "s", "s", {}, {}, [make("one"), make("two")])
    assert read_seconds(tmp_path / "s") == 300.0
