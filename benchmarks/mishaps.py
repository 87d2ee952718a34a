"""Mishaps of a training run other than kills: stray folders, damage, second starts, closed streams, signals, odd paths.

`MISHAPS` maps the name of a kind to a function that plays one trial in a directory of its own and returns its facts. A
trial runs `retro train` in processes of its own, up to the end, and compares the run with an undisturbed one.
"""

import json
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from processes import differences, finish, log_path, start_run
from tiny_run import EVERY, STEPS

from retro_jax.run_directory.whole import find_fault, newest_whole, steps
from retro_jax.train.metrics import read_metrics

SAVED, MISTAKE, INTERRUPTED = 75, 2, 130  # exit codes of `retro train`
# `retro train` that meets its fate when it enters PHASE for the TURN-th time, or at once if PHASE is empty.
PROGRAM = """
import os, signal, subprocess, sys, threading
phase, turn, delay, victim, fate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[5]
arguments, seen = sys.argv[6:], [0]
workdir = next(word.split("=", 1)[1] for word in arguments if word.startswith("--workdir="))

def meet():
    if fate.startswith("SIG"):
        for name in fate.split("+"):
            os.kill(os.getpid(), getattr(signal, name))
    elif fate == "closed":
        os.close(1), os.close(2)
    elif fate == "/dev/full":
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, 1), os.dup2(full, 2)
    elif fate == "no reader":
        reader, writer = os.pipe()
        os.close(reader), os.dup2(writer, 1), os.dup2(writer, 2)
    elif fate == "read-only":
        saves = f"{workdir}/checkpoints"
        subprocess.run(["mount", "--bind", saves, saves], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", saves], check=True)
    elif fate == "full":
        with open(f"{workdir}/filler", "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)) == 4096:
                    pass
            except OSError:
                pass

if f"--process={victim}" in arguments or not any(word.startswith("--process=") for word in arguments):
    if not phase:
        threading.Timer(delay, meet).start() if delay else meet()
    else:
        from retro_jax.parallel.watchdog import Watchdog
        enter = Watchdog.phase

        def entered(watchdog, name, step=None):
            enter(watchdog, name, step)
            seen[0] += name == phase
            if name == phase and seen[0] == turn:
                threading.Timer(delay, meet).start() if fate.startswith("SIG") else meet()

        Watchdog.phase = entered
from launch.train import main
sys.exit(main(arguments))
"""
STRAYS = ("20251124", "99", "007", "6.old", "latest", "12.orbax-checkpoint-tmp-7", "٣")
ODD_NAMES = (
    "lr=1e-3,layers=[2,4]",
    "a b  c",
    "100%",
    "what?*",
    "#1",
    "{x}",
    "Übung 火",
    "quote'\"",
    "back\\slash",
    "-dash",
    "semi;colon&pipe|",
    "new\nline",
    "~",
    "$HOME",
    "x" * 200,
)
SIDE_FILES = ("NEWEST.whole.json", "OLDER.whole.json", "config.json", "seconds.json", "versions.json", "metrics.jsonl")
DAMAGE = ("empty", "cut", "garbled", "removed")


@dataclass(frozen=True)
class Place:
    """The directories of a trial: its own, the data, and the undisturbed run to compare with."""

    workdir: Path
    data: Path
    whole: Path
    draw: random.Random

    def run(self, *more: str, fate: Sequence[str] = (), workdir: Path | None = None) -> int:
        """Runs `retro train` there and returns its exit code."""
        program = ["-c", PROGRAM, *fate] if fate else []
        return finish(start_run(workdir or self.workdir, self.data, *more, program=program, model="small"), 1800)[0]

    def killed(self, *more: str) -> dict:
        """Starts a run and kills it in its second half after a save; returns the steps reached and saved."""
        self.run(*more, fate=fate("step", self.draw.randint(STEPS // 2 + 1, STEPS - 1), "SIGKILL"))
        return {"reached": last_step(self.workdir), "saved": newest(self.workdir)}

    def said(self, workdir: Path | None = None) -> str:
        return log_path(workdir or self.workdir).read_text(errors="replace")


def fate(phase: str, turn: int, what: str, delay: float = 0.0, victim: int = 0) -> list[str]:
    """The arguments of `PROGRAM`: process `victim` meets `what`, `delay` seconds after it entered the phase."""
    return [phase, str(turn), f"{delay:.4f}", str(victim), what]


def newest(workdir: Path) -> int:
    """The newest whole checkpoint; 0 if the run restarts."""
    return newest_whole(workdir / "checkpoints") or 0


def last_step(workdir: Path) -> int:
    """The last step in the metrics."""
    path = workdir / "metrics.jsonl"
    return max((record["step"] for record in read_metrics(path)), default=0) if path.exists() else 0


def stray(place: Place) -> dict:
    """Puts stray folders among the checkpoints of a run that keeps only the newest one."""
    checkpoints, name = place.workdir / "checkpoints", place.draw.choice(STRAYS)
    (checkpoints / name).mkdir(parents=True)
    (checkpoints / name / "notes.txt").write_text("mine")
    before = place.killed("--config.train.keep_checkpoints=1")
    again = place.run("--config.train.keep_checkpoints=1")
    kept = (checkpoints / name / "notes.txt").is_file()
    return {"detail": name, **before, "codes": [again], "problems": [] if kept else [f"{name} was touched"]}


def pruned(place: Place) -> dict:
    """Damages the newest checkpoint of a run that keeps few: the newest whole one must remain."""
    keep = place.draw.choice((1, 2))
    flag = f"--config.train.keep_checkpoints={keep}"
    before = place.killed(flag)
    problems = [] if before["saved"] else ["no whole checkpoint at the kill"]
    if keep == 2 and before["saved"] > EVERY:
        damage_array(place.workdir / "checkpoints" / str(before["saved"]), place.draw)
        if not newest(place.workdir):
            problems.append("no whole checkpoint is left")
    again = place.run(flag)
    whole = [step for step in range(STEPS + 1) if is_whole(place.workdir / "checkpoints" / str(step))]
    if whole[-1:] != [STEPS] or len(whole) > keep:
        problems.append(f"whole at the end: {whole}")
    return {"detail": f"keep {keep}", **before, "codes": [again], "problems": problems}


def second_start(place: Place) -> dict:
    """Runs the same command while the run is running: it is refused and does not disturb the first."""
    running = start_run(place.workdir, place.data, model="small")
    second = place.workdir.with_name(place.workdir.name + "-second")
    second.symlink_to(place.workdir.name)  # the same directory by another name
    while running[0].poll() is None and not (place.workdir / "config.json").exists():
        pass
    chosen = place.draw.choice((place.workdir, second))
    code = finish(start_run(chosen, place.data, model="small"), 1800)[0]
    first = finish(running, 1800)[0]
    second.unlink()
    late = code == 0  # the first had ended
    problems = [] if code == MISTAKE or late else [f"the second start ended with {code}"]
    return {"detail": "late" if late else "refused", "codes": [first], "problems": problems}


def streams(place: Place) -> dict:
    """Closes standard output and error, fills them, or removes their reader."""
    what = place.draw.choice(("closed", "/dev/full", "no reader"))
    when = place.draw.choice((fate("", 0, what), fate("step", place.draw.randint(1, STEPS), what)))
    return {"detail": f"{what}, {when[0] or 'start'} {when[1]}", "codes": [place.run(fate=when)], "problems": []}


def signalled(name: str, expected: Sequence[int]) -> Callable[[Place], dict]:
    def play(place: Place) -> dict:
        turn = place.draw.randint(1, STEPS)
        phase = place.draw.choice(("step", "save", "compile", "restore"))
        turn = {"step": turn, "save": 1 + turn % 3}.get(phase, 1)
        code = place.run(fate=fate(phase, turn, name, place.draw.random() * 0.05))
        reached, saved = last_step(place.workdir), newest(place.workdir)
        problems = [] if code in (0, *expected) else [f"ended with {code}"]
        if "+" not in name and reached > saved:
            problems.append(f"step {reached} was reached, {saved} saved")
        facts = {"detail": f"{phase} {turn}", "reached": reached, "saved": saved}
        return facts | {"codes": [place.run()], "problems": problems}

    return play


def side_file(place: Place) -> dict:
    """Damages a side file of a killed run: it continues, or stops with the file's name and continues after the remedy."""
    before = place.killed()
    chosen, how = place.draw.choice(SIDE_FILES), place.draw.choice(DAMAGE)
    older = max(before["saved"] - EVERY, EVERY)
    name = chosen.replace("NEWEST", str(before["saved"])).replace("OLDER", str(older))
    path = place.workdir / ("checkpoints" if "whole" in name else ".") / name
    damage(path, how, place.draw)
    facts = {"detail": f"{chosen} {how}", **before, "problems": []}
    code = place.run()
    if code == MISTAKE and path.name in place.said():
        return facts | {"codes": [0], "refused": True}  # by name; what was saved stays
    return facts | {"codes": [code], "metrics_damaged": chosen == "metrics.jsonl"}


def checkpoints_gone(place: Place) -> dict:
    """Damages all checkpoints of a run: it stops, and restarts only with --restart."""
    before = place.killed()
    if place.draw.random() < 0.5:
        shutil.rmtree(place.workdir / "checkpoints")
        detail = "removed"
    else:
        for step in steps(place.workdir / "checkpoints"):
            damage_array(place.workdir / "checkpoints" / str(step), place.draw)
        detail = "all damaged"
    code = place.run()
    problems = [] if code == MISTAKE else [f"started with {code}, not refused"]
    return {"detail": detail, **before, "codes": [place.run("--restart")], "problems": problems}


def odd_path(place: Place) -> dict:
    """Runs in a directory whose name is a pattern or URL, or moves a run to one."""
    name = place.draw.choice(ODD_NAMES)
    inside = place.workdir.with_name(place.workdir.name + "-odd") / name
    inside.parent.mkdir(exist_ok=True)
    if place.draw.random() < 0.5:
        before = place.killed()
        place.workdir.rename(inside)
        detail = f"moved to {name!r:.30}"
    else:
        place.run(fate=fate("step", STEPS - 2, "SIGKILL"), workdir=inside)
        before, detail = {"reached": last_step(inside), "saved": newest(inside)}, f"{name!r:.30}"
    problems = [] if before["saved"] else ["nothing was saved"]
    code = place.run(workdir=inside)
    inside.rename(place.workdir)
    shutil.rmtree(inside.parent)
    return {"detail": detail, **before, "codes": [code], "problems": problems}


def mistyped(place: Place) -> dict:
    """Starts with a mistake first, which must not claim the directory."""
    wrong = place.draw.choice(
        ("model.vocabulary=65", "train.batch=7", "train.mesh.fsdp=3", "train.learning_rate=-1.0", "model.neighbors=99")
    )
    code = place.run(f"--config.{wrong}")
    problems = [] if code == MISTAKE else [f"the mistake ended with {code}"]
    if place.workdir.exists() and any(place.workdir.iterdir()):
        problems.append(f"it left {sorted(path.name for path in place.workdir.iterdir())}")
    return {"detail": wrong, "codes": [place.run()], "problems": problems}


MISHAPS: dict[str, Callable[[Place], dict]] = {
    "a stray folder, one checkpoint kept": stray,
    "pruning beside a damaged checkpoint": pruned,
    "a second start": second_start,
    "closed streams": streams,
    "SIGHUP": signalled("SIGHUP", [SAVED]),
    "Ctrl-C": signalled("SIGINT", [SAVED, INTERRUPTED]),
    "SIGTERM": signalled("SIGTERM", [SAVED]),
    "Ctrl-C twice": signalled("SIGINT+SIGINT", [SAVED, INTERRUPTED, -signal.SIGINT]),
    "a damaged side file": side_file,
    "checkpoints gone or damaged": checkpoints_gone,
    "odd paths": odd_path,
    "a mistyped first start": mistyped,
}


def play(kind: str, number: int, directory: Path, data: Path, whole: Path, seed: int) -> dict:
    """Runs one trial and compares its end with the undisturbed run."""
    workdir = directory / f"mishap-{number}"
    shutil.rmtree(workdir, ignore_errors=True)  # of this trial's own, interrupted
    place = Place(workdir, data, whole, random.Random(f"{seed}/{kind}/{number}"))
    facts = {"trial": number, "kind": kind, **MISHAPS[kind](place)}
    if not facts.get("refused"):
        facts["problems"] += [f"ended with {code}" for code in facts["codes"] if code]
        if not any(facts["codes"]):
            found = differences(workdir, whole, STEPS)
            facts["problems"] += [
                line for line in found if not (facts.get("metrics_damaged") and "parameter" not in line)
            ]
    if not facts["problems"]:
        shutil.rmtree(workdir)
    return facts


def is_whole(path: Path) -> bool:
    return path.is_dir() and find_fault(path) is None


def damage_array(checkpoint: Path, draw: random.Random) -> None:
    """Flips one byte of the largest file of a checkpoint."""
    path = max((file for file in checkpoint.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 0xFF
    path.write_bytes(content)


def damage(path: Path, how: str, draw: random.Random) -> None:
    content = path.read_bytes()
    if how == "removed":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(content[: draw.randrange(1, len(content))])
    else:
        middle = draw.randrange(len(content))
        path.write_bytes(content[:middle] + bytes(8) + content[middle + 8 :])


def mishap_rows(trials: Sequence[dict]) -> str:
    """The lines of the table: kind, trials, good, refused, most steps repeated."""
    lines = []
    for kind in MISHAPS:
        chosen = [trial for trial in trials if trial["kind"] == kind]
        good = sum(not trial["problems"] for trial in chosen)
        lost = max((max(trial.get("reached", 0) - trial.get("saved", 0), 0) for trial in chosen), default=0)
        refused = sum(trial.get("refused", False) for trial in chosen)
        lines.append(f"| {kind} | {len(chosen)} | {good} | {refused or ''} | {lost} |")
    return "\n".join(lines)


def read(path: Path) -> list[dict]:
    """The trials of a file that `append` wrote; empty without a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def append(path: Path, fact: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(fact) + "\n")
