"""launch/hosts/slurm.sbatch with stand-ins for srun and scontrol: which ends are requeued. A real cluster: test_slurm.py."""

import os
import subprocess

import pytest
from launch_fixture import ROOT, lines, program

START = "slurm.sbatch: job 7, 2026-11-27T07:00:00Z: start number 1 on node[1-2]\n"
KILLED = "slurm.sbatch: job 7, 2026-11-27T08:00:00Z: the step ended with 137; asking to be requeued\n"
PREEMPTED = KILLED.replace("137", "75")


@pytest.fixture
def batch(tmp_path):
    """batch(code, earlier log, restarts) runs the script once; (exit code, what it adds to the log, calls of scontrol)."""
    tools, log = tmp_path / "tools", tmp_path / "slurm-7.log"
    program(tools / "srun", "#!/bin/sh\nexit $ENDS_WITH\n")
    program(tools / "scontrol", f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n')

    def call(code: int, before: str, restarts: int, pipe: bool = False):
        variables = {"ENDS_WITH": str(code), "SLURM_RESTART_COUNT": str(restarts), "SLURM_JOB_ID": "7"}
        variables |= {"SLURM_JOB_NODELIST": "node[1-2]", "PATH": f"{tools}:{os.environ['PATH']}"}
        log.write_text(before)
        (tmp_path / "calls").unlink(missing_ok=True)
        with open(log, "a") as file:
            done = subprocess.run(
                ["bash", ROOT / "launch" / "hosts" / "slurm.sbatch", "retro", "train"],
                env=os.environ | variables,
                stdout=subprocess.PIPE if pipe else file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        said = done.stdout if pipe else log.read_text().removeprefix(before)
        return done.returncode, said, lines(tmp_path / "calls")

    return call


def test_preemptions_use_up_no_restart_of_those_for_kills(batch):
    """Guards against a long run whose first kill is final, because SLURM counts preemptions and time limits as restarts."""
    for code, before in ((137, START + PREEMPTED * 25), (137, START + KILLED * 19 + PREEMPTED * 25), (75, KILLED * 20)):
        ended, said, calls = batch(code, before, 25)
        assert (ended, calls) == (code, ["requeue 7"]), before[:90]
        assert "start number 26" in said and f"the step ended with {code}; asking to be requeued" in said


@pytest.mark.parametrize("code", [128, 129, 137, 199, 255])
def test_twenty_kills_are_the_last(batch, code):
    ended, said, calls = batch(137, START + KILLED.replace("137", str(code)) * 20, 25)
    assert (ended, calls) == (137, []) and "the step ended with 137 after 20 restarts, and no more are made" in said


def test_other_ends_are_final(batch):
    assert batch(1, "", 0)[2] == [] and batch(0, "", 0)[2] == []


@pytest.mark.parametrize("pipe", [True, False], ids=["a pipe", "truncated"])
def test_without_a_log_all_restarts_count(batch, pipe):
    """What a pipe has taken, or another start has truncated, cannot be read: SLURM's own count ends a job that is killed
    again and again."""
    assert batch(137, "", 19, pipe)[2] == ["requeue 7"]
    ended, said, calls = batch(137, "", 20, pipe)
    assert (ended, calls) == (137, []) and "the step ended with 137 after 20 restarts" in said
