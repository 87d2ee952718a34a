"""Runs a verb: flags, configs, help, exit codes and error messages.

    VERB = Verb("train", "trains a model ...", "--config=configs/retro.py:172m,smoke --workdir=runs/172m-smoke")

    def main(argv=None):
        return run_verb(VERB, execute, argv)  # execute(Invocation) does the work

Exit codes: 0 done, 2 a mistake that the message explains, 3 the disk is full, 75 stopped from outside (SIGTERM, SIGHUP,
another host lost; saved, run the same command again), 130 interrupted by Ctrl-C (saved too, but a person wanted it to
stop), 141 the reader of the output went away. A verb whose work is files (build, train, evaluate, database add) ends with 0
when they are complete, even if nothing could be printed; one whose result is text (sample, preflight, database
info, build --plan, --help) does not. RETRO_TRACEBACK=1 shows where an error was raised. Nothing here imports jax, so help
and usage errors are reported at once.
"""

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from launch.command.arguments import Invocation, Verb, flag_values, parse
from launch.command.explain import is_foreign, words
from launch.command.reads import READS
from retro_jax.core.progress import close_bars
from retro_jax.core.streams import DISK_FULL, MISTAKE, OutputLost, deliver, lost_output, protect
from retro_jax.parallel.preemption import (
    EXIT_CODE,
    INTERRUPTED,
    SIGNALS,
    LostHost,
    Preempted,
    Signals,
    exit_code,
    name_of,
)

OK = 0
CONFIG_HELP = """\
  --config=FILE.py[:ARGUMENTS]   what to run, e.g. configs/retro.py:172m,smoke
  --config.SECTION.KEY=VALUE     changes one value, e.g. --config.train.steps=100 (keys: retro_jax/config/)
  --workdir=DIR                  where results go; running again continues there"""


def run_verb(verb: Verb, execute: Callable[[Invocation], None], argv: Sequence[str] | None = None) -> int:
    """Parses, executes and returns the exit code; a user's mistake is one message on standard error.

    Args:
      argv: what follows the verb; None takes it from the process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    protect()
    with Signals():
        try:
            code = _run(verb, execute, argv)
        except BaseException as error:
            close_bars()  # the message gets a line of its own
            code = _end(error, verb)
    if code in (EXIT_CODE, INTERRUPTED):
        _stay_on_the_way_out()
    return code


def _run(verb: Verb, execute: Callable[[Invocation], None], argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv:
        deliver(help_text(verb))
        return OK
    execute(parse(verb, argv))
    if (lost := lost_output()) is not None:
        lost.tell(f"retro {verb.name}", " The work is done.")
    return OK


def _end(error: BaseException, verb: Verb) -> int:
    """Reports why a verb ended early and returns the exit code; re-raises errors that only a bug of ours can cause."""
    name = f"retro {verb.name}"
    match error:
        case OutputLost():
            return error.tell(name)
        case KeyboardInterrupt():
            number = getattr(error, "number", signal.SIGINT)
            kept = getattr(error, "kept", verb.interrupted)
            code, message = exit_code(number), f"interrupted by {name_of(number)}. {kept}"
        case Preempted():
            code, message = exit_code(error.number), str(error)
        case LostHost():
            code, message = EXIT_CODE, str(error)
        case _:
            code, message = explain(error, verb)
            if os.environ.get("RETRO_TRACEBACK", "0") not in ("", "0") or message is None:
                raise error
    print(f"{name}: {message}", file=sys.stderr)
    return code


def _stay_on_the_way_out() -> None:
    """Ignores further signals, because a scheduler's second one must not kill a process that has saved: its exit code would be lost."""
    for number in SIGNALS:
        if number != signal.SIGINT and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, lambda number, frame: None)


def explain(error: BaseException, verb: Verb) -> tuple[int, str | None]:
    """Exit code and message of an error; no message for errors that only a bug of ours can cause."""
    chain = list(_causes(error))
    for cause in chain:
        if _disk_full(cause):
            said = str(error).splitlines()[0]
            if isinstance(error, ValueError) and not is_foreign(error):
                return DISK_FULL, f"the disk is full: {said}"  # our own message says what is kept
            return DISK_FULL, (
                f"the disk is full: {_room(cause) or said} Finished files are complete and nothing "
                f"was removed: make room, then run the same command again; it continues where it stopped."
            )
    if isinstance(error, flags.Error) or (isinstance(error, ValueError) and not is_foreign(error)):
        return MISTAKE, str(error)
    message = words(error)
    return (1, None) if message is None else (MISTAKE, message)


def _disk_full(error: BaseException) -> bool:
    """Recognizes a full disk by error number, or by message where a library (tensorstore, NumPy) gives none."""
    short_write = isinstance(error, OSError) and " requested and " in str(error)
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
    return full or short_write


def _room(error: BaseException) -> str:
    """The free space at the error's path; empty if it names none."""
    where = getattr(error, "filename", None)
    return f"{shutil.disk_usage(_existing(Path(where))).free / 2**20:,.0f} MiB are free at {where}." if where else ""


def _causes(error: BaseException | None):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def help_text(verb: Verb) -> str:
    lines = [f"retro {verb.name}: {verb.summary}", "", "Example:", f"  retro {verb.name} {verb.example}", "", "Flags:"]
    if verb.needs_config:
        lines.append(CONFIG_HELP if verb.needs_workdir else CONFIG_HELP.rsplit("\n", 1)[0])
    if verb.reads_run:
        lines.append(
            "  --config may be left out: it then is that of the model trained in WORKDIR/retro or in WORKDIR itself."
        )
    if verb.reads_build:
        lines.append("  --config may be left out: it then is that of the build in WORKDIR/data.")
    if verb.name in READS:
        lines.append(f"  {'Keys that this verb reads:':<31}config.{', config.'.join(READS[verb.name])}")
    values = flag_values(verb)
    for name in sorted(set(values) - {"workdir"}):
        flag = values[name]
        default = "" if flag.default is None else f" (default {flag.default!r})"
        lines.append(f"  --{name:<29}{flag.help}{default}")
    return "\n".join(lines)
