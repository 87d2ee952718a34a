"""`retro compare RUN RUN...`: the results of several work directories side by side, as a page and as a table."""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch.command.arguments import Invocation, Verb
from launch.command.run import run_verb
from retro_jax.core.files import read_json
from retro_jax.core.paths import local_folder, require_writable


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("output", "comparison", "folder for compare.html and compare.csv", flag_values=values)
    flags.DEFINE_string("metric", "bpb", "the metric of the tables", flag_values=values)


VERB = Verb(
    "compare",
    "puts the results of several work directories side by side: each metric by set and subset, and differences of On with "
    "intervals over the documents that both have scored; of a sweep, all its evaluated points",
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
    folders = [local_folder(name, "RUN") for name in invocation.others]
    runs = open_runs([run for folder in folders for run in expanded(folder)])
    found = compare(runs, invocation.flags.metric)
    write_comparison(found, output)
    print("\n".join([comparison_text(found), f"Page: {output / 'compare.html'}"]))


def expanded(folder: Path) -> list[Path]:
    """The work directories that a folder stands for: itself, or the points of a sweep that are evaluated.

    Raises:
      ValueError: a sweep without an evaluated point.
    """
    if not (folder / "sweep.json").exists():
        return [folder]
    names = read_json(folder / "sweep.json", "Run the same `retro sweep` again.", keys=("points",))["points"]
    points = {name: folder / "points" / name for name in names}
    found = [path for path in points.values() if (path / "results.json").exists()]
    if not found:
        raise ValueError(f"No point of the sweep {folder} is evaluated; run the same `retro sweep` again.")
    if missing := [name for name, path in points.items() if path not in found]:
        print(f"compare: {len(missing)} points of {folder} have no results: {', '.join(missing):.500}", file=sys.stderr)
    return found


if __name__ == "__main__":
    sys.exit(main())
