"""An installation without a checkout: the wheel holds every module and script, and trains; run by `make test-wheel`.

pip fetches setuptools to build the wheel. The other packages are those of this environment: a .pth file names its folders,
and the files in them that would add the checkout to the path are not read.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from places import ROOT
from training_fixture import build_data

pytestmark = pytest.mark.wheel
PACKAGES = ("retro_jax", "data_pipeline", "launch")
CONFIG = """\
from retro_jax.config import default_config


def get_config(argument: str = ""):
    config = default_config()
    config.model.update(vocabulary=64, sequence_length=16, chunk_length=4, layers=1, width=16, heads=2, head_dim=8)
    config.model.update(feed_forward=32, retrieval_layers=(1,), neighbors=2, compute_dtype="float32", remat="none")
    config.model.encoder.update(layers=1, width=16, heads=2, head_dim=8, feed_forward=32)
    config.train.update(steps=1, batch=8, warmup_steps=0, checkpoint_every=1, retrieval_check_every=0)
    return config
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: what an earlier build left in the checkout cannot slip in."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-deps", "--wheel-dir", built, source)
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """An environment that holds the wheel, and finds the other packages in this one."""
    directory = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    pip("--python", directory, "install", "--no-deps", "--no-index", wheel)
    (packages,) = directory.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "shared.pth").write_text("\n".join(shared) + "\n")
    return directory


def pip(*words) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def run(program, *words, cwd: Path, **variables: str) -> str:
    """What a program prints that knows nothing of the checkout."""
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(program), *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=known | variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    """A script or a template that pyproject.toml's package data leaves out is missing for everybody but us."""
    expected = {
        str(path.relative_to(ROOT))
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_the_packages_come_from_the_wheel_alone(environment, tmp_path):
    program = (
        "import sys, retro_jax, data_pipeline, launch; print(*sys.path, retro_jax, data_pipeline, launch, sep='\\n')"
    )
    *path, library, pipeline, commands = run(environment / "bin/python", "-c", program, cwd=tmp_path).splitlines()
    assert not [one for one in path if one and Path(one).resolve() == ROOT]
    for found in (library, pipeline, commands):
        assert f"from '{environment}" in found


def test_retro_shows_its_help(environment, tmp_path):
    shown = run(environment / "bin/retro", "--help", cwd=tmp_path)
    assert {"build", "database", "train"} <= set(re.findall(r"^  (\w+) ", shown, flags=re.M))
    for verb in ("build", "train", "evaluate", "sample", "preflight"):
        assert f"retro {verb}" in run(environment / "bin/retro", verb, "--help", cwd=tmp_path)


def test_a_training_step(environment, tmp_path):
    build_data(tmp_path / "run/data")
    (tmp_path / "tiny.py").write_text(CONFIG)
    words = ["--config=tiny.py", "--workdir=run", "--config.data.directory=run/data"]
    run(environment / "bin/retro", "train", *words, cwd=tmp_path)
    assert (tmp_path / "run/checkpoints/1").is_dir()
    assert '"step": 1' in (tmp_path / "run/metrics.jsonl").read_text()


@pytest.mark.parametrize(("script", "flags"), [("slurm", ["--nodes=2"]), ("gpu_box", [])])
def test_the_scripts_for_hosts_run_from_the_wheel(environment, script, flags, tmp_path):
    (path,) = environment.glob(f"lib/python*/site-packages/launch/hosts/{script}.sh")
    words = ["start", "--dry-run", "--config=tiny.py", "--workdir=run", *flags]
    shown = run(path, *words, cwd=tmp_path, RETRO=str(environment / "bin/retro"))
    assert f"{environment}/bin/retro train --workdir=run --config=tiny.py" in shown
