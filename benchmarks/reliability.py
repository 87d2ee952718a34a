"""Kills training at random moments, plays other mishaps (mishaps.py), resumes, compares, and writes docs/measured/reliability.md.

    make reliability
    JAX_PLATFORMS=cpu PYTHONPATH=tests/fixtures .venv/bin/python benchmarks/reliability.py --kills=2 --rounds=1 --directory=runs/reliability-2 --report=runs/reliability-2.md

Every trial trains a tiny RETRO in a directory of its own, by `retro train` in one process or two (two devices in all). One
process gets SIGKILL: at a time drawn from the seed after it entered a phase drawn too (a step, a save, a retrieval check),
or after it was started. The same command runs again, and parameters, batches and metrics are compared with those of an
undisturbed run, bit for bit. One line of JSON a trial goes to DIRECTORY/trials.jsonl; started again, it continues after the
last. The mishaps go to DIRECTORY/mishaps.jsonl. Storage that is full or turns read-only in a save is mounted for it, which takes root.
"""

import argparse
import os
import platform
import random
import shutil
import signal
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from mishaps import MISHAPS, PROGRAM, append, fate, last_step, mishap_rows, newest, play, read
from processes import differences, finish, log_path, start_run
from tiny_run import EVERY, STEPS
from training_fixture import build_data

from retro_jax.core.progress import progress
from retro_jax.run_directory.whole import find_fault, steps

ROOT = Path(__file__).resolve().parents[1]
# A moment: the phase of the watchdog, how often a run enters it, and the longest delay after that in seconds.
MOMENTS = {
    "a step": ("step", 2 * STEPS, 0.01),
    "a save": ("save", STEPS // EVERY, 0.2),
    "a retrieval check": ("retrieval check", STEPS // 4, 0.05),
    "start-up": ("", 1, 6.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=6, help="trials of each kind of mishap")
    parser.add_argument("--only", default="", help="one kind of mishap, by its name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, default=ROOT / "runs" / "reliability")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "measured" / "reliability.md")
    options = parser.parse_args()
    directory = options.directory.absolute()
    data, whole = directory / "data", directory / "whole"
    if not (data / "joined").is_dir():
        build_data(data)
    for workdir, processes in ((whole, 1), (directory / "whole-2", 2)):  # the second fills the compilation cache
        if not workdir.is_dir() or newest(workdir) != STEPS:
            assert ended(start(workdir, data, processes)) == [0] * processes, log_path(workdir).read_text()[-2000:]
    assert differences(directory / "whole-2", whole, STEPS) == []
    trials = directory / "trials.jsonl"
    done = read(trials)
    for number in progress(range(len(done), options.kills), description="reliability", unit="kill"):
        append(trials, kill_once(directory, data, whole, number, options.seed))
    mishaps = directory / "mishaps.jsonl"
    done = read(mishaps)
    for number in progress(range(options.rounds * len(MISHAPS)), description="reliability", unit="mishap"):
        kind = list(MISHAPS)[number % len(MISHAPS)]
        if options.only in ("", kind) and number not in {trial["trial"] for trial in done}:
            append(mishaps, play(kind, number, directory, data, whole, options.seed))
    storage = directory / "storage.jsonl"
    if not storage.exists():
        for fault in ("full", "read-only"):
            append(storage, refuse_once(directory, data, whole, fault))
    found = [read(path) for path in (trials, mishaps, storage)]
    options.report.write_text(report(*found, options), encoding="utf-8")
    print(f"{options.report}: {len(found[0])} kills, {len(found[1])} other mishaps, {len(found[2])} faults of storage")


def start(workdir: Path, data: Path, processes: int = 1, program: Sequence[str] = ()) -> list[subprocess.Popen]:
    return start_run(workdir, data, processes=processes, program=program, model="small")


def ended(running: Sequence[subprocess.Popen]) -> list[int]:
    return finish(running, seconds=1800)  # a busy machine compiles for minutes


def kill_once(directory: Path, data: Path, whole: Path, number: int, seed: int) -> dict:
    """One trial: start, kill, resume, compare. A run that ends before its kill is drawn again."""
    moment, processes = list(MOMENTS)[number % len(MOMENTS)], 1 + number // len(MOMENTS) % 2
    workdir, codes, attempt = directory / f"trial-{number}", [0], 0
    while -signal.SIGKILL not in codes:
        draw = random.Random(f"{seed}/{number}/{attempt}")
        attempt += 1
        shutil.rmtree(workdir, ignore_errors=True)  # of this trial's own, too late or interrupted
        phase, turns, longest = MOMENTS[moment]
        turn, delay, victim = draw.randint(1, turns), draw.random() * longest, draw.randrange(processes)
        codes = ended(start(workdir, data, processes, ["-c", PROGRAM, *fate(phase, turn, "SIGKILL", delay, victim)]))
    reached, saved = last_step(workdir), newest(workdir)
    again = ended(start(workdir, data, processes))
    fact = {
        "trial": number,
        "moment": moment,
        "processes": processes,
        "victim": victim,
        "turn": turn,
        "delay_seconds": round(delay, 4),
        "exit_codes": codes,
        "reached": reached,
        "saved": saved,
        **outcome(workdir, whole, again),
    }
    if not fact["differences"]:
        shutil.rmtree(workdir)
    return fact


def refuse_once(directory: Path, data: Path, whole: Path, fault: str) -> dict:
    """Makes storage fail when the third save begins; checks how the run ends and that it continues once storage works."""
    workdir = directory / f"storage-{fault}"  # the log stands beside it, on another file system
    workdir.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "retro-test", workdir], check=True)
    try:
        codes = ended(start(workdir, data, 1, ["-c", PROGRAM, *fate("save", 3, fault)]))
        left, said = newest(workdir), log_path(workdir).read_text(errors="replace")
        if fault == "read-only":
            subprocess.run(["umount", workdir / "checkpoints"], check=True)
        (workdir / "filler").unlink(missing_ok=True)
        again = ended(start(workdir, data, 1))
        told = [line for line in said.splitlines() if "could not be saved" in line]
        return {"fault": fault, "exit_codes": codes, "saved": left, "said": told, **outcome(workdir, whole, again)}
    finally:
        subprocess.run(["umount", workdir], check=True)


def outcome(workdir: Path, whole: Path, again: list[int]) -> dict:
    """Compares a resumed run with the undisturbed one."""
    return {
        "resumed": again,
        "differences": ["did not finish"] if any(again) else differences(workdir, whole, STEPS),
        "corrupt": [
            f"{step}: {fault}"
            for step in steps(workdir / "checkpoints")
            if (fault := find_fault(workdir / "checkpoints" / str(step)))
        ],
    }


def report(trials: list[dict], mishaps: list[dict], storage: list[dict], options) -> str:
    """The text of docs/measured/reliability.md."""
    lost, in_flight, rows = [], [], []
    for trial in trials:
        unfinished = trial["saved"] < trial["reached"] // EVERY * EVERY  # the save of a step that was reached
        (in_flight if unfinished else lost).append(max(trial["reached"] - trial["saved"], 0))
    for moment in MOMENTS:
        for processes in (1, 2):
            chosen = [trial for trial in trials if (trial["moment"], trial["processes"]) == (moment, processes)]
            same = sum(not trial["differences"] for trial in chosen)
            worst = max((max(trial["reached"] - trial["saved"], 0) for trial in chosen), default=0)
            broken = sum(len(trial["corrupt"]) for trial in chosen)
            rows.append(f"| {moment} | {processes} | {len(chosen)} | {same} | {worst} | {broken} |")
    faults = [
        f"| {fact['fault']} | {fact['exit_codes'][0]} | step {fact['saved']} | "
        f"{'yes' if not fact['differences'] else 'no'} | {len(fact['corrupt'])} |"
        for fact in storage
    ]
    return f"""# Reliability

Made by `make reliability` (benchmarks/reliability.py, seed {options.seed}); the trials are in `trials.jsonl` of its directory.

{len(trials)} runs of `retro train` got SIGKILL, were started again with the same command, and ended. A run is {STEPS} steps of
a one-layer RETRO on two virtual CPU devices, in one process or in two, with a checkpoint every {EVERY} steps and a retrieval
check every 4. Each is compared with one undisturbed run in one process: every bit of every parameter, the CRC-32 of every
batch, and every figure of every record but those of the machine (speeds, memory, goodput). An undisturbed run in two
processes is identical to it as well.

* identical to the undisturbed run: **{sum(not trial["differences"] for trial in trials)} of {len(trials)}**
* work lost: at most {max(lost, default=0)} steps in {len(lost)} kills; a checkpoint interval is {EVERY}. A save runs beside training, and
  what it holds counts when it is whole: the other {len(in_flight)} kills came before that, and lost {max(in_flight, default=0)} steps at most. (Here
  a save takes as long as dozens of steps; the next one waits for it, so that two intervals are the most.)
* checkpoints that are not whole after the resumed run: {sum(len(trial["corrupt"]) for trial in trials)}

| killed in | processes | kills | identical after resuming | most steps lost | checkpoints not whole at the end |
|---|---|---|---|---|---|
{chr(10).join(rows)}

With two processes one gets the signal. The other ends by itself: with exit code 75 when it sees that the first is gone, or
by jax's own abort (134) when process 0, which holds jax's coordinator, is the one that was killed.

## Other mishaps

{len(mishaps)} more runs in one process met something else than a kill (benchmarks/mishaps.py). A trial is good where the run
ends with the bits of the undisturbed run, nothing but what the kind allows is lost, and a run that cannot continue is refused in
words that name the file. "Refused" counts the trials of the last sort. A run that meets damage or a stray was killed
before, at a random step, so that steps since its last checkpoint are done again.

| mishap | trials | good | refused by name | most steps done again |
|---|---|---|---|---|
{mishap_rows(mishaps)}

## Storage

The file system of the run (a tmpfs) is filled to the last byte, or its directory of checkpoints is mounted read-only, when
the third save begins. Training
continues to its last step, the last checkpoint cannot be saved, and the command ends with an error and not with 0; once
there is space again, or the right to write, the same command ends with the bits of the undisturbed run.

| storage | exit code | newest whole checkpoint then | identical after resuming | checkpoints not whole at the end |
|---|---|---|---|---|
{chr(10).join(faults)}

Machine: {os.cpu_count()} cores, shared with other work; Python {platform.python_version()}, jax {version("jax")}.
"""


if __name__ == "__main__":
    main()
