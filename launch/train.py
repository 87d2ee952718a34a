"""`retro train`: trains a RETRO model, a baseline or a retrofit on joined shards."""

import sys
from collections.abc import Sequence

from absl import flags

from launch.command import processes
from launch.command.arguments import Invocation, Verb
from retro_jax.parallel.preemption import Preempted
from retro_jax.parallel.roll_call import end_within, leave_together
from retro_jax.parallel.runtime import keep_memory


def _define_flags(values: flags.FlagValues) -> None:
    processes.define_flags(values)
    flags.DEFINE_boolean(
        "restart",
        False,
        "begin at step 0 if no whole checkpoint of the run is left (nothing is deleted)",
        flag_values=values,
    )
    flags.DEFINE_string("profile", "", "START:STOP, steps to trace into WORKDIR/profile", flag_values=values)


VERB = Verb(
    "train",
    "trains a RETRO model, a baseline or a retrofit on joined shards; continues from the newest whole checkpoint",
    "--config=configs/quickstart.py:smoke --workdir=runs/quickstart-smoke/retro "
    "--config.data.directory=runs/quickstart-smoke/data",
    define_flags=_define_flags,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    code = processes.run_together(VERB, _train, argv)
    checkpoints = sys.modules.get("retro_jax.run_directory.checkpoints")
    if checkpoints is not None and checkpoints.Checkpoints.faults:
        end_within(10.0, code)  # orbax waits for ever for a save whose directory could not be made
    return code


def _train(invocation: Invocation) -> None:
    keep_memory()
    chosen = invocation.flags
    processes.check_flags(chosen)
    model = invocation.run.model
    if model.retrieves and not model.neighbors:
        raise ValueError(
            "config.model.neighbors=0 leaves encoder and cross-attention nothing to train on; take 1 or more, or "
            "--config.model.retrieval_layers='()' for a decoder without retrieval."
        )
    processes.start_processes(chosen)
    from retro_jax.train.loop import train  # here: after the allocator is set, and --help need not wait for jax

    try:
        train(invocation.run, invocation.workdir, chosen.profile, chosen.restart)
    except Preempted:
        leave_together()
        raise
    leave_together()


if __name__ == "__main__":
    sys.exit(main())
