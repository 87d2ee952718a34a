"""All launch scripts: help, --dry-run, flags, the cost note, shellcheck."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launch_fixture import ROOT, SCRIPTS, launch, program, stand_in

from launch.hosts.cost import note

SHELL = [*sorted((ROOT / "launch" / "hosts").glob("*.sh")), ROOT / "launch" / "hosts" / "slurm.sbatch"]
REPORT = {
    "fits": True,
    "memory_gib": {"total": 61.25, "limit": 95.74},
    "step_seconds_roofline": 2.5,
    "chip_hours": 12_345.6,
}
WHERE = {
    "gpu_box": ["--workdir=runs/x"],
    "slurm": ["--workdir=runs/x", "--nodes=2"],
    "gke": ["--name=x", "--image=some/image:1", "--workdir=gs://my-bucket/x"],
    "tpu_vm": ["--name=x", "--zone=us-east5-a", "--workdir=gs://my-bucket/x"],
}


def test_shellcheck_finds_nothing():
    program = Path(sys.executable).with_name("shellcheck")
    result = subprocess.run([program, "--external-sources", *SHELL], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_example_of_the_help_works_when_pasted(script, tmp_path):
    """Runs the help's example with --dry-run; the output is valid shell."""
    help_text = launch(script, "--help", retro="").stdout
    assert launch(script, "start", "--help", retro="").stdout == help_text
    examples = [line.strip() for line in help_text.splitlines() if line.startswith(f"  launch/hosts/{script}.sh ")]
    assert len(examples) == 1
    report = tmp_path / "report.json"
    report.write_text(json.dumps(REPORT))
    words = [word for word in shlex.split(examples[0])[1:] if word != "--dry-run"]
    result = launch(script, *words, "--dry-run", retro=stand_in(tmp_path), RETRO_PREFLIGHT=str(report))
    assert result.returncode == 0, result.stderr
    assert subprocess.run(["bash", "-n"], input=result.stdout, text=True).returncode == 0
    assert result.stdout.count("--config=configs/") == 1


@pytest.mark.parametrize("guide", ["first_slurm_run", "first_pod_run"])
def test_the_commands_of_the_guides_work(guide, tmp_path):
    """All but those that stand for `the flags of start`."""
    text = (ROOT / "docs" / "guides" / f"{guide}.md").read_text().replace("\\\n", " ")
    commands = [line for line in text.splitlines() if line.startswith("    launch/hosts/") and "<" not in line]
    assert len(commands) >= 4
    for command in commands:
        path, *words = shlex.split(command, comments=True)
        result = launch(Path(path).stem, *words, "--dry-run", retro=stand_in(tmp_path))
        assert result.returncode == 0, f"{command}: {result.stderr}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_prints_commands_for_every_verb_and_deletes_only_when_told(script, tmp_path):
    flags = [*WHERE[script], "--topology=v5p:2x2x2", "--config", "x.py", "--dry-run"]
    retro = stand_in(tmp_path)
    assert "--config=x.py" in launch(script, "start", *flags, retro=retro).stdout
    for verb in ("start", "watch", "restart", "stop"):
        result = launch(script, verb, *flags, retro=retro)
        assert result.returncode == 0, result.stderr
        assert result.stdout
        commands = result.stdout.replace("--for=delete", "").splitlines()
        assert [line for line in commands if re.search(r"\b(delete|rm)\b", line)] == []
    assert not (ROOT / "runs" / "x").exists()
    if script in ("gke", "tpu_vm"):
        assert " delete " in launch(script, "stop", *flags, "--delete", retro=retro).stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_mistakes_are_usage_errors(script):
    assert launch(script, retro="").returncode == 2
    assert "take start, watch, restart or stop" in launch(script, "begin", retro="").stderr
    wrong = launch(script, "start", "--workdri=x", retro="")
    assert wrong.returncode == 2 and "--workdri is not a flag" in wrong.stderr and "workdir" in wrong.stderr
    assert "flags look like --name=value" in launch(script, "start", "--workdir", "runs/x", retro="").stderr
    assert "--config needs a value" in launch(script, "start", *WHERE[script], "--config", retro="").stderr
    missing = launch(script, "start", *WHERE[script], "--topology=v5p:2x2x2", retro="retro")
    assert missing.returncode == 2 and "--config=... is missing" in missing.stderr


def test_the_cost_note_comes_before_the_launch(tmp_path):
    report = tmp_path / "report.json"
    report.write_text(json.dumps(REPORT))
    flags = [*WHERE["slurm"], "--config=x.py", "--topology=h100:16", "--price-per-chip-hour=2.5", "--dry-run"]
    result = launch("slurm", "start", *flags, retro=stand_in(tmp_path), RETRO_PREFLIGHT=str(report))
    assert result.stderr.splitlines() == [
        "cost note: h100:16: fits, 61.2 of 95.7 GiB a device",
        "cost note: at least 2.5 s a step (roofline, a lower bound)",
        "cost note: at least 12,346 chip-hours for the run",
        "cost note: at least 30,864.00 at your 2.50 per chip-hour",
    ]
    assert "sbatch" in result.stdout
    report.write_text("no JSON")
    result = launch("slurm", "start", *flags, retro=stand_in(tmp_path), RETRO_PREFLIGHT=str(report))
    assert result.returncode == 0 and "sbatch" in result.stdout
    assert "cost note: none, for retro preflight gave no estimate" in result.stderr


@pytest.mark.parametrize("script", ["gke", "tpu_vm"])
def test_a_launch_needs_no_retro_for_its_cost_note(script, tmp_path):
    """Guards against a launch from a machine that only submits, which ended without a command: retro runs elsewhere."""
    hosts = tmp_path / "launch" / "hosts"
    shutil.copytree(ROOT / "launch" / "hosts", hosts)
    tools = program(tmp_path / "tools" / "python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n').parent
    flags = [*WHERE[script], "--config=x.py", "--topology=v5p:2x2x2", "--dry-run"]
    variables = {name: value for name, value in os.environ.items() if name != "RETRO"}
    variables |= {"PATH": f"{tools}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    words = [hosts / f"{script}.sh", "start", *flags]
    result = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr.startswith("cost note: none, retro is not installed here\n")
    assert "--config=x.py" in result.stdout


def test_the_cost_note_leaves_out_what_preflight_leaves_out():
    assert note("v4:4x4x4", "", {}) == ["chip-hours are not in preflight's output"]
    assert note("v4:4x4x4", "", {"fits": False, "chip_hours": 3}) == [
        "v4:4x4x4: DOES NOT FIT",
        "at least 3 chip-hours for the run",
        "give --price-per-chip-hour=PRICE for the amount",
    ]
    assert note("v4:4x4x4", "two", {"chip_hours": 3})[-1] == "'two' is not a price"
    assert note("v4:4x4x4", "2", {"chip_hours": None}) == ["chip-hours are not in preflight's output"]
