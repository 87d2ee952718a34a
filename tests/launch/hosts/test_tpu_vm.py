"""launch/hosts/tpu_vm.sh against stand-ins for gcloud, uv and gcsfuse: two workers are two folders, their commands are run."""

import json
import os

import pytest
from launch_fixture import launch, lines, program, stand_in, wait_for

GCLOUD = """#!/usr/bin/env bash
# Queued resources are the file state; the workers are the folders worker0 and worker1, each with its own /tmp/retro-*.
set -eu
cd "$PRETEND"
printf '%s\\n' "$*" >>calls
workers='0 1' command=''
for word in "$@"; do
  case $word in
    --worker=[01]) workers=${word#*=} ;;
    --command=*) command=${word#*=} ;;
  esac
done
case "$3 $4" in
  'queued-resources create') echo WAITING_FOR_RESOURCES >state ;;
  'queued-resources describe')
    [[ -e state ]] || exit 1
    cat state
    if [[ $(<state) == WAITING* ]]; then echo ACTIVE >state; fi
    ;;
  'queued-resources delete') rm state ;;
  'tpu-vm scp') for worker in $workers; do cp "$5" "worker$worker/${6#*:}"; done ;;
  'tpu-vm ssh')
    for worker in $workers; do
      (cd "worker$worker" && HOME=$PWD bash -c "${command//\\/tmp\\/retro-/$PWD/retro-}")
    done
    ;;
esac
"""


@pytest.fixture
def tpu(tmp_path):
    """tpu(verb, *flags); tpu.root holds worker0, worker1, calls and state."""
    root = tmp_path / "pretend"
    for worker in ("worker0", "worker1"):
        (root / worker).mkdir(parents=True)
    tools = tmp_path / "tools"
    program(tools / "gcloud", GCLOUD)
    program(tools / "uv", f'#!/bin/sh\necho "$@" >>{root}/uv\n')
    program(tools / "gcsfuse", f'#!/bin/sh\necho "$@" >>{root}/gcsfuse\n')
    retro = stand_in(tmp_path)
    where = ["--name=pod", "--zone=here", "--topology=v5e:2x4", "--workdir=gs://my-bucket/my run", "--config=x.py"]

    def call(verb, *flags):
        variables = {"PATH": f"{tools}:{os.environ['PATH']}", "PRETEND": str(root), "POLL_SECONDS": "0.1"}
        return launch("tpu_vm", verb, *where, *flags, retro=retro, **variables)

    call.root = root
    yield call
    if (root / "worker0" / "retro_jax").exists():
        call("stop")


def starts(tpu, worker: int) -> list[list[str]]:
    path = tpu.root / f"worker{worker}" / "retro-bucket" / "my run" / "starts-0.txt"
    return [json.loads(line) for line in lines(path)]


def calls(tpu, word: str) -> list[str]:
    return [line for line in lines(tpu.root / "calls") if word in line]


def test_start_rents_installs_and_trains_on_every_worker(tpu):
    flags = ["--config.steps=100000", "--config.seconds=0.05", "--config.data.directory=gs://my-bucket/data"]
    result = tpu("start", *flags, "--spot", "--", "--profile=it's $(date)")
    assert result.returncode == 0, result.stderr
    (created,) = calls(tpu, "create")
    assert "--type=v5litepod --topology=2x4 --runtime-version=v2-alpha-tpuv5-lite --spot" in created
    wait_for(lambda: starts(tpu, 0) and starts(tpu, 1), "a start on both workers")
    for worker in (0, 1):
        here = tpu.root / f"worker{worker}"
        assert (here / "retro_jax" / "launch" / "hosts" / "tpu_worker.sh").exists()  # the archive was unpacked
        assert starts(tpu, worker)[0] == [
            "train",
            f"--workdir={here}/retro-bucket/my run",
            "--hosts=tpu",
            "--config=x.py",
            *flags[:2],
            f"--config.data.directory={here}/retro-bucket/data",
            "--profile=it's $(date)",
        ]
    assert len([line for line in lines(tpu.root / "gcsfuse") if line.startswith("--implicit-dirs my-bucket ")]) == 2
    assert len([line for line in lines(tpu.root / "uv") if line.endswith("--editable .[tpu]")]) == 2

    stopped = tpu("stop")
    assert stopped.returncode == 0 and "still there and costs" in stopped.stderr
    assert calls(tpu, "delete") == []
    assert tpu("restart", *flags).returncode == 0  # the slice is there: saved, then started from there
    wait_for(lambda: [len(starts(tpu, worker)) for worker in (0, 1)] == [2, 2], "a second start")
    assert len(calls(tpu, "create")) == 1


def test_after_a_preemption_the_dead_request_goes_only_when_that_is_said(tpu):
    (tpu.root / "state").write_text("SUSPENDED\n")
    for verb in ("start", "restart"):
        result = tpu(verb)
        assert result.returncode == 1 and "--delete" in result.stderr
    assert calls(tpu, "delete") + calls(tpu, "create") + calls(tpu, "ssh") == []
    assert tpu("restart", "--delete").returncode == 0
    changes = [line.split()[3] for line in calls(tpu, "queued-resources") if "describe" not in line]
    assert changes == ["delete", "create"]
    wait_for(lambda: starts(tpu, 0) and starts(tpu, 1), "a start on both workers")


def test_stop_with_delete_gives_the_slice_back(tpu):
    (tpu.root / "state").write_text("ACTIVE\n")
    assert tpu("stop", "--delete").returncode == 0
    assert not (tpu.root / "state").exists()
