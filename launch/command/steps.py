"""Steps of a larger command: each is a verb in a process of its own, given the flags that it reads.

`retro sweep` and the quickstart run their builds, trainings and evaluations as a user would, so that each frees its memory
at its end and continues after a kill.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from launch.command.arguments import Verb, flag_name, one_word_flags, override_of
from launch.command.reads import READS, is_read
from retro_jax.config import ABLATIONS, ModelConfig, RunConfig
from retro_jax.parallel.preemption import Signals, exit_code

EXIT_SIGNAL = 128
# Settings that a decoder without retrieval does not read, `()` aside. A key includes all keys below it.
OF_RETRIEVAL = (
    "model.retrieval_layers",
    "model.neighbors",
    *(f"model.{name}" for name in ABLATIONS),
    "model.encoder",
    "train.retrieval_check_every",
    "train.retrieval_alarm_checks",
    "train.trainable",
)


@dataclass(frozen=True)
class Step:
    """One process: `python -m launch.VERB ARGUMENTS`."""

    title: str
    verb: str
    arguments: Sequence[str]

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", f"launch.{self.verb}", *self.arguments]


def of_baseline(run: RunConfig) -> dict:
    """The values, by key, that make of a RETRO config that of its baseline: the same decoder without retrieval."""
    usual = {name: getattr(ModelConfig, name) for name in ABLATIONS}  # what a baseline cannot have
    changed = {f"model.{name}": value for name, value in usual.items() if getattr(run.model, name) != value}
    return {"model.retrieval_layers": (), "train.retrieval_check_every": 0, **changed}


def config_flag(key: str, value) -> str:
    """The flag that sets a key of the config."""
    return f"--config.{key}={value}"


def handed_on(parent: Verb, verb: str, argv: Sequence[str], changes: Sequence[str]) -> list[str]:
    """The flags of `parent` in `argv` for a verb: --config, and the keys that it reads and `changes` does not set."""
    kept, changed = [], {override_of(word) for word in changes}
    for word in one_word_flags(parent, argv):
        key = override_of(word)
        if flag_name(word) == "config" or (key and key not in changed and is_read(key, READS[verb])):
            kept.append(word)
    return kept


def run_step(step: Step) -> int:
    """The exit code of the step's process, as a shell would give it. A signal is passed on, and the step ends by itself:
    it saves, which may take longer than this process would wait for it otherwise."""
    started: list[subprocess.Popen] = []

    def hand_on(number: int) -> None:
        if number != signal.SIGINT or not in_foreground():  # the terminal sends Ctrl-C to the step as well
            for process in started:
                process.send_signal(number)

    with Signals("waiting for this step to save and end", hand_on):
        if Signals.first is not None:
            return exit_code(Signals.first)
        started.append(subprocess.Popen(step.command))
        return as_of_a_shell(started[0].wait())


def as_of_a_shell(code: int) -> int:
    """The exit code of a process that Python waited for, as a shell gives it: 128 and the number of the signal."""
    return EXIT_SIGNAL - code if code < 0 else code


def in_foreground() -> bool:
    """Whether a terminal sends its Ctrl-C to this process group."""
    try:
        with open("/dev/tty", encoding="utf-8") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False
