"""docs/tutorial.ipynb: its cells run, retrieval helps in it, and it uses nothing but public names."""

import ast
import importlib
import json
import os
import subprocess
import sys
from types import ModuleType

import made_up_encoder
import pytest
from places import ROOT

PATH = ROOT / "docs" / "tutorial.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
PACKAGES = ("retro_jax", "data_pipeline")
OTHERS = sys.stdlib_module_names | {"jax", "numpy"}
# Runs the cells in one namespace, as a notebook does. What follows "parameters" is ours: where to write, which encoder.
PROGRAM = """
import json, pathlib, sys

work, encoder, answer = map(pathlib.Path, sys.argv[1:])
namespace = {"__name__": "__main__"}
for number, (tags, source) in enumerate(json.load(sys.stdin)):
    exec(compile(source, f"tutorial.ipynb, code cell {number}", "exec"), namespace)
    if "parameters" in tags:
        assert {"work", "encoder"} <= set(namespace)
        namespace.update(work=work, encoder=str(encoder))
answer.write_text(json.dumps([namespace["bits_per_byte"], namespace["drawn"].continuation, namespace["step"]]))
"""


def source(cell) -> str:
    return "".join(cell["source"])


def test_the_cells_run_and_retrieval_helps(tmp_path):
    made_up_encoder.write(tmp_path / "encoder")
    (tmp_path / "work").mkdir()
    cells = [(cell["metadata"].get("tags", []), source(cell)) for cell in CELLS]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, tmp_path / "work", tmp_path / "encoder", tmp_path / "answer"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input=json.dumps(cells),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    bits, continuation, step = json.loads((tmp_path / "answer").read_text())
    assert bits["on"] < bits["off"] - 0.05 and bits["on"] < bits["random"] - 0.05, bits
    assert "pence" in continuation and step == 200
    print(done.stdout)


def public(module: ModuleType, name: str) -> bool:
    return name in getattr(module, "__all__", ())


def private_names(cell: str, packages: dict[str, ModuleType]) -> list[str]:
    """What a cell reaches that is no public name. `packages`: our packages by the names they were imported under."""
    found = []
    for node in ast.walk(ast.parse(cell)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in PACKAGES:
                    packages[alias.asname or alias.name] = importlib.import_module(alias.name)
                elif alias.name.partition(".")[0] not in OTHERS:
                    found.append(alias.name)
        elif isinstance(node, ast.ImportFrom):
            if node.module.partition(".")[0] in PACKAGES:
                module = importlib.import_module(node.module)
                found += [f"{node.module}.{alias.name}" for alias in node.names if not public(module, alias.name)]
            elif node.module.partition(".")[0] not in OTHERS:
                found.append(node.module)
        elif isinstance(node, ast.Attribute):
            names = ast.unparse(node).split(".")
            here = packages.get(names[0])
            for name in names[1:]:
                if isinstance(here, ModuleType) and not public(here, name):
                    found.append(ast.unparse(node))
                    break
                here = getattr(here, name, None)
            if node.attr.startswith("_"):
                found.append(ast.unparse(node))
    return found


def test_only_public_names_are_used():
    packages: dict[str, ModuleType] = {}
    assert [name for cell in CELLS for name in private_names(source(cell), packages)] == []
    assert set(packages) == {"rx", "data_pipeline"}


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        ("rx.evaluate.scoring.score_set", "rx.evaluate.scoring"),
        ("from retro_jax.models.retro import params_of", "retro_jax.models.retro.params_of"),
        ("import retro_jax.models.retro", "retro_jax.models.retro"),
        ("database._open()", "database._open"),
        ("import matplotlib", "matplotlib"),
    ],
)
def test_a_private_name_is_found(mistake, named):
    assert named in private_names(mistake, {"rx": importlib.import_module("retro_jax")})


def test_it_is_stored_without_output():
    """Outputs go stale and swell the history; the test above shows that the cells run."""
    assert NOTEBOOK["nbformat"] == 4 and len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    assert [cell["id"] for cell in CELLS if cell["outputs"] or cell["execution_count"] is not None] == []
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in CELLS) == 1
