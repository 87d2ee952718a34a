"""What the verbs share: flags, configs, help, and how an error reaches the user.

    VERB = Verb("train", "trains a model ...", "--config=configs/retro.py:172m,smoke --workdir=runs/172m-smoke")

    def main(argv=None):
        return run_verb(VERB, execute, argv)  # execute(Invocation) does the work

Exit codes: 0 done, 2 a mistake that the message explains, 3 the disk is full, 75 stopped from outside (SIGTERM, another
host lost; saved, run the same command again), 130 interrupted. RETRO_TRACEBACK=1 shows where an error was raised. Nothing
here imports jax, so help and mistakes answer at once.
"""

import errno
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from launch.arguments import Invocation, Verb, flag_values, parse
from launch.reads import READS
from retro_jax.preemption import EXIT_CODE, LostHost, Preempted

OK, MISTAKE, DISK_FULL, INTERRUPTED = 0, 2, 3, 130
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
    if "--help" in argv or "-h" in argv:
        print(help_text(verb))
        return OK
    try:
        invocation = parse(verb, argv)
        execute(invocation)
    except KeyboardInterrupt:
        print(f"\nretro {verb.name}: interrupted. The same command continues where it stopped.", file=sys.stderr)
        return INTERRUPTED
    except (Preempted, LostHost) as stopped:
        print(f"\nretro {verb.name}: {stopped}", file=sys.stderr)
        return EXIT_CODE
    except Exception as error:
        code, message = explain(error, verb)
        if os.environ.get("RETRO_TRACEBACK") == "1" or message is None:
            raise
        print(f"retro {verb.name}: {message}", file=sys.stderr)
        return code
    return OK


def explain(error: BaseException, verb: Verb) -> tuple[int, str | None]:
    """Exit code and message of an error; no message for what only a mistake of ours can cause."""
    chain = list(_causes(error))
    for cause in chain:
        if _disk_full(cause):
            return DISK_FULL, (
                f"the disk is full: {_room(cause) or str(error).splitlines()[0]} What was finished is whole and nothing "
                f"was removed: make room, then run the same command again; it continues where it stopped."
            )
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] in BUILD_EXTRA:
        return MISTAKE, f"needs the package {error.name}, of the [build] extra: pip install 'retro_jax[build]'."
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError):
        return MISTAKE, f"{error.strerror or error}: {error.filename}. Check the path."
    if isinstance(error, (ValueError, flags.Error)):
        return MISTAKE, str(error)
    return 1, None


def _disk_full(error: BaseException) -> bool:
    """By error number; by message where a library (tensorstore, NumPy's short writes) gives no more."""
    short_write = isinstance(error, OSError) and " requested and " in str(error)
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
    return full or short_write


def _room(error: BaseException) -> str:
    """What is left where the error says it was; empty where it does not say."""
    where = getattr(error, "filename", None)
    return f"{shutil.disk_usage(_existing(Path(where))).free / 2**20:,.0f} MiB are left at {where}." if where else ""


BUILD_EXTRA = ("scann", "sentencepiece", "tokenizers", "safetensors", "pypi_simple", "zstandard")


def _causes(error: BaseException | None):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def help_text(verb: Verb) -> str:
    lines = [f"retro {verb.name}: {verb.summary}", "", "Example:", f"  retro {verb.name} {verb.example}", "", "Flags:"]
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
