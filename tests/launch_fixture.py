"""Runs the launch scripts with the stand-in of tests/made_up_training.py instead of `retro`."""

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("gpu_box", "slurm", "gke", "tpu_vm")
STAND_IN = Path(__file__).with_name("made_up_training.py")


def program(path: Path, text: str) -> Path:
    """An executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def stand_in(directory: Path) -> Path:
    """The stand-in as a program that RETRO can name."""
    return program(directory / "retro", f'#!/bin/sh\nexec {sys.executable} -S {STAND_IN} "$@"\n')


def launch(script: str, *words: str, retro: Path | str, timeout: float = 60, **variables: str):
    """The finished process of `launch/SCRIPT.sh WORDS`, with what it printed."""
    return subprocess.run(
        [ROOT / "launch" / f"{script}.sh", *words],
        cwd=ROOT,
        env=os.environ | {"RETRO": str(retro)} | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def wait_for(condition: Callable[[], object], what: str, seconds: float = 30):
    """What the condition gives as soon as that is true; AssertionError after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come within {seconds} s")


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
