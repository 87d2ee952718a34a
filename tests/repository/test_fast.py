"""`make test-fast`: what it leaves out exists, and what is not listed runs."""

import ast
import json
import subprocess
import sys

import cpu_seconds
from places import ROOT


def functions(path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_slow_test_exists():
    """A test that was renamed would run in `make test-fast` unseen."""
    listed = sorted(cpu_seconds.slow_tests())
    assert listed and len(set(listed)) == len(listed)
    files = {entry.partition("::")[0] for entry in listed}
    present = {f"{file}::{name}" for file in files if (ROOT / file).exists() for name in functions(ROOT / file)}
    missing = [entry for entry in listed if entry not in present]
    assert missing == [], f"tests/slow_tests.txt names tests that do not exist; rename or remove them: {missing}"


def test_the_slowest_run_of_a_function_counts(tmp_path, monkeypatch, capsys):
    measured = [["a.py::f[x::y[1]]", 0.1], ["a.py::f[2]", 3.0], ["a.py::g", 0.1], ["b.py::h", 0.26]]
    (tmp_path / "one").write_text("".join(json.dumps(line) + "\n" for line in measured[:2]))
    (tmp_path / "two").write_text("".join(json.dumps(line) + "\n" for line in measured[2:]))
    monkeypatch.setattr(cpu_seconds, "SLOW", tmp_path / "slow.txt")
    cpu_seconds.main([str(tmp_path / "one"), str(tmp_path / "two")])
    assert cpu_seconds.slow_tests() == {"a.py::f", "b.py::h"}
    assert "2 of 3 functions" in capsys.readouterr().out


def test_fast_leaves_out_the_listed_tests_alone():
    file = "tests/repository/test_compilation_cache.py"
    words = [sys.executable, "-m", "pytest", "-o", "addopts=", "--collect-only", "-q", "--fast", file]
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"{file}::test_the_cache_of_a_caller_stays" in shown
    assert "test_a_loaded_program_gives_the_bits_of_a_compiled_one" not in shown and "1 deselected" in shown
