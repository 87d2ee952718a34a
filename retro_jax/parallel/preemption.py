"""Handling of SIGINT (Ctrl-C), SIGTERM (a scheduler, `kill`) and SIGHUP (a closed terminal).

    with Signals(): ...                   the first one raises Interrupted: for work that loses nothing when it stops
    Preemption(processes)                 training continues to a step that it can save; its loops ask `reached`

A signal that was ignored when the process started stays ignored (`nohup`, the background jobs of a script). A second
SIGINT ends the process at once, with 130: every file is written under another name and renamed, so none is half-written.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection

from retro_jax.core.streams import fresh_line

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_CODE = 75  # sysexits.h: a temporary failure, the user (or a scheduler) is invited to retry
INTERRUPTED = 130  # a shell's code for SIGINT: a person stopped it, so no scheduler restarts it


def exit_code(number: int) -> int:
    """The exit code of a command that a signal stopped and that saved everything."""
    return INTERRUPTED if number == signal.SIGINT else EXIT_CODE


def name_of(number: int) -> str:
    return signal.Signals(number).name


@contextlib.contextmanager
def kept_handlers():
    """Restores the signal handlers that a library replaced when it started."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) != handler is not None:
                signal.signal(number, handler)


class Interrupted(KeyboardInterrupt):
    """A signal stopped work that needs no save. A KeyboardInterrupt, so that no `except Exception` catches it."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__(name_of(number))
        self.number = number


class Preempted(Exception):
    """The work stopped because of a signal; the message says what is saved and how to continue."""

    def __init__(self, message: str, number: int = signal.SIGTERM):
        super().__init__(message)
        self.number = number


class LostHost(Exception):
    """Another process of the run is gone; a restart continues from the last whole checkpoint."""


class Signals:
    """Handles signals while it is open, in the main thread (Python delivers them to no other).

    Args:
      words: the message logged at a signal, which then raises nothing; empty: the first signal raises Interrupted.
      hear: called with the number of every signal at once, even while the main thread is in a long call of a library.
      leave: signals that another handler keeps.
    """

    first: int | None = None  # the first signal since the outermost listener of this process was opened
    interrupts = 0  # SIGINTs since then
    listening = 0

    def __init__(self, words: str = "", hear: Callable[[int], None] | None = None, leave: Collection[int] = ()):
        self._words, self._hear, self._leave = words, hear, leave
        self._before: dict = {}
        self._open = False

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            return self
        self._open = True
        if not Signals.listening:
            Signals.first, Signals.interrupts = None, 0
        Signals.listening += 1
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        for number in SIGNALS:
            if number not in self._leave and signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._act)
        return self

    def __exit__(self, *error) -> None:
        if not self._open:
            return
        self._open = False
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)
        Signals.listening -= 1

    def _act(self, number: int, frame) -> None:
        first, Signals.first = Signals.first, Signals.first or number
        if first is None and not self._words:
            raise Interrupted(number)

    def _listen(self) -> None:
        """Runs in its own thread, because a Python handler waits until the main thread returns from a library's long call."""
        while number := os.read(self._read, 1)[0]:
            if number not in self._before:
                continue
            Signals.interrupts += number == signal.SIGINT
            again = number == signal.SIGINT and Signals.interrupts > 1
            fresh_line()
            if self._words and not again:
                once_more = "once more " if number == signal.SIGINT else "twice "
                print(f"{name_of(number)}: {self._words}; Ctrl-C {once_more}stops it at once.", file=sys.stderr)
            if self._hear is not None:
                with contextlib.suppress(Exception):
                    self._hear(number)
            if again:
                print("Ctrl-C again: stopped at once; finished files are complete.", file=sys.stderr)
                os._exit(INTERRUPTED)


class Preemption:
    """A preemption notice for a loop that calls `reached` once a turn on every process and saves where it is True.

    It answers True at a turn that all processes agree on, so that all save the same step. With several processes jax
    carries the notice between them, of SIGTERM alone, which it catches itself: the other signals are turned into that.
    It handles signals from its construction; `close` restores the handlers.
    """

    def __init__(self, processes: int):
        self.several = processes > 1
        self.turn, self.agreed = 0, False
        self.signals = Signals(
            "stopping at the next safe point",
            self._hand_on if self.several else None,
            (signal.SIGTERM,) if self.several else (),
        )
        self.signals.__enter__()

    def _hand_on(self, number: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    @property
    def number(self) -> int:
        """The signal; SIGTERM where another process got it, or jax did."""
        return Signals.first or signal.SIGTERM

    @property
    def name(self) -> str:
        heard = Signals.first is not None or not self.several
        return name_of(self.number) if heard else "SIGTERM, or a signal to another process"

    def reached(self) -> bool:
        """Whether to stop here; stays True."""
        self.turn += 1
        if not self.several:
            return Signals.first is not None
        if not self.agreed:
            from jax.experimental import multihost_utils

            self.agreed = multihost_utils.reached_preemption_sync_point(self.turn)
        return self.agreed

    def stop_here(self, verb: str) -> None:
        """Raises Preempted after a notice, for work that has nothing to save."""
        if self.reached():
            raise Preempted(
                f"stopped by {self.name}; nothing was half-written. Run the same `retro {verb}` again.",
                self.number,
            )

    def close(self) -> None:
        self.signals.__exit__()
