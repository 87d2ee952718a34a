"""Runs the tasks of a sweep: each as a process of its own, as soon as what it needs is finished.

A task is claimed by a lock before it starts. Its process inherits the lock, so that a sweep that is killed leaves the claim
with what still runs: the next call waits for it. A task that fails stops only what needs it.
"""

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from launch.command.steps import as_of_a_shell, in_foreground
from launch.sweep.plan import Plan, Task
from launch.sweep.state import claim, is_done, log_path, make_links, write_done, write_failed
from retro_jax.core.lock import Busy, FileLock
from retro_jax.parallel.preemption import Interrupted, Signals

POLL = 0.2  # seconds between two looks at running processes
ELSEWHERE = 5.0  # seconds between two tries to claim what another process works on
WAITING = "waiting for the running steps to save and end"


class Running(Protocol):
    """A task that was started."""

    def poll(self) -> int | None:
        """Its exit code as a shell gives it; None while it runs."""
        ...

    def signal(self, number: int) -> None:
        """Asks it to save and end."""
        ...


@dataclass
class Ended:
    """How the tasks of a call ended: the notes on those that failed, and what was not run because it needs one of these."""

    failed: dict[str, Mapping] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)  # by task: the one that failed


class Here:
    """A task in a process on this machine; its output goes to the log."""

    def __init__(self, plan: Plan, task: Task, lock: FileLock):
        log = log_path(plan.workdir, task.key)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as output:
            print(f"$ {shlex.join(task.step.command)}", file=output, flush=True)
            self._process = subprocess.Popen(
                task.step.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(lock.fileno(),),
            )

    def poll(self) -> int | None:
        code = self._process.poll()
        return None if code is None else as_of_a_shell(code)

    def signal(self, number: int) -> None:
        if number != signal.SIGINT or not in_foreground():  # the terminal sends Ctrl-C to the process as well
            self._process.send_signal(number)


def wanted(plan: Plan, keys: Sequence[str], checksums: bool = True) -> list[str]:
    """Of some evaluations, those that are not finished, and the tasks that they need; in an order in which they can run."""
    unfinished = [key for key in keys if not is_done(plan.workdir, plan.tasks[key], checksums)]
    needed = plan.needed(unfinished)
    return [key for key in plan.tasks if key in needed]


def run_tasks(
    plan: Plan,
    keys: Sequence[str],
    parallel: int = 1,
    start: Callable[[Plan, Task, FileLock], Running] = Here,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Ended:
    """Runs tasks; those that are finished are skipped.

    Args:
      keys: of `wanted`.
      parallel: how many run at once.

    Raises:
      Interrupted: a signal came; the running tasks have saved.
    """
    turn = _Turn(plan, list(keys), parallel, start, say)
    with Signals(WAITING, turn.hand_on):
        while turn.left or turn.running:
            if Signals.first is None:
                turn.start_ready()
            elif not turn.running:
                break
            if turn.look():
                continue  # what waited for it can start
            time.sleep(POLL if turn.running or not turn.left else ELSEWHERE if turn.idle else 0)
    if Signals.first is not None:
        raise Interrupted(Signals.first)
    return turn.ended


class _Turn:
    """The tasks of one call: left, running, ended."""

    def __init__(self, plan, keys, parallel, start, say):
        self.plan, self.left, self.parallel, self.start, self.say = plan, keys, parallel, start, say
        self.numbers = {key: number for number, key in enumerate(keys, start=1)}
        self.users = plan.users()
        self.running: dict[str, tuple[Running, FileLock, float]] = {}
        self.ended, self.finished = Ended(), set()
        self.told: set[str] = set()
        self.idle = False

    def hand_on(self, number: int) -> None:
        for running, _, _ in tuple(self.running.values()):
            running.signal(number)

    def start_ready(self) -> None:
        """Starts what can start. `idle` says afterwards whether all that is left waits for other processes."""
        self.idle = True
        for key in tuple(self.left):
            if len(self.running) >= self.parallel or Signals.first is not None:
                break
            needs = [one for one in self.plan.tasks[key].needs if one in self.numbers]
            if failed := [one for one in needs if one in self.ended.failed or one in self.ended.blocked]:
                self.left.remove(key)
                self.ended.blocked[key] = self.ended.blocked.get(failed[0], failed[0])
                self.idle = False
            elif self.finished.issuperset(needs):
                self._try(key)

    def _try(self, key: str) -> None:
        task = self.plan.tasks[key]
        lock = claim(self.plan.workdir, task.writes or key)
        try:
            lock.acquire()
        except Busy as busy:
            if key not in self.told:
                self.say(f"{self._place(key)}: {str(busy).partition(', but ')[2].partition('. ')[0]}; waiting for it")
                self.told.add(key)
            return
        self.left.remove(key)
        self.idle = False
        if is_done(self.plan.workdir, task):
            lock.release()
            self.finished.add(key)
            return
        if task.links:
            make_links(task)
        self.say(f"{self._place(key)}")
        self.running[key] = (self.start(self.plan, task, lock), lock, time.monotonic())

    def look(self) -> bool:
        """Notes which tasks have ended; returns whether one has."""
        before = len(self.running)
        for key, (running, lock, started) in tuple(self.running.items()):
            if (code := running.poll()) is None:
                continue
            del self.running[key]
            task, seconds = self.plan.tasks[key], time.monotonic() - started
            if code == 0:
                write_done(self.plan.workdir, task)
                self.finished.add(key)
                self.say(f"[{self.numbers[key]}/{len(self.numbers)}] done in {seconds:.1f} s")
            elif Signals.first is None:
                note = self.ended.failed[key] = write_failed(self.plan.workdir, task, code)
                self.say(
                    f"[{self.numbers[key]}/{len(self.numbers)}] FAILED with exit code {code}: {note['line']} (log: {note['log']})"
                )
            lock.release()
        return len(self.running) < before

    def _place(self, key: str) -> str:
        users, task = self.users[key], self.plan.tasks[key]
        of = users[0] if len(users) == 1 else f"{len(users)} points" if users else ""
        return f"[{self.numbers[key]}/{len(self.numbers)}] {task.step.title} ({of}; {task.directory})"
