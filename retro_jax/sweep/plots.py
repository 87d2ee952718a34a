"""The plots of a sweep: every group of points, and a small multiple for each key that varies."""

from collections.abc import Mapping, Sequence
from typing import Any

from retro_jax.evaluate.report.figures.charts import COLORS, Interval, Series, dots, lines
from retro_jax.sweep.outcomes import Outcome, best_first
from retro_jax.sweep.seeds import mean_over_seeds

MOST_DOTS = 12  # groups in the plot of all groups; of more, the best are drawn
MOST_LINES = len(COLORS)  # in the plot of one key; with more, their mean is drawn
LOG_FROM = 4.0  # a key's largest value over its smallest from which its scale is logarithmic
MARKERS = ("circle", "square", "diamond", "triangle")


def group_values(groups: Mapping[str, Sequence[Outcome]], metric: str) -> dict[str, list[float]]:
    """The figures of the seeds of each group that has any."""
    found = {
        name: [value for one in those if (value := one.value(metric)) is not None] for name, those in groups.items()
    }
    return {name: values for name, values in found.items() if values}


def points_plot(groups: Mapping[str, Sequence[Outcome]], metric: str, title: str) -> str:
    """The mean of each group over its seeds with its interval; of many groups, the best."""
    values = group_values(groups, metric)
    means = {name: mean_over_seeds(found) for name, found in values.items()}
    shown = list(means)
    if len(means) > MOST_DOTS:
        shown = best_first({name: mean.mean for name, mean in means.items()}, metric)[:MOST_DOTS]
        title = f"{title}, best {MOST_DOTS} of {len(means)}"
    names = labels(groups)
    rows = [(names[name], COLORS[0 if groups[name][0].condition == "on" else 1], means[name]) for name in shown]
    return dots(title, rows, f"{metric}; bars: 95% interval over seeds", zero=False)


def labels(groups: Mapping[str, Sequence[Outcome]]) -> dict[str, str]:
    """Short names of the groups of a grid: the values of the keys that vary; the names themselves where these are not unique."""
    if not all("=" in name for name in groups):
        return {name: name for name in groups}
    short = {name: " · ".join(map(text_of, those[0].axes.values())) for name, those in groups.items()}
    return short if len(set(short.values())) == len(short) else {name: name for name in groups}


def axis_plots(groups: Mapping[str, Sequence[Outcome]], metric: str) -> dict[str, str]:
    """A plot for each key that varies: a line for each combination of the other keys, over the values of this one."""
    axes = list(next(iter(groups.values()))[0].axes) if groups else []
    means = {name: mean_over_seeds(values) for name, values in group_values(groups, metric).items()}
    plots = {}
    points = [groups[name][0].axes for name in means]
    for axis in axes:
        lines_of: dict[str, dict[Any, Interval]] = {}
        free = [key for key in axes if key != axis and not _follows(points, axis, key)]
        for name, mean in means.items():
            values = groups[name][0].axes
            others = ", ".join(f"{_short(key)}={text_of(values[key])}" for key in free)
            lines_of.setdefault(others, {})[values[axis]] = mean
        lines_of = {others: points for others, points in lines_of.items() if len(points) > 1}
        if lines_of:
            plots[axis] = _axis_plot(axis, lines_of, metric)
    return plots


def _follows(points: Sequence[Mapping[str, Any]], axis: str, key: str) -> bool:
    """Whether each value of `axis` comes with one value of `key`, as a batch size with the steps that it implies."""
    values: dict[Any, set] = {}
    for point in points:
        values.setdefault(point[axis], set()).add(point[key])
    return all(len(found) == 1 for found in values.values())


def _axis_plot(axis: str, lines_of: Mapping[str, Mapping[Any, Interval]], metric: str) -> str:
    values = list(dict.fromkeys(value for points in lines_of.values() for value in points))
    if len(lines_of) > MOST_LINES:
        kept = {}
        for value in values:
            there = [points[value].mean for points in lines_of.values() if value in points]
            kept[value] = Interval(sum(there) / len(there), min(there), max(there))
        lines_of = {f"mean of {len(lines_of)} combinations": kept}
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        rows = [
            (
                " · ".join(filter(None, (text_of(value), others * (len(lines_of) > 1)))),
                COLORS[place % len(COLORS)],
                points[value],
            )
            for place, (others, points) in enumerate(lines_of.items())
            for value in values
            if value in points
        ]
        return dots(axis, rows, metric, zero=False)
    series = [_series(others, points, place) for place, (others, points) in enumerate(lines_of.items())]
    log = min(values) > 0 and max(values) / min(values) >= LOG_FROM
    return lines(axis, series, axis, metric, x="log" if log else "number", ticks=sorted(values))


def _series(name: str, points: Mapping[float, Interval], place: int) -> Series:
    found = sorted(points.items())
    banded = any(mean.low is not None for _, mean in found)
    ends = [
        (mean.mean if mean.low is None else mean.low, mean.mean if mean.high is None else mean.high)
        for _, mean in found
    ]
    return Series(
        name or "mean over seeds",
        [(value, mean.mean) for value, mean in found],
        COLORS[place % len(COLORS)],
        marker=MARKERS[place % len(MARKERS)],
        band=ends if banded else (),
    )


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def text_of(value: Any) -> str:
    """A value of the config in a label."""
    return "(" + ",".join(map(str, value)) + ")" if isinstance(value, (tuple, list)) else f"{value}"
