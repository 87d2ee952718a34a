"""Writes the launch commands of a sweep: for each script of `launch/hosts` a line a training, for SLURM a job array too.

WORKDIR/commands/LAUNCHER.sh           builds, trainings, and at the end the evaluation, in order
WORKDIR/commands/slurm_array.sbatch    one task a point, each `retro sweep --only=POINT`
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.command.arguments import flag_name
from launch.sweep.plan import Plan, Task
from launch.sweep.run import wanted
from retro_jax.core.files import atomic_path

NAMED = ("gke", "tpu_vm")  # their jobs need a name
OWN = (
    "launcher",
    "launcher_flags",
    "launcher_workdir",
    "only",
    "plan",
    "json",
)  # flags of the call that writes the commands
HOSTS = Path(__file__).resolve().parents[1] / "hosts"


def write_commands(
    plan: Plan, keys: Sequence[str], launcher: str, more: Sequence[str], words: Sequence[str], there: str = ""
) -> list[Path]:
    """Writes the files; returns their paths.

    Args:
      keys: evaluations of the points to run; what is finished is left out.
      more: flags of the launch script (--nodes=2).
      words: of the command line, a flag each.
      there: the work directory as the launched jobs name it; empty: the same.
    """
    again = [sys.executable, "-m", "launch", "sweep", *(word for word in words if flag_name(word) not in OWN)]
    folder = plan.workdir / "commands"
    files = {f"{launcher}.sh": _script(plan, wanted(plan, keys, checksums=False), launcher, more, again, there)}
    if launcher == "slurm":
        files["slurm_array.sbatch"] = _array(plan, keys, again)
        submit = [
            "sbatch",
            *(word for word in more if not word.startswith("--nodes=")),
            str(folder / "slurm_array.sbatch"),
        ]
        files["slurm_array.sh"] = f"{_head('Submits a task a point.')}\n{shlex.join(submit)}\n"
    for name, text in files.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
            temporary.chmod(0o755)
    return [folder / name for name in files]


def _head(comment: str) -> str:
    return f"#!/bin/bash\n# {comment} Written by `retro sweep --launcher`.\nset -eu\ncd {shlex.quote(os.getcwd())}"


def _script(
    plan: Plan, left: Sequence[str], launcher: str, more: Sequence[str], again: Sequence[str], there: str
) -> str:
    users, tasks = plan.users(), [plan.tasks[key] for key in left]
    lines = [_head(f"The steps of a sweep, in order; run a line when what it needs has ended. Launcher: {launcher}.")]
    for task in tasks:
        if task.step.verb != "evaluate":
            needs = ", ".join(need for need in task.needs if need in left)
            lines.append(
                f"# {task.key}: {task.step.title}, for {', '.join(users[task.key])}" + f"; needs {needs}" * bool(needs)
            )
            lines.append(
                shlex.join(
                    task.step.command if task.step.verb == "build" else _start(plan, task, launcher, more, there)
                )
            )
    lines.append("# When all have ended: evaluations, table and page.")
    lines.append(shlex.join(again))
    return "\n".join(lines) + "\n"


def _start(plan: Plan, task: Task, launcher: str, more: Sequence[str], there: str) -> list[str]:
    name = [f"--name=sweep-{task.digest[:12]}"] if launcher in NAMED else []
    here = f"={plan.workdir}/"  # of flags that name a folder of the sweep
    words = [word.replace(here, f"={there.rstrip('/')}/", 1) if there else word for word in task.step.arguments]
    return [str(HOSTS / f"{launcher}.sh"), "start", *name, *more, *words]


def _array(plan: Plan, keys: Sequence[str], again: Sequence[str]) -> str:
    """A job array that runs each point under launch/hosts/slurm.sbatch, which requeues what was preempted."""
    batch = (HOSTS / "slurm.sbatch").read_text(encoding="utf-8")
    names = [one.point.name for one in plan.points if one.task in keys]
    options = [line for line in batch.splitlines() if line.startswith("#SBATCH ")]
    options += ["#SBATCH --nodes=1", f"#SBATCH --array=0-{len(names) - 1}"]
    options.append(f"#SBATCH --output={plan.workdir.absolute() / 'commands' / 'slurm-%A-%a.log'}")
    return "\n".join(
        [
            "#!/bin/bash",
            *options,
            "# A task a point; what points share is done by the first, and the others wait. Written by `retro sweep --launcher=slurm`.",
            f"cd {shlex.quote(os.getcwd())} || exit 1",
            "points=(",
            *(f"  {shlex.quote(name)}" for name in names),
            ")",
            f'exec bash {shlex.quote(str(HOSTS / "slurm.sbatch"))} {shlex.join(again)} "--only=${{points[$SLURM_ARRAY_TASK_ID]}}"',
            "",
        ]
    )
