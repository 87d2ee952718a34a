"""The plan of a sweep as JSON and as text, and its results."""

from collections import Counter
from collections.abc import Mapping, Sequence

from launch.sweep.cost import costs
from launch.sweep.plan import Plan, Planned
from launch.sweep.state import is_done, one_at_a_time, read_state
from retro_jax.data.manifests import read_seconds
from retro_jax.models.counts import flops_per_token, parameter_counts
from retro_jax.sweep.outcomes import DONE, Outcome
from retro_jax.sweep.report import write_report

LONGEST = 40  # points that the text of a plan lists
VERBS = {"build": "builds", "train": "trainings", "evaluate": "evaluations"}


def plan_facts(
    plan: Plan, keys: Sequence[str], topology: str, changes: Mapping[str, Sequence[str]], here: bool = True
) -> dict:
    """The plan as plain JSON values.

    Args:
      keys: the evaluations of the points to run.
      topology: of the devices of each point; empty: this machine's.
      changes: names of points that are new, removed or changed since the last call.
      here: the points run on this machine; else, without a topology, nothing is said about devices.
    """
    needed, users = plan.needed(keys), plan.users()
    done = {key: is_done(plan.workdir, plan.tasks[key], checksums=False) for key in plan.tasks if key in needed}
    found = costs(plan, [key for key in done if plan.tasks[key].step.verb == "train"], topology, here)
    tasks = [
        {
            "task": key,
            "verb": task.step.verb,
            "directory": str(task.directory),
            "points": len(users[key]),
            "done": done[key],
            **found.get(key, {}),
        }
        for key, task in plan.tasks.items()
        if key in needed
    ]
    points = [
        {
            "point": one.point.name,
            "seed": one.seed,
            "axes": {key: values[place] for key, values in plan.axes().items()},
            "model": one.model.task or str(one.model.directory),
            "baseline": (one.baseline.task or str(one.baseline.directory)) if one.baseline else None,
            "done": done[one.task],
        }
        for place, one in enumerate(plan.points)
        if one.task in needed
    ]
    return {"workdir": str(plan.workdir), "points": points, "tasks": tasks, "changes": dict(changes)}


def plan_text(found: Mapping) -> str:
    """The plan for a terminal."""
    points, tasks = found["points"], found["tasks"]
    lines = [f"{len(points)} points in {found['workdir']}, {sum(one['done'] for one in points)} finished"]
    axes = {
        key: dict.fromkeys(str(one["axes"][key]) for one in points) for key in (points[0]["axes"] if points else ())
    }
    lines += [f"  {key}: {', '.join(values)}" for key, values in axes.items()]
    for verb, name in VERBS.items():
        those = [one for one in tasks if one["verb"] == verb]
        if those:
            shared = sum(one["points"] > 1 for one in those)
            lines.append(
                f"  {name}: {len(those)}, {sum(one['done'] for one in those)} finished"
                + (f", {shared} shared by several points" if shared else "")
            )
    trainings = [one for one in tasks if one["verb"] == "train"]
    left = [one for one in trainings if not one["done"]]
    if trainings:
        lines.append(
            f"  training: {_sum(trainings, 'steps'):,} steps, {_sum(trainings, 'tokens'):.3g} tokens, {_sum(trainings, 'flops'):.3g} "
            f"FLOPs; left: {_sum(left, 'steps'):,} steps, {_cost(left)}"
        )
    for kind, names in found["changes"].items():
        if names:
            lines.append(f"  {kind} since the last call: {', '.join(names)}"[:500])
    lines += [f"  - {one['point']}{' (finished)' if one['done'] else ''}" for one in points[:LONGEST]]
    lines += [f"  and {len(points) - LONGEST} more"] if len(points) > LONGEST else []
    lines += [f"  NOTE: {problem}" for problem in problems(found)]
    return "\n".join(lines)


def problems(found: Mapping) -> list[str]:
    """Why trainings that are not finished cannot run on the devices."""
    return [one["problem"] for one in found["tasks"] if not one["done"] and one.get("problem")]


def _sum(tasks: Sequence[Mapping], key: str) -> float:
    return sum(one[key] for one in tasks)


def _cost(tasks: Sequence[Mapping]) -> str:
    """What the trainings that are left will cost, as far as it is known."""
    if not tasks:
        return "nothing"
    by = Counter(one["seconds_by"] for one in tasks)
    known = [one["seconds"] for one in tasks if one["seconds"] is not None]
    if not known:
        return "seconds unknown"
    hours = sum(known) / 3600
    text = f"{hours:,.2f} hours one after the other (by {', '.join(name for name in by if name)})"
    chips = [one["chip_hours"] for one in tasks if one["chip_hours"] is not None]
    text += f", {sum(chips):,.1f} chip-hours" if chips else ""
    return text if len(known) == len(tasks) else f"{text}; of {len(tasks) - len(known)} unknown"


def outcomes(plan: Plan) -> list[Outcome]:
    """What is known of every point."""
    axes = plan.axes()
    return [
        _outcome(plan, one, {key: values[place] for key, values in axes.items()})
        for place, one in enumerate(plan.points)
    ]


def _outcome(plan: Plan, one: Planned, axes: Mapping) -> Outcome:
    task = plan.tasks[one.task]
    state, why = DONE, ""
    if not is_done(plan.workdir, task):
        state, why = _failure(plan, one)
    condition = "on" if one.model.retrieves else "baseline"
    group = one.point.group or one.point.name
    return Outcome(one.point.name, group, one.seed, axes, state, task.directory, condition, why, _cost_of(one))


def _failure(plan: Plan, one: Planned) -> tuple[str, str]:
    """(state, why) of a point without results."""
    needed = plan.needed([one.task])
    for key in plan.tasks:
        found = read_state(plan.workdir, key) if key in needed else {}
        if found.get("state") == "failed" and found.get("digest") == plan.tasks[key].digest:
            why = f"{key} ended with exit code {found['code']}: {found['line']} (log: {found['log']})"
            return "failed" if key in (one.task, one.model.task, one.data.task) else "blocked", why
    return "missing", "it was not run yet"


def _cost_of(one: Planned) -> dict[str, float | None]:
    run = one.model.run
    if run is None:
        return dict.fromkeys(("seconds", "tokens", "parameters", "flops"))
    tokens = run.train.steps * run.train.batch * run.model.sequence_length
    there = (one.model.directory / "seconds.json").exists()
    return {
        "seconds": read_seconds(one.model.directory) if there else None,
        "tokens": tokens,
        "parameters": parameter_counts(run.model)["total"],
        "flops": flops_per_token(run.model, run.train.trainable) * tokens,
    }


def write_results(plan: Plan, metric: str) -> str:
    """Writes the table and the page of all points; returns the summary as text."""
    with one_at_a_time(plan.workdir):
        return write_report(outcomes(plan), plan.workdir, metric, f"Sweep {plan.workdir.name}")
