"""Heartbeats of every process, and a report of all stacks when one makes no progress for too long.

The loop says `watchdog.phase("read a batch", step)` as it goes along. A thread writes that to WORKDIR/hosts/PROCESS.json
every few seconds, so that a process that waits for the others can name the one that hangs, and when nothing moved for
`config.train.stall_seconds` it prints phase, host, step and every stack to standard error and to
WORKDIR/stall-PROCESS.txt. It stops nothing: a scheduler or a person decides that.
"""

import os
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

from retro_jax.core.files import DamagedFile, read_json, write_json
from retro_jax.core.streams import side_channel

BEAT_SECONDS = 5.0
BEAT = ("host", "phase", "step", "moved", "written")  # what `describe` reads of a heartbeat


class Watchdog:
    """The watchdog thread and its state.

    Args:
      workdir: shared by all processes.
      process, processes: this one's number, and how many there are.
      stall_seconds: without a new phase or step; 0 turns the report off.
    """

    def __init__(self, workdir: Path, process: int, processes: int, stall_seconds: float):
        self.workdir, self.process, self.processes = Path(workdir), process, processes
        self.stall_seconds = stall_seconds
        self.facts = {"host": socket.gethostname(), "process": process, "pid": os.getpid()}
        self.spoken, self.channel = False, side_channel("watchdog")
        self.phase("start-up", 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def phase(self, name: str, step: int | None = None) -> None:
        """Records progress: the loop is now at `name` (and at a new `step` if given)."""
        step = self.facts.get("step", 0) if step is None else step
        self.facts = {**self.facts, "phase": name, "step": step, "moved": time.time()}
        self.spoken = False

    def close(self, phase: str) -> None:
        """Ends the thread and records `phase` ("done", "preempted", "failed: ...") as the last one."""
        self.phase(phase)
        self._ended.set()
        self._thread.join()
        self._beat()

    def _watch(self) -> None:
        pause = min(BEAT_SECONDS, self.stall_seconds / 4 or BEAT_SECONDS)
        while True:
            self._beat()
            still = time.time() - self.facts["moved"]
            if self.stall_seconds and still > self.stall_seconds and not self.spoken:
                self.spoken = True  # once a stall
                self._speak(still)
            if self._ended.wait(pause):
                return

    def _beat(self) -> None:
        with self.channel:
            write_json(self._path(self.process), {**self.facts, "written": time.time()})

    def _path(self, process: int) -> Path:
        return self.workdir / "hosts" / f"{process}.json"

    def _speak(self, still: float) -> None:
        facts = self.facts
        lines = [
            f"STALL: process {self.process} on {facts['host']} has been in '{facts['phase']}' at step {facts['step']} "
            f"for {still:.0f} s.",
            *self._others(),
            "Every stack of this process:",
        ]
        text = "\n".join([*lines, *stacks(), ""])
        print(text, file=sys.stderr)
        with self.channel, open(self.workdir / f"stall-{self.process}.txt", "a", encoding="utf-8") as file:
            file.write(text)

    def describe_others(self) -> str:
        """One line: the last heartbeat of every other process, and how to continue."""
        beats = read_beats(self.workdir, self.processes)
        others = [describe(beats[process], process) for process in range(self.processes) if process != self.process]
        return (
            f"another process of this run is gone ({'; '.join(others)}). The last whole checkpoint stays: the same "
            f"command on every host continues from it."
        )

    def _others(self) -> list[str]:
        """Describes the heartbeats of the other processes and names the one that all wait for."""
        if self.processes == 1:
            return []
        beats = read_beats(self.workdir, self.processes)
        lines = [describe(beats[process], process) for process in range(self.processes) if process != self.process]
        stuck = find_stuck(beats, time.time(), self.stall_seconds)
        return [*lines, f"The one that is stuck: {describe(beats[stuck], stuck)}"]


def stacks() -> list[str]:
    """Every thread's stack, the innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return [
        f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame)).rstrip()}"
        for ident, frame in sys._current_frames().items()
    ]


def read_beats(workdir: Path, processes: int) -> dict[int, dict | None]:
    """Each process's last heartbeat; None if it cannot be read."""
    beats = {}
    for process in range(processes):
        try:
            beats[process] = read_json(Path(workdir) / "hosts" / f"{process}.json", "", keys=BEAT)
        except DamagedFile:
            beats[process] = None
    return beats


def find_stuck(beats: dict[int, dict | None], now: float, stall_seconds: float) -> int:
    """The process that the others wait for: without a heartbeat (dead, frozen, cut off), else the one that moved first.

    Those that wait entered their phase after the stuck one entered its own, at the same step or a later one.
    """

    def order(process):
        beat = beats[process]
        if beat is None:
            return (0, 0, 0)
        silent = now - beat["written"] > max(stall_seconds / 2, 3 * BEAT_SECONDS)
        return (1, beat["written"], 0) if silent else (2, beat["step"], beat["moved"])

    return min(beats, key=order)


def describe(beat: dict | None, process: int) -> str:
    if beat is None:
        return f"process {process}: no heartbeat file"
    written = time.strftime("%H:%M:%S", time.localtime(beat["written"]))
    moved = time.strftime("%H:%M:%S", time.localtime(beat["moved"]))
    return (
        f"process {process} on {beat['host']}: in '{beat['phase']}' at step {beat['step']} since {moved}, last sign of "
        f"life {written}"
    )
