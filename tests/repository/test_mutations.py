"""The planted mistakes of tests/mutations fit the source and name existing tests; and the command that plants them."""

import ast
import json
from functools import cache
from pathlib import Path

import mutate
import pytest
from mutate import ROOT, Mutation

MUTATIONS, TOPICS = mutate.load()


@cache
def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mistake_fits_the_source_and_names_its_test(mutation):
    """Guards against an outdated mistake or test name, which would test nothing."""
    text = (ROOT / mutation.file).read_text()
    planted = mutation.plant(text)
    assert ast.dump(ast.parse(planted)) != ast.dump(ast.parse(text)), "the mistake changes no code"
    file, _, test = mutation.test.partition("[")[0].partition("::")
    assert test.startswith("test_") and test in functions(ROOT / file), f"{file} has no test {test}"


def test_every_topic_is_covered_and_every_name_is_one():
    covered = {topic for mutation in MUTATIONS for topic in mutation.covers}
    assert covered == set(TOPICS)
    assert all(mutation.covers for mutation in MUTATIONS) and all(TOPICS.values())
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
    assert len({(m.file, m.old, m.new, m.test) for m in MUTATIONS}) == len(MUTATIONS)


def test_a_text_that_is_gone_or_there_twice_is_named():
    mutation = Mutation("one too many", ("padding",), "a.py", "n - 1", "n", "tests/test_a.py::test_a")
    assert mutation.plant("x = n - 1") == "x = n"
    for text, count in (("x = n", 0), ("n - 1, n - 1", 2)):
        with pytest.raises(ValueError, match=f"'one too many' .* occur once in a.py, but it occurs {count} times"):
            mutation.plant(text)


SOURCE = """\
def last(n):
    return n - 1


def first(n):
    return 0
"""
ENTRY = """
[[mutation]]
name = "{name}"
covers = ["ends"]
file = "package.py"
old = "{old}"
new = "{new}"
test = "tests/test_package.py::test_last"
"""


@pytest.fixture
def repository(tmp_path):
    """A source of two functions with a test of one, and three mistakes: detected, undetected, and invalid syntax."""
    root = tmp_path / "repository"
    (root / mutate.DATA).mkdir(parents=True)
    (root / ".gitignore").write_text("runs/\n")
    (root / "package.py").write_text(SOURCE)
    (root / "tests" / "test_package.py").write_text(
        "from package import last\n\n\ndef test_last():\n    assert last(3) == 2\n"
    )
    entries = {
        "last is n": ("n - 1", "n"),
        "first is 1": ("return 0", "return 1"),
        "no syntax": ("return 0", "return ("),
    }
    (root / mutate.DATA / "ends.toml").write_text(
        '[topics]\nends = "Where ranges begin and end."\n'
        + "".join(ENTRY.format(name=name, old=old, new=new) for name, (old, new) in entries.items())
    )
    return root


def outcomes(root: Path) -> dict[str, str]:
    lines = (root / "runs" / "mutations" / "log.jsonl").read_text().splitlines()
    return {line.get("name") or line["test"]: line["outcome"] for line in map(json.loads, lines)}


def test_the_command_prints_what_no_test_finds_and_resumes(repository, capsys, monkeypatch):
    """Only a failing test detects a mistake; a program that does not start is no detection."""
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    assert mutate.main(["--jobs=1"], repository) == 1
    printed = capsys.readouterr().out
    assert "not found: first is 1 (package.py): tests/test_package.py::test_last passed" in printed
    assert "not found: no syntax (package.py): tests/test_package.py::test_last pytest ended with" in printed
    assert "3 mistakes planted, 1 found by their tests." in printed and "last is n" not in printed
    assert outcomes(repository)["last is n"] == "failed" and outcomes(repository)["first is 1"] == "passed"
    assert {path: path.read_bytes() for path in before} == before
    monkeypatch.setattr(mutate.Runner, "_pytest", None)  # nothing is run again
    assert mutate.main(["--jobs=1", "--only=last"], repository) == 0


def test_the_command_refuses_what_shows_nothing(repository, capsys, monkeypatch):
    """A test that does not end, a mistake without its text, a test that fails without a mistake, an unknown name."""
    with monkeypatch.context() as patch:
        patch.setattr(mutate, "TIMEOUT", 0.0)
        assert mutate.main(["--jobs=1"], repository) == 2
    assert "do not pass without any mistake (no end within 0 s)" in capsys.readouterr().err
    (repository / "package.py").write_text(SOURCE.replace("n - 1", "n - 2"))
    assert mutate.main(["--jobs=1"], repository) == 2
    assert "'last is n' replaces a text that must occur once in package.py" in capsys.readouterr().err
    assert mutate.main(["--jobs=1", "--only=first"], repository) == 2
    assert "tests/test_package.py do not pass without any mistake (failed)" in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        mutate.main(["--only=nothing"], repository)
    assert error.value.code == 2 and "no mistake has 'nothing' in its name" in capsys.readouterr().err


def test_the_list_names_file_test_and_topics(repository, capsys):
    assert mutate.main(["--list", "--only=last"], repository) == 0
    assert capsys.readouterr().out == "last is n\n    package.py  tests/test_package.py::test_last  [ends]\n"
