"""The page of `make benchmark` says what the machine can do and whether it was idle."""

import json
import sys

import pytest
from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks" / "performance"))

import machine
import report

FACTS = {
    "processor": "a processor",
    "units": {"AVX2": True, "AVX-512": True, "AVX-512 BF16": False, "AMX": False},
    "cpus": 2,
    "memory_gib": 8.0,
}
SECONDS = {"median": 2.0, "min": 1.5}


def test_this_machine_is_described():
    found = machine.machine()
    assert list(found["units"]) == ["AVX2", "AVX-512", "AVX-512 BF16", "AMX"] and found["cpus"] >= 1
    assert "AMX" in machine.describe(found)
    assert machine.describe(FACTS).startswith("2 CPUs (a processor; AVX2 yes, AVX-512 yes, AVX-512 BF16 no, AMX no)")


@pytest.mark.parametrize(("spent", "idle"), [(0.0, True), (1.0, False)])
def test_a_busy_machine_is_logged_and_recorded(monkeypatch, capsys, spent, idle):
    """Guards against figures of a busy machine that look like those of an idle one."""
    seconds = iter([100.0, 100.0 + spent * 0.01 * machine.os.cpu_count()])
    monkeypatch.setattr(machine, "_seconds_of_work", lambda: next(seconds))
    found = machine.state("the step", seconds=0.01)
    assert found["idle"] is idle and found["load"] >= 0
    assert ("the step: the machine is not idle: load average" in capsys.readouterr().err) is not idle
    assert machine.describe_state(found).startswith("idle" if idle else "**not idle** (load average")


def test_work_of_another_process_counts():
    before = machine._seconds_of_work()
    sum(range(3_000_000))
    assert machine._seconds_of_work() >= before > 0


def test_the_page_has_each_size_of_the_embedding_with_its_state(tmp_path):
    states = {"512": {"load": 0.2, "busy": 0.01, "idle": True}, "8192": {"load": 4.0, "busy": 0.9, "idle": False}}
    sizes = {
        count: {
            "state": state,
            "chunks": int(count),
            "pieces_a_chunk": 45.0,
            "padding": 0.11,
            "sides": {"jax float32": {"chunks_a_second": {"median": 90.0}, "seconds": SECONDS, "gflops": 120.0}},
            "ratios": {"jax float32 / torch float32": {"median": 1.05}},
            "cosines": {},
            "load_before_turns": [0.2],
        }
        for count, state in states.items()
    }
    result = {"date": "2026-11-27", "machine": FACTS, "threads": 2, "allocator": "default", "sizes": sizes}
    (tmp_path / "embedding.json").write_text(json.dumps(result))
    report.main(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "Measured on 2 CPUs (a processor; AVX2 yes" in page and "our padding adds 11%" in page
    small, large = page.split("### ")[1:]
    assert small.startswith("512 chunks") and "idle (load average 0.2 before)" in small
    assert large.startswith("8,192 chunks") and "**not idle** (load average 4.0 before, others took 90% of it)" in large
