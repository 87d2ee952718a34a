"""The command line of `retro sweep`."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch.command import engine
from launch.command.arguments import Invocation, Verb, flag_name, one_word_flags, override_of
from launch.command.config_files import load_sweep
from launch.command.run import run_verb
from launch.sweep.plan import Plan
from launch.sweep.planner import make_plan
from launch.sweep.points import make_points
from retro_jax.config import to_dict
from retro_jax.core.streams import deliver

LAUNCHERS = ("gpu_box", "slurm", "gke", "tpu_vm")  # scripts of launch/hosts
FAILED = 1  # exit code where a point failed


def _flags(values: flags.FlagValues) -> None:
    engine.define_flags(values, "where steps run", "what a step asks Ray for, as many as its mesh has")
    text, switch = flags.DEFINE_string, flags.DEFINE_boolean
    text("grid", "", "points: 'train.learning_rate=1e-4,2e-4 model.neighbors=1,2'", flag_values=values)
    text("seeds", "", "every point with each of these seeds: 0,1,2", flag_values=values)
    switch("baseline", True, "train the baseline of each point that retrieves", flag_values=values)
    text("metric", "bpb", "the figure by which the best points are chosen", flag_values=values)
    flags.DEFINE_multi_string("only", [], "run this point alone; may be given several times", flag_values=values)
    switch("plan", False, "run nothing; print what would run, and what is finished", flag_values=values)
    switch("json", False, "print the plan as JSON", flag_values=values)
    flags.DEFINE_integer("parallel", 1, "processes that run at once on this machine", flag_values=values)
    flags.DEFINE_enum(
        "launcher",
        None,
        LAUNCHERS,
        "run nothing; write launch commands for this script of launch/hosts into WORKDIR/commands",
        flag_values=values,
    )
    text("launcher_flags", "", "flags of the launch script, such as '--nodes=2 --gpus-per-node=8'", flag_values=values)
    text("launcher_workdir", "", "WORKDIR as the launched jobs name it, such as gs://BUCKET/sweep", flag_values=values)
    text(
        "topology",
        "",
        "devices of each point, for the estimate (v5p:8x8x4, h100:8); empty: this machine's",
        flag_values=values,
    )


VERB = Verb(
    "sweep",
    "builds, trains and evaluates the points of a sweep, what they share once; continues where it was stopped; writes "
    "results.csv, results.parquet and sweep.html into WORKDIR",
    "--config=configs/grid.py:smoke --workdir=runs/grid-smoke",
    define_flags=_flags,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 where a point failed."""
    argv = list(sys.argv[1:] if argv is None else argv)
    failed: list[str] = []
    code = run_verb(VERB, lambda invocation: failed.extend(sweep(invocation, argv)), argv)
    return code or (FAILED if failed else 0)


def sweep(invocation: Invocation, argv: Sequence[str]) -> list[str]:
    """Plans and, unless told otherwise, runs; returns the names of the points that are not finished because of a failure."""
    values = invocation.flags
    check_flags(values)
    plan = plan_of(invocation, argv)
    keys = _chosen(plan, values.only)
    from launch.sweep.commands import write_commands
    from launch.sweep.report import plan_facts, plan_text, problems, write_results
    from launch.sweep.state import check_identity
    from retro_jax.sweep.outcomes import check_metric

    check_metric(values.metric)
    changes = check_identity(plan)
    found = plan_facts(plan, keys, values.topology, changes, here=not values.launcher and values.engine == "process")
    if values.plan:
        deliver(json.dumps(found) if values.json else plan_text(found))
        return []
    if misfits := problems(found):
        raise ValueError(f"{misfits[0]} Nothing was started.")
    from launch.sweep.run import wanted
    from launch.sweep.state import write_plan

    print(plan_text(found), file=sys.stderr, flush=True)
    invocation.workdir.mkdir(parents=True, exist_ok=True)
    write_plan(plan)
    if values.launcher:
        more, words = shlex.split(values.launcher_flags), one_word_flags(VERB, argv)
        for path in write_commands(plan, keys, values.launcher, more, words, values.launcher_workdir):
            print(path)
        return []
    ended = _run(plan, wanted(plan, keys), values)
    print(write_results(plan, values.metric))
    print(f"Table: {invocation.workdir / 'results.csv'}; page: {invocation.workdir / 'sweep.html'}")
    names = {one.task: one.point.name for one in plan.points}
    lost = {*ended.failed, *ended.blocked}
    return [names[key] for key in keys if lost & plan.needed([key])]


def _run(plan: Plan, keys: Sequence[str], values: flags.FlagValues):
    """Runs tasks on this machine or on a Ray cluster."""
    from launch.sweep.run import run_tasks

    if values.engine == "process" or not keys:
        return run_tasks(plan, keys, values.parallel)
    from launch.sweep.on_ray import ray_starter

    with ray_starter(plan, values) as start:
        return run_tasks(plan, keys, len(keys), start)


def check_flags(values: flags.FlagValues) -> None:
    """Raises ValueError where a flag would be ignored, or its value is out of range."""
    if values.json and not values.plan:
        raise ValueError("--json=True is of --plan; add --plan, or leave it out.")
    if values.parallel < 1:
        raise ValueError(f"--parallel={values.parallel} must be 1 or more.")
    for name in ("launcher_flags", "launcher_workdir"):
        if values[name].value and not values.launcher:
            raise ValueError(f"--{name}={values[name].value} is of --launcher; add it, or leave it out.")
    if values.parallel > 1 and (values.launcher or values.engine == "ray"):
        raise ValueError(
            f"--parallel={values.parallel} is of steps on this machine; remove it: Ray and launchers place steps."
        )
    if values.launcher and values.engine == "ray":
        raise ValueError(f"--launcher={values.launcher} runs nothing, so --engine=ray would be ignored; leave one out.")
    engine.check_flags(values)


def plan_of(invocation: Invocation, argv: Sequence[str]) -> Plan:
    """The plan of a command line."""
    words = one_word_flags(VERB, argv)
    config = next(word.partition("=")[2] for word in words if flag_name(word) == "config")
    given = {key: word for word in words if (key := override_of(word))}
    points = make_points(load_sweep(config), invocation.flags.grid, invocation.flags.seeds)
    base = to_dict(invocation.run)
    return make_plan(base, config, given, points, Path(invocation.workdir), invocation.flags.baseline)


def _chosen(plan: Plan, only: Sequence[str]) -> list[str]:
    """The evaluations of the points to run."""
    import difflib

    known = {one.point.name: one.task for one in plan.points}
    for name in only:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"points: {', '.join(known)}"
            raise ValueError(f"--only={name} is no point of this sweep; {hint:.500}")
    return [known[name] for name in only] or list(known.values())
