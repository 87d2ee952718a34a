"""A sweep as a SLURM array, a task of it preempted, has the table of one on this machine; run by `make test-slurm`."""

import subprocess

import pytest
from launch_fixture import wait_for
from test_slurm import slurm  # noqa: F401
from test_sweep_kills import begun, environment, root, start, table, whole  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


def test_an_array_of_which_a_task_is_preempted_has_the_same_table(root, whole, slurm):  # noqa: F811
    """Guards against tasks that do a step twice, and against a TERM that reaches all tasks of an array in place of one."""
    work, variables = root / "array", environment(root) | slurm

    def ask(*words):
        return subprocess.run(words, env=variables, capture_output=True, text=True, timeout=120, check=True).stdout

    assert start(root, "array", "--launcher=slurm").wait(300) == 0, (root / "array.log").read_text()[-3000:]
    number = ask("bash", str(work / "commands" / "slurm_array.sh")).split()[-1]
    wait_for(lambda: begun(work, "train-"), "a training", 900)
    begun_tasks = [path.stem for path in (work / "commands").glob("slurm-*.log") if "[" in path.read_text()]
    ask("scancel", "--batch", "--signal=TERM", f"{number}_{begun_tasks[0].rpartition('-')[2]}")
    wait_for(lambda: not ask("squeue", "--noheader").strip(), "the end of the array", 1800)
    logs = {path.name: path.read_text(errors="replace") for path in (work / "commands").glob("slurm-*.log")}
    requeued = [name for name, text in logs.items() if "the step ended with 75; asking to be requeued" in text]
    assert len(logs) == 6 and len(requeued) == 1, "\n".join(text[-1000:] for text in logs.values())
    assert table(work) == whole and (work / "sweep.html").exists()
