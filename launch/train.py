"""`retro train`: trains a RETRO model, a baseline or a retrofit on joined shards."""

import sys
from collections.abc import Sequence

from launch.command import Invocation, Verb, run_verb
from retro_jax.runtime import keep_memory

VERB = Verb(
    "train",
    "trains a RETRO model, a baseline or a retrofit on joined shards; continues from the newest whole checkpoint",
    "--config=configs/quickstart.py:smoke --workdir=runs/quickstart-smoke/retro "
    "--config.data.directory=runs/quickstart-smoke/data",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run_verb(VERB, _train, argv)


def _train(invocation: Invocation) -> None:
    keep_memory()
    from retro_jax.training import train  # here: after the allocator is set, and --help need not wait for jax

    train(invocation.run, invocation.workdir)


if __name__ == "__main__":
    sys.exit(main())
