"""Writes a run's metrics: one JSON line per record, the same to TensorBoard and, if asked, to Weights & Biases."""

import contextlib
import json
import math
import os
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from retro_jax.core.files import atomic_path
from retro_jax.core.side_files import free_name
from retro_jax.core.streams import side_channel


class MetricWriter:
    """Appends records to RUN/metrics.jsonl, and to TensorBoard events.

    A run that resumes at step s first removes the records after s from metrics.jsonl: those steps are repeated.
    The lines are kept in metrics.abandoned.jsonl. A line that storage refuses is kept in memory, with a message on
    standard error, and written with the next one.
    """

    def __init__(self, directory: Path, step: int, also=None):
        self.path = Path(directory).absolute() / "metrics.jsonl"  # tensorboardX reads gs:... as a bucket
        self.path.touch()
        self.records: list[dict] = []
        self.also = also  # has write(step, record) and close()
        self.unwritten, self.board, self.channel = "", None, side_channel("tensorboard")
        self.rewind(step)

    def rewind(self, step: int) -> None:
        """Removes the records after `step`."""
        _abandon_after(self.path, step)
        left = [record for record in map(json.loads, self.unwritten.splitlines()) if record["step"] <= step]
        self.unwritten = "".join(json.dumps(record) + "\n" for record in left)
        self.records = [*read_metrics(self.path), *left]
        self.length = self.path.stat().st_size
        self._close_board()
        self.purge = step + 1

    def write(self, step: int, record: Mapping) -> None:
        line = {"step": step, **{key: _plain(value) for key, value in record.items()}}
        self.records.append(line)
        self.unwritten += json.dumps(line) + "\n"
        try:
            self._append()
        except OSError as error:
            print(f"metrics: step {step} is not written yet ({error.strerror}).", file=sys.stderr)
        with self.channel:
            self._show(step, record)
        if self.channel.failed:
            self._close_board()  # its file may end in half a record, so the next write starts another file
        if self.also is not None:
            self.also.write(step, line)

    def _append(self) -> None:
        """Writes pending lines; a partial write on a full disk is removed again."""
        with open(self.path, "r+b", buffering=0) as file:
            file.truncate(self.length)
            file.seek(self.length)
            wanted = self.unwritten.encode()
            if file.write(wanted) != len(wanted):
                file.truncate(self.length)
                raise OSError(28, os.strerror(28))
        self.length, self.unwritten = self.length + len(wanted), ""

    def _show(self, step: int, record: Mapping) -> None:
        if self.board is None:
            name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{time.time_ns()}"
            self.board = RecordWriter(str(self.path.parent / name))
            self._add(file_version="brain.Event:2")
            self._add(step=self.purge, session_log=SessionLog(status=SessionLog.START))
        for key, value in record.items():
            self._add(step=step, summary=scalar(key, value))
        self.board.flush()

    def _add(self, **facts) -> None:
        self.board.write(Event(wall_time=time.time(), **facts).SerializeToString())

    def _close_board(self) -> None:
        if self.board is not None:
            with contextlib.suppress(Exception):
                self.board.close()
        self.board = None

    def close(self) -> None:
        if self.unwritten:
            print(f"metrics: {self.unwritten.count(chr(10))} records could not be written.", file=sys.stderr)
        self._close_board()
        if self.also is not None:
            self.also.close()


class NoWriter:
    """The MetricWriter of the other processes, which writes nothing: process 0 writes for all."""

    def rewind(self, step: int) -> None:
        pass

    def write(self, step: int, record: Mapping) -> None:
        pass

    def close(self) -> None:
        pass


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics.jsonl; a last line cut short by a kill is left out.

    Damaged lines are left out too, with a message on standard error.
    """
    records, damaged = parse_metrics(Path(path).read_bytes())
    if damaged:
        print(f"metrics: {path} {describe_damage(damaged)}; left out.", file=sys.stderr)
    return [record for _, record in records]


def parse_metrics(content: bytes) -> tuple[list[tuple[bytes, dict]], list[int]]:
    """([(line, record)], numbers of the lines that are no record, from 1); a last line without its end is neither."""
    records, damaged = [], []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            if type(record["step"]) is not int:
                raise ValueError
            records.append((line, record))
        except (ValueError, TypeError, KeyError):
            damaged.append(number)
    return records, damaged


def describe_damage(damaged: list[int]) -> str:
    return f"has {len(damaged)} damaged line(s), the first is line {damaged[0]}"


def _abandon_after(path: Path, step: int) -> None:
    content = path.read_bytes()
    records, damaged = parse_metrics(content)
    kept = b"".join(line + b"\n" for line, record in records if record["step"] <= step)
    lost = b"".join(line + b"\n" for line, record in records if record["step"] > step)
    if damaged:
        aside = free_name(path, "damaged")
        shutil.copyfile(path, aside)
        print(f"metrics: {path} {describe_damage(damaged)}; removed, and all kept in {aside.name}.", file=sys.stderr)
    if lost:
        with open(path.with_name("metrics.abandoned.jsonl"), "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")  # after a line that a kill cut short
            file.write(lost)
    if kept != content:
        with atomic_path(path) as temporary:
            temporary.write_bytes(kept)


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
