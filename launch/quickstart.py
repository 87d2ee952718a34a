"""The quickstart in one command: build, baseline, RETRO, evaluation, report.

    python -m launch.quickstart --config=configs/quickstart.py --workdir=runs/quickstart

Each step is a process of its own, so that its memory is free for the next and each runs as a user would run it. A step
that is complete is skipped; a stopped one continues where it was.
"""

import json
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.command.arguments import Invocation, Verb, parse
from launch.command.run import run_verb
from launch.command.steps import Step, config_flag, handed_on, of_baseline, run_step
from launch.train import VERB as TRAIN
from retro_jax.config import RunConfig, to_dict
from retro_jax.core.files import read_json
from retro_jax.core.side_files import read_object
from retro_jax.core.streams import fresh_line
from retro_jax.parallel.preemption import Interrupted, Signals
from retro_jax.run_directory.whole import find_fault

VERB = Verb(
    "quickstart",
    "text to a trained RETRO, a baseline and a report in one command",
    "--config=configs/quickstart.py:smoke --workdir=runs/quickstart-smoke",
)


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
            fresh_line()
        if Signals.first is not None:
            raise Interrupted(Signals.first)
        if code:
            print(
                f"quickstart: step {number}, {step.title}, ended with exit code {code}. Finished steps are kept: the "
                f"same command continues there.",
                file=sys.stderr,
            )
            return code
        print(f"done in {time.monotonic() - before:.1f} s", file=sys.stderr)
    print(closing(workdir, time.monotonic() - started))
    return 0


def steps(run: RunConfig, workdir: Path, argv: Sequence[str]) -> list[Step]:
    """The steps to run. Each gets the flags of this call (all but --workdir) that its verb reads."""
    data = f"--config.data.directory={run.data.directory or workdir / 'data'}"
    baseline, retro = workdir / "baseline", workdir / "retro"
    decoder = [config_flag(key, value) for key, value in of_baseline(run).items()]

    def step(title: str, verb: str, directory: Path, *changes: str) -> Step:
        return Step(title, verb, [*handed_on(VERB, verb, argv, changes), *changes, f"--workdir={directory}"])

    return [
        step("build the database and the training shards", "build", workdir),
        step("train the baseline, a decoder without retrieval", "train", baseline, *decoder, data),
        step("train RETRO on the same tokens", "train", retro, data),
        step("evaluate with every control, and report", "evaluate", workdir, data),
    ]


def is_trained(step: Step) -> bool:
    """Whether the run directory has the whole last checkpoint of this config.

    The verb would check this too, but only after seconds of imports and set-up.
    """
    invocation = parse(TRAIN, step.arguments)
    try:
        found = read_object(invocation.workdir / "config.json")
    except ValueError:
        return False  # the verb repairs it
    if found != json.loads(json.dumps(to_dict(invocation.run))):
        return False
    return find_fault(invocation.workdir / "checkpoints" / str(invocation.run.train.steps)) is None


def closing(workdir: Path, elapsed: float) -> str:
    """Prints whether the expected effect was measured, the time it took, and where the report is."""
    results = read_json(workdir / "results.json", "Run the same command again.", keys=("verdict", "seconds"))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    seen = "WAS seen" if results["verdict"]["seen"] else "was NOT measured"
    return "\n".join(
        [
            "",
            f"The expected effect (On below Off and below random neighbors, each by more than its interval, on the subset "
            f"with the highest overlap, '{results['verdict']['subset']}') {seen}.",
            f"This call took {elapsed:.0f} s, all stages and runs together {sum(results['seconds'].values()):.0f} s; the "
            f"largest process had {peak:.2f} GiB.",
            f'Try: {_retro()} sample --workdir={workdir} --prompt="Permission is hereby granted"',
        ]
    )


def _retro() -> str:
    """The console command for this shell: with its path if the virtual environment is not activated."""
    beside = Path(sys.executable).with_name("retro")
    if not beside.exists():
        return "python -m launch"
    if shutil.which("retro") == str(beside):
        return "retro"
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)


if __name__ == "__main__":
    sys.exit(main())
