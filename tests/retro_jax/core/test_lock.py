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


def test_two_evaluations_in_one_directory(tmp_path, capsys):
    with lock_directory(tmp_path, "evaluate"):
        assert evaluate_main(["--config=configs/quickstart.py:smoke", f"--workdir={tmp_path}"]) == 2
    assert "One `retro evaluate` at a time" in capsys.readouterr().err
