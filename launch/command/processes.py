"""The flags, the start and the end of verbs that several processes run together: train, evaluate and import."""

import os
import traceback
from collections.abc import Callable, Sequence

from absl import flags

from launch.command.arguments import Invocation, Verb
from launch.command.run import run_verb
from retro_jax.parallel.hosts import MODES, find_hosts
from retro_jax.parallel.roll_call import leave_alone, start, started

JOIN_TIMEOUT = 300.0  # seconds


def define_flags(values: flags.FlagValues) -> None:
    """--hosts and what belongs to it."""
    flags.DEFINE_enum("hosts", "auto", MODES, "who takes part; auto: SLURM, GKE, TPU, else one", flag_values=values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0 (--hosts=flags)", flag_values=values)
    flags.DEFINE_integer("processes", None, "how many processes (--hosts=flags)", flag_values=values)
    flags.DEFINE_integer("process", None, "number of this process, from 0 (--hosts=flags)", flag_values=values)
    flags.DEFINE_float("join_timeout", JOIN_TIMEOUT, "seconds to wait for all processes", flag_values=values)


def check_flags(chosen: flags.FlagValues) -> None:
    """Raises ValueError for a waiting time outside its range."""
    if not 0 < chosen.join_timeout < float("inf"):
        raise ValueError(f"--join_timeout={chosen.join_timeout} must be a number of seconds above 0.")


def start_processes(chosen: flags.FlagValues) -> None:
    """Waits until all processes are there; one alone returns at once.

    Raises:
      ValueError: flags or an environment that do not say which process this is.
    """
    hosts = find_hosts(
        chosen.hosts,
        os.environ,
        coordinator=chosen.coordinator,
        processes=chosen.processes,
        process=chosen.process,
    )
    start(hosts, chosen.join_timeout)


def run_together(verb: Verb, execute: Callable[[Invocation], None], argv: Sequence[str] | None = None) -> int:
    """`run_verb` for a verb that several processes run; where one of them ends early it leaves, so that none waits for it."""
    try:
        code = run_verb(verb, execute, argv)
    except Exception:  # a mistake of ours
        if not started():
            raise
        traceback.print_exc()
        code = 1
    leave_alone(code)
    return code
