"""The whole path in one command: build, baseline, RETRO, evaluation, report.

    python -m launch.quickstart --config=configs/quickstart.py --workdir=runs/quickstart

Each step is a process of its own, so that its memory is free for the next and each runs as a user would run it. A step
that is complete is passed over; a stopped one continues where it was.
"""

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.command import Invocation, Verb, parse, run_verb
from launch.train import VERB as TRAIN
from retro_jax.config import RunConfig, to_dict
from retro_jax.files import DamagedFile, read_json

VERB = Verb(
    "quickstart",
    "text to a trained RETRO, a baseline and a report in one command",
    "--config=configs/quickstart.py:smoke --workdir=runs/quickstart-smoke",
)
EXIT_SIGNAL = 128


@dataclass(frozen=True)
class Step:
    """One process: `python -m launch.VERB ARGUMENTS`."""

    title: str
    verb: str
    arguments: list[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or that of the step that failed."""
    argv = list(sys.argv[1:] if argv is None else argv)
    codes: list[int] = []
    code = run_verb(VERB, lambda invocation: codes.append(quickstart(invocation, argv)), argv)
    return code or sum(codes)


def quickstart(invocation: Invocation, argv: Sequence[str]) -> int:
    """Runs the steps; returns 0, or the exit code of the first that fails."""
    workdir, started = invocation.workdir, time.monotonic()
    planned = steps(invocation.run, workdir, argv)
    for number, step in enumerate(planned, start=1):
        print(f"\n[{number}/{len(planned)}] {step.title}", file=sys.stderr, flush=True)
        before = time.monotonic()
        if step.verb == "train" and is_trained(step):
            print("complete already", file=sys.stderr)
            continue
        code = run_step(step)
        if code:
            print(
                f"\nquickstart: step {number}, {step.title}, ended with exit code {code}. What was finished is kept: the "
                f"same command continues there.",
                file=sys.stderr,
            )
            return code
        print(f"done in {time.monotonic() - before:.1f} s", file=sys.stderr)
    print(closing(workdir, time.monotonic() - started))
    return 0


def steps(run: RunConfig, workdir: Path, argv: Sequence[str]) -> list[Step]:
    """What to run, with the flags of this call (all but --workdir) handed on."""
    shared = without_workdir(argv)
    data = f"--config.data.directory={run.data.directory or workdir / 'data'}"
    baseline, retro = workdir / "baseline", workdir / "retro"
    decoder = ["--config.model.retrieval_layers=()", "--config.train.retrieval_check_every=0"]

    def train(title: str, directory: Path, *changes: str) -> Step:
        return Step(title, "train", [*shared, *changes, data, f"--workdir={directory}"])

    return [
        Step("build the database and the training shards", "build", [*shared, f"--workdir={workdir}"]),
        train("train the baseline, a decoder without retrieval", baseline, *decoder),
        train("train RETRO on the same tokens", retro),
        Step("evaluate with every control, and report", "evaluate", [*shared, data, f"--workdir={workdir}"]),
    ]


def without_workdir(argv: Sequence[str]) -> list[str]:
    """The flags without --workdir, written as one word or as two."""
    kept, skip = [], False
    for argument in argv:
        if skip:
            skip = False
        elif argument.lstrip("-") == "workdir":
            skip = True
        elif not argument.lstrip("-").startswith("workdir="):
            kept.append(argument)
    return kept


def is_trained(step: Step) -> bool:
    """Whether the run directory holds the last checkpoint, whole, of this very config.

    The verb would find out as well, but only after seconds of imports and set-up.
    """
    invocation = parse(TRAIN, step.arguments)
    config, last = invocation.workdir / "config.json", invocation.run.train.steps
    whole = invocation.workdir / "checkpoints" / f"{last}.whole.json"
    if not whole.exists():
        return False
    try:
        return read_json(config, "") == json.loads(json.dumps(to_dict(invocation.run)))
    except DamagedFile:
        return False  # the verb says what is wrong, or mends it


def run_step(step: Step) -> int:
    """The exit code of the step's process, as a shell would give it."""
    code = subprocess.run([sys.executable, "-m", f"launch.{step.verb}", *step.arguments], check=False).returncode
    return EXIT_SIGNAL - code if code < 0 else code


def closing(workdir: Path, elapsed: float) -> str:
    """Whether the promised effect was seen, what it took, and where to look; `evaluate` has printed the table."""
    results = read_json(workdir / "results.json", "Run the same command again.", keys=("verdict", "seconds"))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    seen = "WAS seen" if results["verdict"]["seen"] else "was NOT seen"
    return "\n".join(
        [
            "",
            f"The promised effect (On below Off and below random neighbors, each by more than its interval, on the subset "
            f"with the highest overlap, '{results['verdict']['subset']}') {seen}.",
            f"This call took {elapsed:.0f} s, all stages and runs together {sum(results['seconds'].values()):.0f} s; the "
            f"largest process had {peak:.2f} GiB.",
            f'Try: {_retro()} sample --workdir={workdir} --prompt="Permission is hereby granted"',
        ]
    )


def _retro() -> str:
    """The console command as this shell finds it: by its path where the virtual environment is not activated."""
    beside = Path(sys.executable).with_name("retro")
    if not beside.exists():
        return "python -m launch"
    if shutil.which("retro") == str(beside):
        return "retro"
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)


if __name__ == "__main__":
    sys.exit(main())
