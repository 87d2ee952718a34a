"""A notice that this machine will be taken away: SIGTERM, from a scheduler or from hand.

Every loop asks `reached` once a turn, in the same order on every process. It answers True at a turn that all processes
agree on, so that all save the same step. With several processes jax carries the notice between them (and catches
SIGTERM itself, from the start of its distributed service on); with one, a flag of our own does.
"""

import signal
import sys

EXIT_CODE = 75  # sysexits.h: a temporary failure, the user is invited to retry


class Preempted(Exception):
    """The work stopped because of a notice; the message says what is saved and how to go on."""


class LostHost(Exception):
    """Another process of the run is gone; what was saved last is whole, and a restart goes on from there."""


class Preemption:
    """Listens from its making on; `close` gives SIGTERM back."""

    def __init__(self, processes: int):
        self.several = processes > 1
        self.turn = 0
        self.noticed = self.agreed = False
        self.before = None if self.several else signal.signal(signal.SIGTERM, self._notice)

    def _notice(self, number, frame) -> None:
        self.noticed = True
        print("\nSIGTERM: stopping at the next safe point.", file=sys.stderr, flush=True)

    def reached(self) -> bool:
        """Whether to stop here; stays True."""
        self.turn += 1
        if not self.agreed and self.several:
            from jax.experimental import multihost_utils

            self.agreed = multihost_utils.reached_preemption_sync_point(self.turn)
        return self.agreed or self.noticed

    def stop_here(self, verb: str) -> None:
        """Raises Preempted where a notice came, for work that saves nothing on its way."""
        if self.reached():
            raise Preempted(f"stopped by SIGTERM; nothing was half-written. Run the same `retro {verb}` again.")

    def close(self) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)
