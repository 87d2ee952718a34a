"""A sweep on a Ray cluster of several nodes, one of them killed, has the table of one on this machine."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from test_ray_engine import Nodes
from test_sweep_kills import begun, environment, root, start, table, whole  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def nodes(root):  # noqa: F811
    """Three nodes with the environment of a sweep on this machine: the number of virtual devices changes the last digits."""
    pytest.importorskip("ray", reason="make test-ray installs it")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(root).items():
            patch.setenv(name, value)
        found = Nodes(3)
        yield found
        found.cluster.shutdown()


def below(pid: int) -> list[int]:
    """The processes that descend from one, itself included."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(one := waiting.pop())
        waiting += children.get(one, [])
    return found


def raylet(node) -> int:
    (process,) = node.all_processes["raylet"]
    return process.process.pid


@pytest.mark.parametrize("whole_machine", [False, True], ids=["node", "machine"])
def test_a_killed_node_changes_nothing(root, whole, nodes, whole_machine):  # noqa: F811
    """Guards against a step that is lost with its node. Of a lost machine the step's process is gone too; else it runs on, and the
    step that Ray starts again waits for it."""
    name = f"ray-{whole_machine}"
    process = start(root, name, "--engine=ray", f"--address={nodes.address}")
    work, killed = root / name, threading.Event()
    end = time.monotonic() + 900
    while not killed.is_set() and time.monotonic() < end:
        assert process.poll() is None, (root / f"{name}.log").read_text()[-3000:]
        for node in [one for one in nodes.workers if begun(work, "train-")]:
            running = [pid for pid in below(raylet(node)) if _trains(pid)]
            if running:
                for pid in below(raylet(node)) if whole_machine else [raylet(node)]:
                    os.kill(pid, signal.SIGKILL)
                nodes.workers.remove(node)
                nodes.workers.append(nodes.add())
                killed.set()
                break
        time.sleep(0.1)
    assert killed.is_set()
    assert process.wait(1800) == 0, (root / f"{name}.log").read_text()[-3000:]
    assert table(work) == whole
    logs = {path.name: path.read_text(errors="replace") for path in (work / "logs").iterdir()}
    again = [name for name, text in logs.items() if text.count("$ ") == 2]
    assert again or not whole_machine, "the step of the lost machine was not started again"


def _trains(pid: int) -> bool:
    try:
        return b"launch.train" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_an_address_where_nothing_answers_starts_nothing(root):  # noqa: F811
    shutil.rmtree(root / "nowhere", ignore_errors=True)
    assert start(root, "nowhere", "--engine=ray", "--address=127.0.0.1:1").wait(120) == 2
    assert "No Ray cluster answers at --address=127.0.0.1:1" in (root / "nowhere.log").read_text()
    assert not (root / "nowhere" / "logs").exists()
