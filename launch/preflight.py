"""`retro preflight`: does a step of training or evaluation fit on a slice that is not there, and what will a run cost?"""

import json
import sys
from collections.abc import Sequence

from absl import flags

from launch.command.arguments import NOTHING_KEPT, Invocation, Verb
from launch.command.reads import is_read
from launch.command.run import run_verb
from retro_jax.core.streams import deliver

RECIPE = ("train.mesh", "train.accumulation", "model.remat", "model.loss_block")  # what a recipe sets


def _flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("topology", None, "the slice, e.g. v5p:8x8x4, v5e:16x16, h100:8, cpu:8", flag_values=values)
    flags.DEFINE_enum(
        "step", "train", ("train", "evaluate"), "training, or the forward pass of evaluation", flag_values=values
    )
    flags.DEFINE_boolean("no-compile", False, "the analytic answer alone, in seconds", flag_values=values)
    flags.DEFINE_boolean("json", False, "the report as JSON", flag_values=values)


VERB = Verb(
    "preflight",
    "checks that a training step fits on a slice, and estimates its cost, without the slice",
    "--config=configs/retro.py:7b5 --topology=v5p:8x8x4 --no-compile",
    _flags,
    needs_workdir=False,
    interrupted=NOTHING_KEPT,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run_verb(VERB, _preflight, argv)


def _preflight(invocation: Invocation) -> None:
    values = invocation.flags
    if not values.topology:
        raise ValueError(f"--topology is missing. For example: retro preflight {VERB.example}")
    from retro_jax.presets.topologies import parse_topology

    topology = parse_topology(values.topology)
    from retro_jax.preflight.evaluation import evaluation_text, preflight_evaluation
    from retro_jax.preflight.report import preflight, report_text  # here: --help and mistakes need not wait for jax

    def say(line):
        print(f"preflight: {line}", file=sys.stderr, flush=True)

    own = any(is_read(key, RECIPE) for key in invocation.given)
    answer, text = (preflight_evaluation, evaluation_text) if values.step == "evaluate" else (preflight, report_text)
    report = answer(invocation.run, topology, not values["no-compile"].value, say, recipes=not own)
    deliver(json.dumps(report, indent=2) if values.json else text(report))


if __name__ == "__main__":
    sys.exit(main())
