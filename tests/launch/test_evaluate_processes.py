"""`retro evaluate` on several devices and in several processes, killed and stopped: one set, one answer."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from evaluation_fixture import build, save_runs
from places import ROOT
from processes import finish, free_port

from retro_jax.evaluate.scores import Scores

MESHES = {1: (1, 1, 1), 8: (2, 2, 2)}
SMALL_BLOCKS = """
import sys
from retro_jax.evaluate import blocks
blocks.block_ranges.__defaults__ = (300,)
from launch.evaluate import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes")
    build(root)
    save_runs(root, "baseline", "retro")
    return root


def start(root: Path, workdir: Path, devices: int = 1, processes: int = 1) -> list[subprocess.Popen]:
    """Evaluates the models of `root` into `workdir`, several blocks, `devices` in all."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(root / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    axes = zip(("data", "fsdp", "tensor"), MESHES[devices], strict=True)
    arguments = [f"--workdir={workdir}", f"--config={root}/config.py", f"--config.data.directory={root / 'data'}"]
    arguments += [f"--config.evaluate.retro={root / 'retro'}", f"--config.evaluate.baseline={root / 'baseline'}"]
    arguments += ["--config.evaluate.batch=8", *(f"--config.train.mesh.{axis}={size}" for axis, size in axes)]
    several = [f"--hosts=flags --coordinator=localhost:{free_port()} --processes={processes}".split()] * processes
    workdir.mkdir(exist_ok=True)
    running = []
    for process, flags in enumerate(several):
        command = [sys.executable, "-c", SMALL_BLOCKS, *arguments]
        command += [*flags, f"--process={process}"] if processes > 1 else []
        with open(workdir / f"log-{process}", "ab") as log:
            running.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT))
    return running


@pytest.fixture(scope="module")
def config(root):
    """A config file of the trained model: `retro evaluate` finds its own only beside a model."""
    text = (
        "from retro_jax.config import as_config_dict, resolve\nimport json, pathlib\n\n\ndef get_config(argument=''):\n"
    )
    path = root / "retro" / "config.json"
    text += f"    facts = json.loads(pathlib.Path({str(path)!r}).read_text())\n    facts.pop('sha256', None)\n"
    text += "    return as_config_dict(resolve(facts))\n"
    (root / "config.py").write_text(text)


@pytest.fixture(scope="module")
def alone(root, config):
    """An undisturbed evaluation on one device."""
    assert finish(start(root, root / "alone")) == [0], (root / "alone" / "log-0").read_text()[-3000:]
    return root / "alone"


def figures(workdir: Path) -> dict:
    found = json.loads((workdir / "results.json").read_text())["sets"]["held_out"]
    return {subset: one["bpb"] for subset, one in [*found["subsets"].items(), ("all", found["all"])]}


def bits(workdir: Path) -> dict:
    """Bits of every document by condition, and what was read of them."""
    found = {}
    for folder in sorted((workdir / "scores" / "held_out").iterdir()):
        parts = Scores(folder, len(list(folder.glob("part-*.parquet"))))
        name = "id" if folder.name.startswith("text-") else "bits"
        found[folder.name] = np.concatenate([part[name] for part in parts.each((name,))])
    return found


def parts(workdir: Path) -> int:
    return len(list((workdir / "scores").rglob("part-*.parquet"))) if (workdir / "scores").exists() else 0


def close(one: dict, other: dict) -> None:
    for subset, by_condition in one.items():
        for condition, value in by_condition.items():
            assert abs(other[subset][condition] - value) < 1e-6 * value, (subset, condition)


def test_eight_devices_and_two_processes_give_the_same_figures(root, alone):
    """Mesh (2, 2, 2). Sums are taken in another order there, so figures agree to rounding."""
    for name, processes in (("eight", 1), ("two", 2)):
        workdir = root / name
        codes = finish(start(root, workdir, devices=8, processes=processes))
        assert codes == [0] * processes, [(workdir / f"log-{n}").read_text()[-2000:] for n in range(processes)]
        close(figures(alone), figures(workdir))
    one, other = bits(root / "eight"), bits(root / "two")
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one), "processes change no bit"


def killed(root: Path, workdir: Path, kills: int, number: int, devices: int = 1, seed: int = 0) -> list[int]:
    """Starts, ends with the signal when some more parts are written, and again; the exit codes, that of the last run too."""
    codes, draw = [], random.Random(seed)
    for _ in range(kills):
        running, wanted = start(root, workdir, devices), parts(workdir) + draw.randint(0, 6)
        while parts(workdir) < wanted and running[0].poll() is None:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.05)
        running[0].send_signal(number)
        codes += finish(running)
    return codes + finish(start(root, workdir, devices))


def test_an_evaluation_that_is_killed_goes_on_to_the_same_bits(root, alone):
    codes = killed(root, root / "killed", 2, signal.SIGKILL)
    assert codes[-1] == 0 and -signal.SIGKILL in codes
    assert figures(root / "killed") == figures(alone)
    one, other = bits(root / "killed"), bits(alone)
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_an_evaluation_that_is_stopped_says_so_and_goes_on(root, alone):
    codes = killed(root, root / "stopped", 1, signal.SIGTERM)
    assert codes == [75, 0], (root / "stopped" / "log-0").read_text()[-3000:]
    assert "Run the same `retro evaluate` again" in (root / "stopped" / "log-0").read_text()
    assert figures(root / "stopped") == figures(alone)


@pytest.mark.slow
def test_ten_kills_on_eight_devices(root, alone):
    codes = killed(root, root / "ten", 10, signal.SIGKILL, devices=8, seed=1)
    assert codes[-1] == 0
    assert finish(start(root, root / "undisturbed", devices=8)) == [0]
    one, other = bits(root / "ten"), bits(root / "undisturbed")
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    assert figures(root / "ten") == figures(root / "undisturbed")
