"""sweep.html: one self-contained page of a sweep, and the same for a terminal."""

from collections.abc import Mapping, Sequence

from retro_jax.evaluate.metrics import METRICS
from retro_jax.evaluate.report.tables import Cell, Column, Row, Table
from retro_jax.evaluate.report.templates import render
from retro_jax.sweep.outcomes import DIFFERENCES, DONE, EXACT, HIGHER_IS_BETTER, Outcome, best_first, by_group
from retro_jax.sweep.plots import axis_plots, group_values, labels, points_plot
from retro_jax.sweep.seeds import mean_over_seeds

BEST = 5
SHOWN = ("baseline", "off", "on", "random")  # conditions in the table of points
DIGITS = 4


def meaning(metric: str) -> str:
    """What a metric says and which direction is better."""
    if metric in METRICS:
        said = METRICS[metric].meaning
    elif metric == EXACT:
        said = "share of questions that are answered exactly"
    else:
        said = f"{metric.replace('_minus_', ' minus ')}, in bits per byte"
    return f"{metric}: {said}; {'higher' if metric in HIGHER_IS_BETTER else 'lower'} is better"


def make_page(outcomes: Sequence[Outcome], metric: str, title: str) -> str:
    """The page as HTML."""
    groups = by_group(outcomes)
    failed = [one for one in outcomes if one.state != DONE]
    seeds = sorted({one.seed for one in outcomes})
    return render(
        "sweep.html",
        title=title,
        subtitle=f"{len(outcomes)} points, {len(groups)} without their seeds ({len(seeds)} seeds); "
        f"{len(outcomes) - len(failed)} are finished",
        metric=meaning(metric),
        best=best_table(groups, metric),
        failed=failed_table(failed) if failed else None,
        points=points_table(groups),
        plots=[points_plot(groups, metric, "All points"), *axis_plots(groups, metric).values()],
    )


def best_table(groups: Mapping[str, Sequence[Outcome]], metric: str) -> Table:
    """The best groups by their mean over seeds."""
    names, named_by = _names(groups)
    rows = [
        Row([Cell(names[name]), Cell(groups[name][0].condition), _cell(values, bold=not place), Cell(str(len(values)))])
        for place, (name, values) in enumerate(_best(groups, metric).items())
    ]
    columns = [Column("point"), Column("condition"), Column(metric), Column("seeds")]
    caption = f"The best points, by the mean over seeds; below it the 95% interval by Student's t.{named_by}"
    return Table(caption, columns, rows)


def _best(groups: Mapping[str, Sequence[Outcome]], metric: str) -> dict[str, list[float]]:
    """The figures of the seeds of the best groups, best first."""
    values = group_values(groups, metric)
    means = {name: mean_over_seeds(found).mean for name, found in values.items()}
    return {name: values[name] for name in best_first(means, metric)[:BEST]}


def _names(groups: Mapping[str, Sequence[Outcome]]) -> tuple[dict[str, str], str]:
    """(short names, what they are made of as a sentence); the sentence is empty where they are the names themselves."""
    names = labels(groups)
    if all(short == name for name, short in names.items()):
        return names, ""
    return names, f" Points are named by: {' · '.join(next(iter(groups.values()))[0].axes)}."


def failed_table(outcomes: Sequence[Outcome]) -> Table:
    rows = [Row([Cell(one.name), Cell(one.state), Cell(one.why)]) for one in outcomes]
    return Table("Points without results.", [Column("point"), Column("state"), Column("why", "words")], rows)


def points_table(groups: Mapping[str, Sequence[Outcome]]) -> Table:
    """A row for each group: its axes, bits per byte by condition, the gain, and what its training cost."""
    names, named_by = _names(groups)
    axes = list(next(iter(groups.values()))[0].axes) if groups and not named_by else []
    rows = []
    for name, those in groups.items():
        done = [one for one in those if one.state == DONE]
        bpb = [_cell([one.figures().get("bpb", {}).get(condition) for one in done]) for condition in SHOWN]
        gaps = [_cell([one.figures().get(gap, {}).get("mean") for one in done], sign="+") for gap in DIFFERENCES[:2]]
        seconds = [one.cost["seconds"] for one in done if one.cost.get("seconds") is not None]
        costs = [
            f"{sum(seconds) / len(seconds):,.0f}" if seconds else "-",
            *(_count(those[0], key) for key in ("tokens", "parameters")),
        ]
        values = [Cell(_axis(those[0].axes[axis])) for axis in axes]
        rows.append(
            Row([Cell(names[name]), *values, Cell(f"{len(done)}/{len(those)}"), *bpb, *gaps, *map(Cell, costs)])
        )
    columns = ["point", *axes, "done", *SHOWN, "on − off", "on − baseline", "seconds", "tokens", "parameters"]
    caption = (
        "Bits per byte of all held-out text (or of the first set) by condition: means over seeds, with 95% intervals by Student's t "
        f"where there are two seeds or more. Seconds: of training, mean over seeds.{named_by}"
    )
    return Table(caption, [Column(name) for name in columns], rows)


def _cell(values: Sequence[float | None], *, bold: bool = False, sign: str = "") -> Cell:
    there = [value for value in values if value is not None]
    if not there:
        return Cell("-")
    mean = mean_over_seeds(there)
    ends = "" if mean.low is None else f"{mean.low:{sign}.{DIGITS}f} to {mean.high:{sign}.{DIGITS}f}"
    return Cell(f"{mean.mean:{sign}.{DIGITS}f}", bold, ends)


def _count(one: Outcome, key: str) -> str:
    value = one.cost.get(key)
    return "-" if value is None else f"{value:,.0f}"


def _axis(value) -> str:
    return str(tuple(value)) if isinstance(value, (tuple, list)) else "-" if value in (None, "") else f"{value}"


def summary_text(outcomes: Sequence[Outcome], metric: str) -> str:
    """The best points and those without results, for a terminal."""
    groups = by_group(outcomes)
    lines = [f"{meaning(metric)}."]
    for name, values in _best(groups, metric).items():
        value = _cell(values)
        ends = f" (95% interval over seeds {value.note})" if value.note else ""
        lines.append(f"  {value.text}{ends}  {name}, {groups[name][0].condition}, seeds: {len(values)}")
    lines += [f"  {one.state}: {one.name}: {one.why}" for one in outcomes if one.state != DONE]
    return "\n".join(lines)
