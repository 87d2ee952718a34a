"""The times of records, by a made-up clock: where a step is run while it is dispatched, and where it is not."""

import types

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


@pytest.mark.parametrize("at_once", [True, False])
def test_every_step_has_its_own_time(at_once, tmp_path, monkeypatch):
    """Guards against the time of one step in the record of another: the last record would show a speed of no machine."""
    device, run = Device(), make_run(steps=4)
    now = types.SimpleNamespace(perf_counter=lambda: device.now)
    monkeypatch.setattr(clock, "time", now)
    monkeypatch.setattr(step_log, "time", now)
    log = step_log.StepLog(run, tmp_path, make_mesh(MeshConfig()), 0, SpikeLimit(run.train))
    monkeypatch.setattr(step_log.jax, "device_get", device.wait)
    for step in range(1, 5):  # as the loop does
        log.add(step, device.dispatch(at_once), (0, 0), None)
        log.settle(0 if step == 4 else 1, 0.0)
    log.close()
    expected = run.train.batch * run.model.sequence_length / SECONDS
    found = [record["tokens_per_second"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert found == pytest.approx([expected] * 4)
