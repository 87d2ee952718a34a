"""The times of records, by a made-up clock: where a step is run while it is dispatched, and where it is not."""

import types

import numpy as np
import pytest
from training_fixture import make_run

from retro_jax.config import MeshConfig
from retro_jax.parallel.sharding import make_mesh
from retro_jax.train import clock, step_log
from retro_jax.train.health import SpikeLimit
from retro_jax.train.metrics import read_metrics

SECONDS = 2.0  # of a step
SUMS = ("nll", "text_nll", "tokens", "bytes", "grad_norm", "skipped")


class Device:
    """A made-up clock and what a step leaves on a device: sums that exist when the step has ended."""

    def __init__(self):
        self.now = self.free = 100.0

    def dispatch(self, at_once: bool) -> dict:
        self.free = max(self.free, self.now) + SECONDS
        if at_once:
            self.now = self.free
        return {name: Sum(self, self.free) for name in SUMS}

    def wait(self, sums: dict) -> dict:
        self.now = max(self.now, *(one.ends for one in sums.values()))
        return dict.fromkeys(sums, 1.0)


class Sum:
    def __init__(self, device, ends):
        self.device, self.ends = device, ends

    def is_ready(self) -> bool:
        return self.device.now >= self.ends


def opened(run, workdir, device, monkeypatch) -> step_log.StepLog:
    """A log of a run from step 0 by the device's clock."""
    now = types.SimpleNamespace(perf_counter=lambda: device.now)
    monkeypatch.setattr(clock, "time", now)
    monkeypatch.setattr(step_log, "time", now)
    log = step_log.StepLog(run, workdir, make_mesh(MeshConfig()), 0, SpikeLimit(run.train))
    monkeypatch.setattr(step_log.jax, "device_get", device.wait)
    return log


@pytest.mark.parametrize("at_once", [True, False])
def test_every_step_has_its_own_time(at_once, tmp_path, monkeypatch):
    """Guards against the time of one step in the record of another: the last record would show a speed of no machine."""
    device, run = Device(), make_run(steps=4)
    log = opened(run, tmp_path, device, monkeypatch)
    for step in range(1, 5):  # as the loop does
        log.add(step, device.dispatch(at_once), (0, 0), None)
        log.settle(0 if step == 4 else 1, 0.0)
    log.close()
    expected = run.train.batch * run.model.sequence_length / SECONDS
    found = [record["tokens_per_second"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert found == pytest.approx([expected] * 4)


def test_checks_are_no_steps_time_and_stalls_are_counted_once(tmp_path, monkeypatch):
    """Guards against a check between two records that takes the steps before it along, and a stall that is taken out twice."""
    device, run = Device(), make_run(steps=40, log_every=10)
    log = opened(run, tmp_path, device, monkeypatch)
    stalled = 0.0
    for step in range(1, 41):
        log.add(step, device.dispatch(True), (0, 0), None)
        if step == 20:  # a save and a check at one step
            log.settle(0, stalled)
            device.now += 15.0
            stalled += 15.0
        log.settle(1, stalled)
        if step in (15, 20):
            log.settle(0, stalled)
            began = device.now
            device.now += 50.0
            log.write_check(step, {}, began)
    log.settle(0, stalled)
    speeds = [record["tokens_per_second"] for record in read_metrics(tmp_path / "metrics.jsonl") if "loss" in record]
    expected = run.train.batch * run.model.sequence_length * 10 / (10 * SECONDS)
    assert speeds == pytest.approx([expected, expected, expected * 20 / 35, expected])
    assert log.clock.step_seconds == pytest.approx(40 * SECONDS)
    log.clock.rewind(20, stalled)
    assert log.clock.step_seconds == pytest.approx(20 * SECONDS)  # those behind it are done again
    log.close()


@pytest.mark.parametrize(("platform", "rows"), [("cpu", 1_024), ("gpu", 8_192), ("tpu", 8_192)])
def test_the_peak_of_an_accelerator_is_that_of_large_matrices(monkeypatch, platform, rows):
    """Guards against an MFU of several hundred percent: a small product does not fill an accelerator."""
    shapes = []

    def ones(shape, dtype):
        shapes.append(shape)
        return np.ones((8, 8), dtype)

    monkeypatch.setattr(clock.jax, "default_backend", lambda: platform)
    monkeypatch.setattr(clock.jnp, "ones", ones)
    assert clock.measured_peak("float32") > 0 and shapes == [(rows, rows)]
