"""`retro build`: runs the stages of the data pipeline in order and makes only what is missing."""

import json
import math
import sys
from collections.abc import Sequence

from absl import flags

from launch.command import engine
from launch.command.arguments import NOTHING_KEPT, Invocation, Verb
from launch.command.run import run_verb
from retro_jax.core.streams import deliver


def _flags(values: flags.FlagValues) -> None:
    engine.define_flags(values)
    flags.DEFINE_boolean("plan", False, "build nothing; estimate time and memory from a sample", flag_values=values)
    flags.DEFINE_float(
        "plan_tokens", 0.0, "tokens of the corpus to plan for; 0: the config's sources", flag_values=values
    )
    flags.DEFINE_integer("plan_nodes", 1, "number of machines like this one", flag_values=values)
    flags.DEFINE_string(
        "plan_accelerator", "", "estimate embedding on this chip at its published rate, e.g. h100", flag_values=values
    )
    flags.DEFINE_boolean("json", False, "print the plan as JSON", flag_values=values)


VERB = Verb(
    "build",
    "makes from text: documents, tokenizer, chunks, embeddings, index, neighbors and joined shards, under WORKDIR/data; "
    "makes only what is missing",
    "--config=configs/quickstart.py:smoke --workdir=runs/quickstart-smoke",
    define_flags=_flags,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run_verb(VERB, _build, argv)


def _build(invocation: Invocation) -> None:
    from data_pipeline.pipeline import build
    from data_pipeline.stages.lock import BuildLock

    values = invocation.flags
    check_flags(values)
    if values.plan:
        from data_pipeline.inputs import check_inputs
        from data_pipeline.plan import plan_text
        from launch.plan import make_plan

        try:
            check_inputs(invocation.run, invocation.data_directory)
            found = make_plan(invocation.run, values.plan_tokens, values.plan_nodes, values.plan_accelerator)
        except KeyboardInterrupt as interrupted:
            interrupted.kept = NOTHING_KEPT
            raise
        deliver(json.dumps(found) if values.json else plan_text(found))
        return
    with BuildLock(invocation.data_directory) as lock, engine.chosen_engine(values, lock):
        build(invocation.run, invocation.workdir)


def check_flags(values: flags.FlagValues) -> None:
    """Raises ValueError where the other flags would make a flag ignored, or its value is out of range."""
    of_plan, of_ray = ("plan_tokens", "plan_nodes", "plan_accelerator", "json"), engine.FLAGS
    given = {name for name in (*of_plan, *of_ray) if values[name].value != values[name].default}
    if not values.plan and (extra := sorted(given & set(of_plan))):
        raise ValueError(f"--{extra[0]}={values[extra[0]].value} is of --plan; add --plan, or leave it out.")
    if values.plan and (extra := sorted(given & set(of_ray))):
        raise ValueError(
            f"--{extra[0]}={values[extra[0]].value} is of a build, but --plan measures in this process; leave one out."
        )
    engine.check_flags(values)
    if not 0 <= values.plan_tokens < math.inf or values.plan_nodes < 1:
        raise ValueError(
            f"A plan needs tokens and nodes, but got --plan_tokens={values.plan_tokens} and "
            f"--plan_nodes={values.plan_nodes}; take 1 or more (--plan_tokens=0: the config's sources)."
        )


if __name__ == "__main__":
    sys.exit(main())
