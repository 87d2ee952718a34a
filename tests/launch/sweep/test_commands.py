"""Launch commands of a sweep: one a training for each script of launch/hosts, and a SLURM array with a task a point."""

import os
import re
import shlex
import subprocess

import pytest
from launch_fixture import SCRIPTS, program
from places import ROOT

from launch.sweep.verb import LAUNCHERS, main

CONFIG = "--config=configs/quickstart.py:smoke"
FLAGS = {
    "gpu_box": "",
    "slurm": "--nodes=2 --time=01:00:00",
    "gke": "--image=IMAGE --topology=v5p:2x2x1",
    "tpu_vm": "--zone=us-east5-a --topology=v5p:2x2x1",
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def written(launcher, workdir, capsys):
    argv = [CONFIG, f"--workdir={workdir}", "--grid=model.neighbors=1,2", f"--launcher={launcher}"]
    there = ["--launcher_workdir=gs://bucket/s"] if launcher == "gke" else []
    assert main([*argv, f"--launcher_flags={FLAGS[launcher]}", *there]) == 0
    return capsys.readouterr().out.split()


def commands(path):
    lines = path.read_text().splitlines()
    return [shlex.split(line) for line in lines if not line.startswith(("#", "set ", "cd "))]


def test_every_script_is_a_launcher():
    assert set(LAUNCHERS) == set(SCRIPTS)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_each_training_is_one_command_that_its_script_takes(launcher, tmp_path, capsys):
    """The scripts themselves read the commands, with --dry-run; nothing but the commands is written."""
    workdir = tmp_path / "s"
    paths = written(launcher, workdir, capsys)
    assert f"{workdir}/commands/{launcher}.sh" in paths and not (workdir / "runs").exists()
    build, *starts, again = commands(workdir / "commands" / f"{launcher}.sh")
    assert build[1:3] == ["-m", "launch.build"] and again[1:4] == ["-m", "launch", "sweep"]
    assert not [word for word in again if "launcher" in word] and len(starts) == 3
    retro = program(tmp_path / "retro", "#!/bin/sh\necho '{}'\n")
    for words in starts:
        done = subprocess.run(
            [*words, "--dry-run"], env=os.environ | {"RETRO": str(retro)}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert re.search(r"--workdir=\S*/runs/[0-9a-f]{16}", " ".join(words))
        place = "gs://bucket/s" if launcher == "gke" else workdir
        assert any(word.startswith(f"--config.data.directory={place}/data/") for word in words)


def test_a_slurm_array_has_a_task_for_each_point(tmp_path, capsys):
    """`retro` and the batch script are stand-ins: the script must give task 1 the name of the second point."""
    workdir = tmp_path / "a b"
    paths = written("slurm", workdir, capsys)
    assert len(paths) > 2
    (submit,) = commands(workdir / "commands" / "slurm_array.sh")
    assert submit == ["sbatch", "--time=01:00:00", str(workdir / "commands" / "slurm_array.sbatch")]
    text = (workdir / "commands" / "slurm_array.sbatch").read_text()
    assert "#SBATCH --array=0-1\n" in text and "#SBATCH --requeue\n" in text and "#SBATCH --signal=B:TERM@120" in text
    echo = program(tmp_path / "echo.sh", '#!/bin/bash\nprintf "%s\\n" "$@"\n')
    script = tmp_path / "script"
    script.write_text(text.replace(str(ROOT / "launch/hosts/slurm.sbatch"), str(echo)))
    done = subprocess.run(
        ["bash", script], env=os.environ | {"SLURM_ARRAY_TASK_ID": "1"}, capture_output=True, text=True, timeout=60
    )
    words = done.stdout.splitlines()
    assert words[1:4] == ["-m", "launch", "sweep"] and words[-1] == "--only=neighbors=2"
    assert f"--workdir={workdir}" in words and "--grid=model.neighbors=1,2" in words
