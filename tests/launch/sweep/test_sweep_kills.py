"""A sweep that is killed five times, and one of several processes, have the table of one that ran in one go."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_sweep
from places import FIXTURES, ROOT

pytestmark = pytest.mark.slow
SWEEP = """
from tiny_sweep import get_config

def sweep(argument):
    for neighbors in (1, 2):
        yield f"k{neighbors}", {"model.neighbors": neighbors}
    yield "none", {"model.retrieval_layers": ()}
"""
# (what must have begun, the signal, whether the whole group gets it); a group is what a machine or a scheduler kills
KILLS = [
    ("build-", signal.SIGKILL, True),
    ("train-", signal.SIGTERM, False),
    ("train-", signal.SIGKILL, True),
    ("train-", signal.SIGKILL, False),
    ("evaluate-", signal.SIGKILL, True),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tiny_sweep.write(tmp_path_factory.mktemp("sweep"))
    (root / "config.py").write_text(SWEEP)
    return root


def environment(root):
    return os.environ | {
        "PYTHONPATH": f"{FIXTURES}{os.pathsep}{ROOT}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(root / "cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(root, name, *more):
    command = [sys.executable, "-m", "launch.sweep", f"--config={root / 'config.py'}:{root}", "--seeds=0,1"]
    with open(root / f"{name}.log", "ab") as log:
        return subprocess.Popen(
            [*command, f"--workdir={root / name}", *more],
            cwd=ROOT,
            env=environment(root),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def table(work: Path) -> list[dict]:
    with open(work / "results.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(root):
    assert start(root, "whole").wait(1800) == 0, (root / "whole.log").read_text()[-3000:]
    return table(root / "whole")


def begun(work: Path, word: str) -> set[str]:
    """The tasks of a kind that have printed something of their own."""
    logs = (work / "logs").glob(f"{word}*.log") if (work / "logs").exists() else ()
    return {path.name for path in logs if path.read_text(errors="replace").count("\n") > 1}


def wait_for_new(process, work: Path, word: str, before: set[str]) -> None:
    end = time.monotonic() + 600
    while not begun(work, word) - before:
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < end
        time.sleep(0.05)


def test_killed_five_times_it_has_the_same_table(root, whole):
    """Guards against a step that is lost, or done twice with another result; the fourth kill leaves the training running."""
    work, codes = root / "killed", []
    for word, number, group in KILLS:
        before = begun(work, word)
        process = start(root, "killed")
        wait_for_new(process, work, word, before)
        (os.killpg if group else os.kill)(process.pid, number)
        codes.append(process.wait(600))
    assert codes == [-9, 75, -9, -9, -9]
    assert start(root, "killed").wait(1800) == 0, (root / "killed.log").read_text()[-3000:]
    assert table(work) == whole and len({row["point"] for row in whole}) == 6
    assert "waiting for it" in (root / "killed.log").read_text()


def test_two_processes_with_two_steps_at_once_have_the_same_table(root, whole):
    """Guards against a step that two processes do at once: each training has begun once."""
    both = [start(root, "both", "--parallel=2") for _ in range(2)]
    assert [process.wait(1800) for process in both] == [0, 0], (root / "both.log").read_text()[-3000:]
    assert table(root / "both") == whole
    logs = [path.read_text(errors="replace") for path in (root / "both" / "logs").iterdir()]
    assert len(logs) == 13 and all(text.count("$ ") == 1 for text in logs)
