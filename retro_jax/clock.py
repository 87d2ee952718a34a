"""Speed of a run: tokens a second, utilization, how long the loop waited for input, seconds over all resumes."""

import json
import time
from pathlib import Path

from data_pipeline.manifests import write_json
from retro_jax.config import RunConfig
from retro_jax.flops import flops_per_token, measured_peak
from retro_jax.sharding import Mesh


class Clock:
    """Times the steps between two records."""

    def __init__(self, run: RunConfig, mesh: Mesh, workdir: Path):
        self.flops = flops_per_token(run.model)
        self.tokens_a_step = run.train.batch * run.model.sequence_length
        self.peak = (run.train.peak_flops or measured_peak(run.model.compute_dtype)) * mesh.devices.size
        self.path = Path(workdir) / "seconds.json"
        self.earlier = json.loads(self.path.read_text())["seconds"] if self.path.exists() else 0.0
        self.started = self.saved = time.perf_counter()
        self.restart()

    def restart(self) -> None:
        """What went by since the last record (a check, compilation) is not a step's time."""
        self.last, self.waited = time.perf_counter(), 0.0

    def record(self, steps: int) -> dict[str, float]:
        """Rates over the `steps` since the last record; writes seconds.json."""
        elapsed = max(time.perf_counter() - self.last, 1e-9)
        tokens = steps * self.tokens_a_step / elapsed
        record = {
            "tokens_per_second": tokens,
            "mfu": tokens * self.flops / self.peak,
            "input_wait": self.waited / elapsed,
        }
        self.restart()
        self.save()
        return record

    def save(self) -> None:
        write_json(self.path, {"seconds": self.earlier + time.perf_counter() - self.started})
