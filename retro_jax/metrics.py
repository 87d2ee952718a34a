"""Where a run's numbers go: one JSON line per record, and the same to TensorBoard."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter


class MetricWriter:
    """Appends records to RUN/metrics.jsonl and to TensorBoard events.

    A run that resumes at step s first takes what was written after s out of metrics.jsonl: those steps are done again.
    The lines are kept, in metrics.abandoned.jsonl.
    """

    def __init__(self, directory: Path, step: int):
        self.path = Path(directory) / "metrics.jsonl"
        self.path.touch()
        _abandon_after(self.path, step)
        self.file = open(self.path, "a", encoding="utf-8")
        self.board = SummaryWriter(str(directory), purge_step=step + 1)

    def write(self, step: int, record: Mapping) -> None:
        self.file.write(json.dumps({"step": step, **{key: _plain(value) for key, value in record.items()}}) + "\n")
        self.file.flush()
        for key, value in record.items():
            self.board.add_scalar(key, value, step)

    def close(self) -> None:
        self.file.close()
        self.board.close()


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics.jsonl; a last line cut short by a kill is left out."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def _abandon_after(path: Path, step: int) -> None:
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    lost = [line for line in lines if json.loads(line)["step"] > step]
    if lost:
        with open(path.with_name("metrics.abandoned.jsonl"), "a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lost)
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    os.replace(temporary, path)


def _plain(value):
    """A number for strict JSON, which has no NaN: a non-finite one becomes its name."""
    value = value.item() if isinstance(value, (np.generic, np.ndarray)) else value
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


class Window:
    """Sums of the steps since the last record."""

    def __init__(self):
        self.steps, self.sums = 0, {}

    def add(self, values: Mapping[str, float]) -> None:
        self.steps += 1
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value

    def record(self) -> dict[str, float]:
        """Loss in nats a token, bits per byte over text, gradient norms averaged over the steps."""
        sums, steps = self.sums, max(self.steps, 1)
        record = {
            "loss": sums["nll"] / max(sums["tokens"], 1.0),
            "bpb": sums["text_nll"] / math.log(2) / max(sums["bytes"], 1.0),
            "tokens": sums["tokens"],
            "steps": self.steps,
        }
        return record | {key: value / steps for key, value in sums.items() if key.startswith("grad_norm")}
