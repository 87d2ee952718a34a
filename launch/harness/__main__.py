"""`python -m launch.harness ...`: lm_eval's own command line, with the model "retro" known to it and chosen."""

import os
import sys
from collections.abc import Sequence

from launch.command.arguments import NOTHING_KEPT, Verb
from launch.command.run import explain
from retro_jax.core.progress import close_bars
from retro_jax.core.streams import MISTAKE
from retro_jax.parallel.hosts import require_one_process

COMMANDS = ("run", "ls", "validate")  # of lm_eval
VERB = Verb(
    "harness",
    "tasks of lm-evaluation-harness",
    "--model_args workdir=runs/mine,retrieval=on --tasks arc_easy",
    writes=False,
    reads_run=True,
    interrupted=NOTHING_KEPT,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; a user's mistake is one message on standard error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError as error:
        print(
            f"harness: {error.name} is not installed; it comes with: pip install 'retro_jax[build,harness]'",
            file=sys.stderr,
        )
        return MISTAKE
    import launch.harness.model  # noqa: F401, registers the model

    kept = sys.argv
    sys.argv = ["lm_eval", *with_model(argv)]  # lm_eval reads no other
    try:
        require_one_process("harness")
        cli_evaluate()
    except Exception as error:
        close_bars()
        code, message = explain(error, VERB)
        if message is None or os.environ.get("RETRO_TRACEBACK", "0") not in ("", "0"):
            raise
        print(f"harness: {message}", file=sys.stderr)
        return code
    finally:
        sys.argv = kept
    return 0


def with_model(argv: Sequence[str]) -> list[str]:
    """The words of an lm_eval command line, `run` and `--model retro` where they are left out."""
    words = list(argv)
    if words[:1] and words[0] in COMMANDS[1:]:
        return words
    words = words[1:] if words[:1] == ["run"] else words
    named = any(
        word in ("--model", "-M", "--config", "-C") or word.startswith(("--model=", "--config=")) for word in words
    )
    return ["run", *words] if named else ["run", "--model", "retro", *words]


if __name__ == "__main__":
    sys.exit(main())
