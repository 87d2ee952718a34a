"""The public names of `retro_jax` and `data_pipeline` exist, are documented, and are imported when used."""

import importlib
import inspect
import subprocess
import sys

import pytest
from places import ROOT

PACKAGES = [
    ".".join(path.parent.relative_to(ROOT).parts)
    for top in ("retro_jax", "data_pipeline", "launch")
    for path in sorted((ROOT / top).rglob("__init__.py"))
]
# What people may build on.
PROMISED = {
    "retro_jax": ["RunConfig", "presets", "models", "train", "evaluate", "generate"],
    "retro_jax.models": ["Retro", "initialize", "token_nll"],
    "retro_jax.train": ["train", "load"],
    "retro_jax.evaluate": ["evaluate", "compare", "Condition", "Metric", "Protocol"],
    "retro_jax.generate": ["sample"],
    "data_pipeline": ["build", "Database", "Retriever", "Tokenizer", "FrozenEncoder"],
}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_says_what_it_is_for_and_its_public_names_are_documented(package):
    module = importlib.import_module(package)
    assert module.__doc__ and len(module.__doc__.split()) > 12, f"{package}/__init__.py says nothing"
    for name in PROMISED.get(package, []):
        assert name in module.__all__, f"{package}.{name} is promised"
    for name in getattr(module, "__all__", []):
        found = getattr(module, name)
        assert inspect.getdoc(found), f"{package}.{name} has no docstring"
        assert name in dir(module)


def test_a_public_function_is_no_module_of_its_name():
    """Importing a module of that name would put it in the function's place."""
    for package, names in PROMISED.items():
        folder = ROOT / package.replace(".", "/")
        shadowed = [name for name in names if name[0].islower() and (folder / f"{name}.py").exists()]
        assert not shadowed, package


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="retro_jax.models has no public name 'retrro'; it has: .*Retro"):
        importlib.import_module("retro_jax.models").retrro  # noqa: B018


def test_importing_a_package_imports_no_jax():
    program = "import sys, retro_jax, data_pipeline; assert not {'jax', 'numpy', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
