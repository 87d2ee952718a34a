"""Packaging rules: the lock, the extras, one import site for each churning library, plain text."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from places import ROOT

SOURCES = ("retro_jax", "data_pipeline", "launch")
BUILD_EXTRA = ("scann", "sentencepiece", "tokenizers", "safetensors", "pypi_simple", "zstandard", "datasketch")
# A library whose interface churns is imported in one file only (or in those named), so that its next change touches one place.
IMPORT_SITES = {
    "orbax": ("retro_jax/run_directory/checkpoints.py", "retro_jax/run_directory/keeping.py"),
    "grain": "retro_jax/data/batches.py",
    "scann": "data_pipeline/search/scann.py",
    "jax.sharding": "retro_jax/parallel/sharding.py",
    "jax.make_mesh": "retro_jax/parallel/sharding.py",
    "jax.experimental.pallas": (
        "retro_jax/models/kernels/flash/tiles.py",
        "retro_jax/models/kernels/flash_gpu/tiles.py",
    ),
    # The schema and reading of ours, reading of others', writing of ours.
    "tensorflow_datasets": (
        "retro_jax/data/joined.py",
        "data_pipeline/formats/tfds_text.py",
        "data_pipeline/joined.py",
    ),
    "array_record": ("data_pipeline/formats/tfds_text.py", "data_pipeline/joined.py"),
    "sentencepiece": "data_pipeline/tokens.py",
    "wandb": "retro_jax/train/wandb.py",
    "tokenizers": ("data_pipeline/tokenizers_library.py",),
    "safetensors": "retro_jax/interchange/safetensors_files.py",
    "gguf": "retro_jax/interchange/gguf_files.py",
    "pypi_simple": "data_pipeline/packages/catalogue.py",
    "pyarrow": (
        "retro_jax/evaluate/scores.py",
        "data_pipeline/formats/records.py",
    ),  # reading of others', tables of ours
    "fsspec": "data_pipeline/formats/files.py",
    "datasketch": "data_pipeline/documents/near_duplicates.py",
    "ray": "data_pipeline/stages/ray.py",
    "matplotlib": "retro_jax/evaluate/report/figures/svg.py",
    "jinja2": "retro_jax/evaluate/report/templates/__init__.py",
    # The command line, and the model.
    "lm_eval": ("launch/harness/__main__.py", "launch/harness/model.py"),
}
TEXT = (".py", ".md", ".toml", ".txt", ".lock", ".json", ".jsonl", ".cfg", ".ini", ".yml", ".yaml", ".html", ".sh", "")


def text_files() -> list[Path]:
    """The repository's text files, without results, downloads and environments."""
    skipped = ("runs", "build", "downloads")
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name not in skipped]
    own = [path for path in folders if path.name == ".ci" or not (path.name[0] == "." or path.suffix == ".egg-info")]
    paths = [*ROOT.iterdir(), *(path for folder in own for path in folder.rglob("*"))]
    return [path for path in paths if path.is_file() and path.suffix in TEXT and "__pycache__" not in path.parts]


def offenses(pattern: str, paths: list[Path]) -> list[str]:
    found = re.compile(pattern)
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if found.search(line)
    ]


@cache
def names_used(path: Path) -> set[str]:
    """Dotted names that a file imports or reaches through jax: `from jax import sharding` or `jax.sharding.Mesh`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jax":
            names.add(f"jax.{node.attr}")
    return names


def source_files() -> list[Path]:
    return [path for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))]


def lock_entries() -> dict[str, str]:
    """name==version -> the whole entry with its markers and hashes."""
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text().strip())
    return {entry.split()[0]: entry for entry in entries if not entry.startswith("#")}


def test_the_lock_has_hashes_for_every_entry_and_no_address():
    entries = lock_entries()
    assert len(entries) > 40
    assert [name for name in entries if not re.fullmatch(r"[a-z0-9._-]+==[A-Za-z0-9.+!]+", name)] == []
    assert [name for name, entry in entries.items() if "--hash=sha256:" not in entry] == []
    assert offenses(r"://|--index-url|--find-links|\bfile:| @ ", [ROOT / "requirements.lock"]) == []


def test_markers_pair_jax_with_the_flax_that_works_with_it():
    """jax 0.11 dropped Python 3.11, and jax >= 0.11.1 breaks flax <= 0.12.8: each side of 3.12 has its own pair."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {}
    for line in project["dependencies"]:
        if found := re.fullmatch(r"(jax|flax)==([0-9.]+); python_version ([<>=]+ '3\.12')", line):
            name, version, marker = found.groups()
            pinned.setdefault(marker, {})[name] = tuple(map(int, version.split(".")))
    assert set(pinned) == {"< '3.12'", ">= '3.12'"}
    assert pinned["< '3.12'"]["jax"] < (0, 11)
    for pair in pinned.values():
        assert set(pair) == {"jax", "flax"}
        assert pair["jax"] < (0, 11, 1) or pair["flax"] > (0, 12, 8)
    entries = lock_entries()
    for marker, pair in pinned.items():
        locked = "python_full_version " + marker
        for name, version in pair.items():
            assert locked in entries[f"{name}=={'.'.join(map(str, version))}"]


def test_the_training_install_has_nothing_of_the_build_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[A-Za-z0-9_-]+", line)[0].replace("-", "_").lower() for line in project["dependencies"]}
    assert names.isdisjoint(BUILD_EXTRA)


def test_training_and_evaluation_import_nothing_of_the_build_extra():
    """Runs in a process where those imports fail, as on a machine without them."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in [*sorted((ROOT / "retro_jax").rglob("*.py")), ROOT / "launch/train.py", ROOT / "launch/evaluate.py"]
        if path.name != "__init__.py"
    ]
    program = f"""
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BUILD_EXTRA!r}:
            raise ImportError(f"{{name}} belongs to the build extra, which a training install does not have")

sys.meta_path.insert(0, Blocker())
for module in {modules!r}:
    importlib.import_module(module)
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_wheel_has_the_files_that_the_library_reads():
    """Files beside the modules are declared as package data; an undeclared template would be missing in a wheel alone."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    matched = {
        path
        for package, patterns in declared.items()
        for p in patterns
        for path in (ROOT / package.replace(".", "/")).glob(p)
    }
    files = [path for top in SOURCES for path in (ROOT / top).rglob("*") if path.is_file()]
    beside = {path for path in files if path.suffix not in (".py", ".pyc")}
    assert beside and beside == matched
    assert [path for path in beside if not (path.parent / "__init__.py").exists()] == []


@pytest.mark.parametrize("library", IMPORT_SITES)
def test_a_churning_library_is_imported_in_one_file(library):
    sites = [
        str(path.relative_to(ROOT))
        for path in source_files()
        if any(name == library or name.startswith(library + ".") for name in names_used(path))
    ]
    allowed = IMPORT_SITES[library]
    assert sites == ([allowed] if isinstance(allowed, str) else list(allowed))


def test_no_file_names_a_machine_path_or_a_registry_host():
    # Written in pieces, for this file is looked at too.
    paths = r"/(work|root|tmp/w)\b" + r"|/home/[a-z]"
    hosts = "|".join(
        name + r"\.(org|com|io|dev)" for name in ("py" + "pi", "python" + "hosted", "npm" + "js", "docker")
    )
    assert offenses(paths, text_files()) == []
    assert offenses(hosts + r"|registry\.", text_files()) == []
