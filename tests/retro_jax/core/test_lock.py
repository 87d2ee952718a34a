"""One writer at a time in a run directory, and no lock outlives the process that holds it."""

import os
import signal
import subprocess
import sys

import pytest

from data_pipeline.stages.lock import BuildLock
from launch.evaluate import main as evaluate_main
from retro_jax.core import lock as lock_module
from retro_jax.core.lock import lock_directory

HOLD = """
import subprocess, sys
from retro_jax.core.lock import lock_directory
with lock_directory(sys.argv[1], "train"):
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    print(child.pid, flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_leaves_no_lock_and_its_children_hold_none(tmp_path):
    held = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    holder = subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    here = os.uname().nodename
    rule = f"One `retro train` at a time may write into .*run, but process {holder.pid} on {here} is doing so now"
    with pytest.raises(ValueError, match=rule):
        lock_directory(tmp_path / "run", "train").acquire()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(ValueError, match=rule.replace("run,", "link,")):
        lock_directory(tmp_path / "link", "train").acquire()
    with lock_directory(tmp_path / "run", "evaluate"):
        pass  # a checkpoint may be evaluated while training goes on
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    try:
        os.kill(child, 0)  # it still lives
        with lock_directory(tmp_path / "run", "train") as lock:
            assert lock.path.read_text() == f"{here} {os.getpid()}"
    finally:
        os.kill(child, signal.SIGKILL)
        holder.communicate()


def test_the_lock_leaves_nothing_behind(tmp_path):
    with lock_directory(tmp_path / "runs" / "new", "train"):
        assert (tmp_path / "runs" / "new" / "train.lock").exists()
    assert not (tmp_path / "runs").exists()
    with lock_directory(tmp_path / "runs" / "used", "train"):
        (tmp_path / "runs" / "used" / "metrics.jsonl").touch()
    assert [path.name for path in (tmp_path / "runs" / "used").iterdir()] == ["metrics.jsonl"]


def test_a_link_to_a_data_directory_has_the_lock_of_the_directory(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with BuildLock(tmp_path / "data"), pytest.raises(ValueError, match="One build at a time"):
        BuildLock(tmp_path / "link").acquire()


def test_a_directory_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/run cannot be written to \(Not a directory\).*another --workdir"):
        lock_directory(tmp_path / "file" / "run", "train").acquire()


def test_storage_without_locks_is_told(tmp_path, monkeypatch, capsys):
    def refuse(file, flags):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock_module.fcntl, "flock", refuse)
    with lock_directory(tmp_path, "train"):
        assert "has no file locks (Function not implemented)" in capsys.readouterr().err


def test_a_refusal_waits_for_the_name_of_the_holder(tmp_path, monkeypatch):
    """Guards against "process ?" where the file is read between the holder's locking and writing."""
    pauses = []
    with lock_directory(tmp_path, "train") as held:
        held.path.write_text("")

        def write_at_the_third(seconds):
            pauses.append(seconds)
            if len(pauses) == 3:
                held.path.write_text(held.content)

        monkeypatch.setattr(lock_module.time, "sleep", write_at_the_third)
        with pytest.raises(ValueError, match=f"but process {os.getpid()} on {os.uname().nodename} is doing so now"):
            lock_directory(tmp_path, "train").acquire()
        assert len(pauses) == 3
        held.path.write_text("")
        pauses[:] = range(3)
        with pytest.raises(ValueError, match=r"but process \? on another machine is doing so now"):
            lock_directory(tmp_path, "train").acquire()
        assert sum(pauses[3:]) == pytest.approx(0.2)


def test_a_folder_that_its_holder_removes_meanwhile_is_made_again(tmp_path, monkeypatch):
    """Guards against "cannot be written to" where another process releases its lock during mkdir."""
    make, calls = lock_module.Path.mkdir, []

    def remove_twice(self, *args, **kwargs):
        calls.append(self)
        if len(calls) <= 2:
            raise (
                FileNotFoundError(2, "No such file or directory")
                if len(calls) == 1
                else FileExistsError(17, "File exists")
            )
        return make(self, *args, **kwargs)

    monkeypatch.setattr(lock_module.Path, "mkdir", remove_twice)
    with lock_directory(tmp_path / "run", "train") as lock:
        assert lock.path.exists()
    monkeypatch.undo()
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"nowhere cannot be written to \(File exists\)"):
        lock_directory(tmp_path / "nowhere", "train").acquire()


def test_two_evaluations_in_one_directory(tmp_path, capsys):
    with lock_directory(tmp_path, "evaluate"):
        assert evaluate_main(["--config=configs/quickstart.py:smoke", f"--workdir={tmp_path}"]) == 2
    assert "One `retro evaluate` at a time" in capsys.readouterr().err
