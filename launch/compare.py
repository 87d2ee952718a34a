"""`retro compare RUN RUN...`: the results of several work directories side by side, as a page and as a table."""

import sys
from collections.abc import Sequence

from absl import flags

from launch.command.arguments import Invocation, Verb
from launch.command.run import run_verb
from retro_jax.core.paths import local_folder, require_writable


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("output", "comparison", "folder for compare.html and compare.csv", flag_values=values)
    flags.DEFINE_string("metric", "bpb", "the metric of the tables", flag_values=values)


VERB = Verb(
    "compare",
    "puts the results of several work directories side by side: each metric by set and subset, and differences of On with "
    "intervals over the documents that both have scored",
    "runs/quickstart-smoke runs/quickstart-smoke --output=runs/comparison",
    define_flags=_define_flags,
    needs_workdir=False,
    needs_config=False,
    others="RUN",
    interrupted="Nothing was written; the same command starts from the beginning.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run_verb(VERB, _compare, argv)


def _compare(invocation: Invocation) -> None:
    from retro_jax.evaluate.report.comparison import compare, comparison_text, open_runs, write_comparison

    output = local_folder(invocation.flags.output, "--output")
    require_writable(output, "--output")
    runs = open_runs([local_folder(name, "RUN") for name in invocation.others])
    found = compare(runs, invocation.flags.metric)
    write_comparison(found, output)
    print("\n".join([comparison_text(found), f"Page: {output / 'compare.html'}"]))


if __name__ == "__main__":
    sys.exit(main())
