"""Imports go one way: launch -> data_pipeline -> retro_jax, without circles; retro_jax needs no build extra."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from places import ROOT

ORDER = ("retro_jax", "data_pipeline", "launch")  # each may import those before it
# What only the build extra brings: the packages that read text, embed and search.
BUILD_ALONE = (
    "scann",
    "sentencepiece",
    "tokenizers",
    "safetensors",
    "pypi-simple",
    "zstandard",
    "datasketch",
)


def modules() -> dict[str, Path]:
    """Every module of the three packages by its dotted name; a package goes by its folder's."""
    found = {}
    for top in ORDER:
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path, *, everywhere: bool) -> dict[str, int]:
    """Dotted names that a file imports, with the line; everywhere: in functions too."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), {}
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= dict.fromkeys((alias.name for alias in node.names), node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import hides where it leads"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module: node.lineno for name in names}
    return found


@pytest.mark.parametrize("top", ORDER)
def test_no_import_goes_up(top):
    """Neither retro_jax nor data_pipeline imports from above, in functions either."""
    above = ORDER[ORDER.index(top) + 1 :]
    upward = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for module, path in MODULES.items()
        if module.partition(".")[0] == top
        for name, line in imports(path, everywhere=True).items()
        if name.partition(".")[0] in above
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle():
    edges = {
        module: [name for name in imports(path, everywhere=True) if name in MODULES and name != module]
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for other in edges[module]:
                visit(other, [*way, module])
            done.add(module)

    for module in MODULES:
        visit(module, [])


def test_retro_jax_imports_without_the_build_extra(tmp_path):
    """Each module is imported in an environment with every installed package except those of the extra."""
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["build"]
    named = {re.match(r"[A-Za-z0-9_-]+", line)[0].lower() for line in extra}
    assert named >= set(BUILD_ALONE)
    environment = tmp_path / "site-packages"
    environment.mkdir()
    left_out = set()
    for found in distributions():
        name = re.sub(r"[_.]+", "-", found.metadata["Name"]).lower()
        for file in found.files or []:
            top = Path(file).parts[0]
            place = Path(found.locate_file(top))
            if name in BUILD_ALONE:
                left_out.add(name)
            elif top not in ("..", "__pycache__") and place.exists() and not (environment / top).exists():
                (environment / top).symlink_to(place)
    assert left_out == set(BUILD_ALONE)
    names = [name for name in MODULES if name.partition(".")[0] == "retro_jax"]
    program = (
        f"import sys; sys.path[:] = [{str(ROOT)!r}, {str(environment)!r}, *sys.path]\n"
        "import importlib\n"
        f"for name in {names}:\n    importlib.import_module(name)\n"
        f"missing = [name for name in {[name.replace('-', '_') for name in BUILD_ALONE]} if name in sys.modules]\n"
        "assert not missing, missing\n"
        "import importlib.util\nassert importlib.util.find_spec('sentencepiece') is None, 'the environment holds the extra'\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_test_files_have_different_names():
    """Guards against two files of one name, of which pytest can import only the first when the suite runs as a whole."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
