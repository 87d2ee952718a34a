"""TensorBoard's HParams of a sweep: SWEEP/hparams/POINT holds the axes and the metrics of a point, without TensorFlow.

tensorboard --logdir SWEEP/hparams
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import hparams, scalar

from retro_jax.sweep.outcomes import DONE, Outcome, known_metrics

FILE = "events.out.tfevents.sweep"  # TensorBoard knows a file by "tfevents"


def write_hparams(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Writes one events file for each point that is done, and removes those of points that are not, or no more."""
    done = [one for one in outcomes if one.state == DONE]
    for one in done:
        _write(Path(folder).absolute() / one.name, one)
    for path in Path(folder).glob(f"*/{FILE}"):
        if path.parent.name not in {one.name for one in done}:
            path.unlink()
            with contextlib.suppress(OSError):  # it holds something of a user's
                path.parent.rmdir()


def _write(folder: Path, one: Outcome) -> None:
    axes = {key: _plain(value) for key, value in {**one.axes, "train.seed": one.seed}.items()}
    values = {metric: one.value(metric) for metric in known_metrics()}
    values = {metric: float(value) for metric, value in values.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".tfevents.writing"
    temporary.unlink(missing_ok=True)  # the writer appends
    writer = RecordWriter(str(temporary))
    for event in _events(axes, values, (one.workdir / "results.json").stat().st_mtime):
        writer.write(event.SerializeToString())
    writer.close()
    os.replace(temporary, folder / FILE)


def _events(axes: Mapping, values: Mapping[str, float], when: float) -> list[Event]:
    summaries = list(hparams(axes, values))
    end = summaries.pop()
    summaries += [scalar(metric, value) for metric, value in values.items()]
    version = Event(wall_time=when, file_version="brain.Event:2")
    return [version, *(Event(wall_time=when, step=0, summary=summary) for summary in [*summaries, end])]


def _plain(value):
    return value if isinstance(value, (bool, int, float, str)) else str(value)
