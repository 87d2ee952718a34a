"""What a step of a sweep does on a Ray node, without Ray: its devices, its lock, its log, its exit code."""

import dataclasses
import threading
import time

import pytest

from data_pipeline.stages.run import StageError
from launch.sweep.on_ray import _Job, devices, run_on_node
from launch.sweep.state import claim, last_line, log_path
from retro_jax.config import MeshConfig, RunConfig, TrainConfig


@pytest.mark.parametrize(("mesh", "count"), [((-1, 1, 1), 1), ((2, 4, 1), 8), ((-1, 4, 2), 8)])
def test_a_step_asks_for_the_devices_of_its_mesh(mesh, count):
    assert devices(dataclasses.replace(RunConfig(), train=TrainConfig(mesh=MeshConfig(*mesh)))) == count


def test_a_step_has_its_exit_code_and_its_log(tmp_path):
    assert run_on_node(str(tmp_path), "train-1", ["platform"]) == 0
    assert run_on_node(str(tmp_path), "train-1", ["no_such_module"]) == 1
    log = log_path(tmp_path, "train-1")
    assert log.read_text().count("$ ") == 2 and last_line(log).endswith("No module named no_such_module")
    assert not (tmp_path / "state").exists()  # the lock went with its step


def test_a_step_waits_for_one_that_outlived_its_node(tmp_path):
    """Guards against two processes of one step: that of a lost Ray worker may still run."""
    lock, before = claim(tmp_path, "train-1.node"), time.monotonic()
    lock.acquire()
    threading.Timer(0.3, lock.release).start()
    assert run_on_node(str(tmp_path), "train-1", ["platform"]) == 0
    assert time.monotonic() - before >= 0.3


def test_a_job_that_ray_lost_is_a_failed_step_with_its_reason(tmp_path):
    class Lost:
        def poll(self, job):
            raise StageError("Ray lost the job: out of memory")

    assert _Job(Lost(), None, tmp_path / "logs" / "a.log").poll() == 1
    assert last_line(tmp_path / "logs" / "a.log") == "Ray lost the job: out of memory"
