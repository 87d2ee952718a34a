"""The only package whose code runs: a made-up generator of the same shape, with names that libraries have moved."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_packages import wheel

from data_pipeline.packages import catalogue as packages
from data_pipeline.packages import mathematics
from data_pipeline.sources.readers import read_source
from data_pipeline.stages.run import StageError, file_sha256
from retro_jax.config import SourceConfig

FILES = {
    "sympy/__init__.py": "",
    "sympy/core/__init__.py": "",
    "sympy/core/random.py": "import random as r; own = r.Random(); seed = own.seed",
    "sympy/solvers/__init__.py": "",
    "sympy/solvers/diophantine/__init__.py": "",
    "sympy/solvers/diophantine/diophantine.py": "def base_solution_linear(): return 'solved'",
    "mathematics_dataset/__init__.py": "",
    "mathematics_dataset/sample/__init__.py": "",
    "mathematics_dataset/sample/polynomials.py": """
import numpy as np
def coefficients():
    array, grid = np.empty(3, dtype=np.object), np.zeros(np.asarray([2, 2]), dtype=np.int64)
    array.itemset(1, "x" * 2)
    grid.itemset((1, 0), 1)
    return array[grid[1, 0]]
""",
    "mathematics_dataset/util/__init__.py": "",
    "mathematics_dataset/util/composition.py": "class Entity: pass",
    "mathematics_dataset/generate.py": """
import collections, random
from sympy.core.random import own
from sympy.solvers.diophantine import base_solution_linear
from mathematics_dataset.sample import polynomials
from mathematics_dataset.util import composition
Problem = collections.namedtuple("Problem", "question answer")
filtered_modules = {}
def init_modules():
    filtered_modules["train"] = {"b": solve, "a": order}
def solve():
    return Problem(f"{base_solution_linear()} {polynomials.coefficients()}?", random.randint(1.0, 9.0) + own.random())
def order():
    pair = [composition.Entity() for _ in range(20)]
    kept = [bytearray(1 << 16) for _ in range(id(pair) // 64 % 7)]  # addresses differ between runs
    return Problem("order?", [pair.index(entity) for entity in set(pair)])
def sample_from_module(module):
    return module(), 0
""",
}


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setenv("RETRO_DOWNLOADS", str(tmp_path))
    path = wheel(tmp_path, FILES)
    one = packages.Package("made-up", "1.0", path.name, file_sha256(path), "CC0")
    monkeypatch.setattr(packages, "GENERATOR", (one,))
    monkeypatch.setattr(packages, "GENERATED_DOCUMENTS", 2)
    return tmp_path


def test_the_text_is_generated_once_and_checked(made, monkeypatch):
    entry = packages.CATALOGUE["dm_mathematics"]
    with pytest.raises(StageError, match="its generator made another text here, with sha256 ([0-9a-f]{64})") as caught:
        packages.fetch(entry)
    assert sorted(path.name for path in made.iterdir()) == ["made.whl"], "another text does not stay"
    sha256 = str(caught.value).partition("with sha256 ")[2][:64]
    changes = {"file": entry.file, "sha256": sha256, "client": "generator"}
    monkeypatch.setitem(packages.CATALOGUE, "dm_mathematics", packages.Package("m", "1", license="CC0", **changes))
    first, second = read_source("math", SourceConfig(package="dm_mathematics"))
    assert (first.name, second.name, first.license) == ("00000", "00001", "CC0")
    lines = first.text.splitlines()
    assert len(lines) == 50 and lines[0] == "order?" and lines[2] == "solved xx?" and 1 <= float(lines[3]) < 10
    assert json.loads(lines[1]) == list(range(20)), "sets are in the order their members were made"
    (made / "made.whl").unlink()
    assert len(list(read_source("math", SourceConfig(package="dm_mathematics")))) == 2, "the cache needs no generator"


def test_a_generator_that_fails_is_said(made, monkeypatch):
    path = wheel(made, {**FILES, "mathematics_dataset/generate.py": "raise RuntimeError('broken')"})
    one = packages.Package("made-up", "1.0", path.name, file_sha256(path), "CC0")
    monkeypatch.setattr(packages, "GENERATOR", (one,))
    with pytest.raises(StageError, match=r"its generator failed \(RuntimeError: broken\)"):
        packages.fetch(packages.CATALOGUE["dm_mathematics"])


@pytest.mark.skipif(
    not all(packages.is_fetched(wheel) for wheel in packages.GENERATOR),
    reason="the wheels of the generator are not here",
)
def test_the_real_generator_makes_the_pinned_text(tmp_path):
    """The first documents of the file whose checksum is in the catalogue; the rest follows from the same random states."""
    wheels = [str(packages.fetch(wheel).resolve()) for wheel in packages.GENERATOR]
    command = [sys.executable, "-P", str(Path(mathematics.__file__)), str(tmp_path / "text"), "2", *wheels]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "0"}, capture_output=True)
    content = (tmp_path / "text").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "f0d06ae04d6b7c72a9531f9ea752bdef3bc8b64162ea9f612922a33be4a5a3bc"
