"""The kinds of figures: lines with bands, dots with intervals, grouped bars, histograms.

Series differ in color, dash and marker; the colors remain distinct for the common kinds of color blindness and have a
contrast of at least 3 against white and near-black.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from retro_jax.evaluate.report.figures.svg import INK, WIDTH, figure, label

COLORS = ("#2b7fc4", "#d9622b", "#1a9070", "#a865b5", "#8f7a1f", "#c2477f")  # of groups of bars
MARKERS = {"": "", "circle": "o", "square": "s", "diamond": "D", "triangle": "^"}
BAND = 0.2  # opacity of a band
ROW = 22  # height of a row of dots
LETTERS, SMALLEST = 11, 7  # font size of axis labels, and the smallest size where there are many
CHARACTER, HANDLE = 7.0, 47  # width of a character at that size, and of a legend entry without its name


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
      points: (x, y).
      color, dash: "#rrggbb" and an SVG dash array.
      marker: a key of MARKERS.
      band: (low, high) of each point, drawn as a band; empty for none.
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    dash: str = ""
    marker: str = ""
    band: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its interval, None where there is none; hollow where no difference is shown."""

    mean: float
    low: float | None = None
    high: float | None = None
    shown: bool = True


def lines(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    x: Literal["number", "percent", "log"] = "number",
    ticks: Sequence[float] = (),
) -> str:
    """Lines over a common x. Series without points are left out; a figure without any points says so.

    Args:
      ticks: places of the labels of x; empty: chosen.
    """
    series = [line for line in series if line.points]

    def draw(axes, notes):
        handles = []
        for line in series:
            xs, ys = zip(*line.points, strict=True)
            dash = (0, tuple(map(float, line.dash.split()))) if line.dash else "-"
            marker = MARKERS[line.marker or ("circle" if len(xs) == 1 else "")]
            (drawn,) = axes.plot(xs, ys, color=line.color, linestyle=dash, marker=marker)
            notes.add(drawn, "line")
            handles.append(drawn)
            if line.band:
                low, high = zip(*line.band, strict=True)
                band = axes.fill_between(xs, low, high, color=line.color, alpha=BAND, linewidth=0)
                notes.add(band, "band")
        if x == "log":
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter("")
        if ticks:
            axes.set_xticks(ticks)
            axes.minorticks_off()
        axes.xaxis.set_major_formatter(_percent if x == "percent" else _number)
        _label(axes, x_label, y_label)
        _legend(axes, handles, [line.name for line in series])

    return figure(title, draw if series else _nothing)


def dots(title: str, rows: Sequence[tuple[str, str, Interval]], x_label: str, *, zero: bool = True) -> str:
    """Means with their intervals, one row each: (label, color, interval).

    Args:
      zero: the rows are differences, drawn around a line at 0 and written with their sign.
    """
    sign = "+" if zero else ""

    def draw(axes, notes):
        if zero:
            axes.axvline(0, color=INK, linewidth=1)
        for row, (_, color, gap) in enumerate(rows):
            if gap.low is not None:
                (interval,) = axes.plot(
                    [gap.low, gap.high], [row, row], color=color, linewidth=4, alpha=0.55, solid_capstyle="round"
                )
                notes.add(interval, "interval")
            face = color if gap.shown else "none"
            (mark,) = axes.plot([gap.mean], [row], "o", color=color, markersize=8, markerfacecolor=face)
            mark.set_markeredgewidth(2)
            ends = "" if gap.low is None else f" ({gap.low:{sign}.4f} to {gap.high:{sign}.4f})"
            notes.add(mark, "mark" if gap.shown else "mark hollow", f"{gap.mean:{sign}.4f}{ends}")
        axes.set_yticks(range(len(rows)), [label(name) for name, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlabel(label(x_label, 60), loc="right")  # it is wider than the axes

    return figure(title, draw if rows else _nothing, height=90 + ROW * max(len(rows), 4))


def bars(
    title: str, labels: Sequence[str], groups: Mapping[str, Sequence[float | Interval]], x_label: str, y_label: str
) -> str:
    """Grouped bars: for each label a bar of each group, one color a group; an Interval is drawn on its bar."""
    return figure(title, _bars(labels, groups, x_label, y_label, percent=False) if groups else _nothing)


def histogram(
    title: str, labels: Sequence[str], shares: Mapping[str, Sequence[float]], x_label: str, y_label: str
) -> str:
    """The share of each bin, by group: bars over the bins' labels, heights in [0, 1] written as percent."""
    return figure(title, _bars(labels, shares, x_label, y_label, percent=True) if shares else _nothing)


def _bars(labels, groups, x_label, y_label, *, percent):
    def draw(axes, notes):
        handles, width = [], 0.84 / len(groups)
        for place, (name, values) in enumerate(groups.items()):
            color = COLORS[place % len(COLORS)]
            for number, value in enumerate(values):
                gap = value if isinstance(value, Interval) else Interval(value)
                x = number - 0.42 + (place + 0.5) * width
                (bar,) = axes.bar([x], [gap.mean], width * 0.94, color=color)
                written = f"{gap.mean:.1%}" if percent else f"{gap.mean:.4g}"
                notes.add(bar, "bar", f"{name}, {labels[number]}: {written}")
                if gap.low is not None:
                    (ends,) = axes.plot([x, x], [gap.low, gap.high], color=INK, linewidth=1.5)
                    notes.add(ends, "interval")
            handles.append(bar)
        shown = [label(name, 12) for name in labels]
        size = (WIDTH - 70) / (CHARACTER / LETTERS * len(shown) * max(map(len, shown)))
        axes.set_xticks(range(len(shown)), shown, fontsize=min(max(size, SMALLEST), LETTERS))
        axes.grid(False, axis="x")
        if percent:
            axes.yaxis.set_major_formatter(_percent)
        _label(axes, x_label, y_label)
        _legend(axes, handles, list(groups))

    return draw


def _nothing(axes, notes):
    axes.set_axis_off()
    axes.text(0.5, 0.5, "nothing to show", ha="center", va="center", transform=axes.transAxes)


def _label(axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(label(x_label, 70))
    axes.set_ylabel(label(y_label))


def _legend(axes, handles: Sequence, names: Sequence[str]) -> None:
    """Above the axes, in as many columns as fit."""
    shown = [label(name, 24) for name in names]
    columns = len(shown)
    while columns > 1 and _legend_width(shown, columns) > WIDTH - 70:
        columns -= 1
    axes.legend(handles, shown, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2)


def _legend_width(names: Sequence[str], columns: int) -> float:
    rows, longer = divmod(len(names), columns)  # filled column by column, the first columns have one row more
    ends = [number * rows + min(number, longer) for number in range(columns + 1)]
    return sum(HANDLE + CHARACTER * max(map(len, names[a:b])) for a, b in zip(ends[:-1], ends[1:], strict=True))


def _number(value: float, _position: int = 0) -> str:
    for letter, unit, least in (("M", 1e6, 1e6), ("k", 1e3, 1e4)):
        if abs(value) >= least:
            return f"{value / unit:g}{letter}"
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"


def _percent(value: float, _position: int = 0) -> str:
    return f"{value:.0%}"
