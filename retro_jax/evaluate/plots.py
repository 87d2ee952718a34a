"""The report's plots as SVG: lines, bars and intervals.

Series differ in color, dash and marker; the colors stay apart for the common kinds of color blindness and have a
contrast of at least 3 to white and to near-black. Text, axes and grid take the color of the page around them, so one
plot serves a light and a dark page. Written out by hand: no fonts to look up, nothing to load.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 54, 42

BARS = ("#2b7fc4", "#d9622b", "#1a9070", "#a865b5", "#8f7a1f", "#c2477f")  # colors of groups of bars
MARKERS = ("circle", "square", "diamond")


@dataclass(frozen=True)
class Series:
    name: str
    points: Sequence[tuple[float, float]]
    color: str
    dash: str = ""
    marker: str = ""  # "" | "circle" | "square" | "diamond"


def line_chart(title: str, series: Sequence[Series], x_label: str, y_label: str, *, percent: bool = False) -> str:
    """Lines over a common x; `percent` writes x as percent. Empty series are left out; no points at all give a note."""
    series = [line for line in series if line.points]
    if not series:
        return _frame(title, [_text(WIDTH / 2, HEIGHT / 2, "nothing to show", "middle")])
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    plot = _Axes(min(xs), max(xs), *_padded(min(ys), max(ys)))
    body = plot.grid(x_label, y_label, "percent" if percent else "plain")
    for line in series:
        places = [(plot.x(x), plot.y(y)) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        body.append(
            f'<polyline points="{path}" fill="none" stroke="{line.color}" stroke-width="2" '
            f'stroke-dasharray="{line.dash}" stroke-linejoin="round"/>'
        )
        if line.marker:
            body += [_marker(line.marker, x, y, line.color) for x, y in places]
    return _frame(title, body, [(line.name, line.color, line.dash, line.marker) for line in series])


def bar_chart(
    title: str, labels: Sequence[str], groups: Mapping[str, Sequence[float]], x_label: str, y_label: str
) -> str:
    """Bars beside each other per label, one color a group; heights are shares in [0, 1]."""
    colors = dict(zip(groups, BARS * 9, strict=False))
    top = max([0.05, *(value for values in groups.values() for value in values)])
    plot = _Axes(0, len(labels), 0, top)
    body = plot.grid("", y_label, "none", y_percent=True)
    width = 0.84 / max(len(groups), 1)
    for place, (name, values) in enumerate(groups.items()):
        for number, value in enumerate(values):
            x = plot.x(number + 0.08 + place * width)
            y = plot.y(value)
            body.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{plot.x(width) - plot.x(0) - 1:.1f}" '
                f'height="{plot.y(0) - y:.1f}" fill="{colors[name]}">'
                f"<title>{html.escape(name)}: {value:.1%}</title></rect>"
            )
    body += [_text(plot.x(n + 0.5), HEIGHT - BOTTOM + 14, label, "middle", 10) for n, label in enumerate(labels)]
    body.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "middle"))
    return _frame(title, body, [(name, colors[name], None, "") for name in groups])


def interval_chart(title: str, rows: Sequence[tuple[str, str, Mapping]], x_label: str) -> str:
    """Means with their 95% intervals around a line at 0, one row each: (label, color, {"mean", "low", "high", "shown"}).

    A mean is hollow where no difference is shown.
    """
    values = [0.0, *(gap[end] for _, _, gap in rows for end in ("mean", "low", "high") if gap[end] is not None)]
    height, left = TOP + 26 * len(rows) + BOTTOM, 150
    plot = _Axes(*_padded(min(values), max(values)), 0, max(len(rows), 1), left=left, height=height, top=34)
    body = plot.grid(x_label, "", "plain", rows_only=True)
    zero = plot.x(0)
    body.append(f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="34" y2="{height - BOTTOM}" stroke="currentColor"/>')
    for number, (label, color, gap) in enumerate(rows):
        y = plot.y(len(rows) - number - 0.5)
        body.append(_text(left - 8, y + 4, label, "end"))
        if gap["low"] is not None:
            body.append(
                f'<line x1="{plot.x(gap["low"]):.1f}" x2="{plot.x(gap["high"]):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
                f'stroke="{color}" stroke-width="4" stroke-linecap="round" opacity=".55"/>'
            )
        body.append(_marker("circle", plot.x(gap["mean"]), y, color, 4.5, hollow=not gap["shown"]))
    return _frame(title, body, height=height)


class _Axes:
    """Data to places on the drawing."""

    def __init__(self, x0, x1, y0, y1, *, left=LEFT, height=HEIGHT, top=TOP):
        self.x0, self.x1, self.y0, self.y1 = x0, x1 if x1 > x0 else x0 + 1, y0, y1 if y1 > y0 else y0 + 1
        self.left, self.height, self.top = left, height, top

    def x(self, value: float) -> float:
        return self.left + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - RIGHT - self.left)

    def y(self, value: float) -> float:
        bottom = self.height - BOTTOM
        return bottom - (value - self.y0) / (self.y1 - self.y0) * (bottom - self.top)

    def grid(self, x_label: str, y_label: str, x_ticks: str, *, y_percent=False, rows_only=False) -> list[str]:
        bottom = self.height - BOTTOM
        parts = []
        for tick in [] if rows_only else ticks(self.y0, self.y1):
            y = self.y(tick)
            parts.append(
                f'<line x1="{self.left}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity=".15"/>'
            )
            parts.append(_text(self.left - 6, y + 4, f"{tick:.0%}" if y_percent else _number(tick), "end", 11))
        for tick in [] if x_ticks == "none" else ticks(self.x0, self.x1):
            x = self.x(tick)
            if rows_only:
                parts.append(
                    f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{bottom}" stroke="currentColor" opacity=".15"/>'
                )
            written = f"{tick:.0%}" if x_ticks == "percent" else _number(tick)
            parts.append(_text(x, bottom + 15, written, "middle", 11))
        parts.append(
            f'<line x1="{self.left}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}" stroke="currentColor" opacity=".6"/>'
        )
        if x_label:
            parts.append(_text((self.left + WIDTH - RIGHT) / 2, self.height - 8, x_label, "middle"))
        if y_label:
            middle = (self.top + bottom) / 2
            parts.append(
                f'<text transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle" fill="currentColor" '
                f'font-size="12">{html.escape(y_label)}</text>'
            )
        return parts


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers inside [low, high], in steps of 1, 2, 2.5 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= about)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = (high - low) * 0.08 or 0.05 * max(abs(high), 1e-3)
    return low - margin, high + margin


def _number(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"


def _text(x: float, y: float, content: str, anchor: str, size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor" font-size="{size}">'
        f"{html.escape(content)}</text>"
    )


def _marker(kind: str, x: float, y: float, color: str, size: float = 3.2, hollow: bool = False) -> str:
    if hollow:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="none" stroke="{color}" stroke-width="2"/>'
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{color}"/>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if kind == "diamond" else ""
    return f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}" fill="{color}"{turn}/>'


def _frame(title: str, body: Sequence[str], legend: Sequence[tuple] = (), *, height: int = HEIGHT) -> str:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif"><title>{html.escape(title)}</title>',
        f'<text x="{WIDTH / 2:.0f}" y="18" text-anchor="middle" fill="currentColor" font-size="14" font-weight="600">'
        f"{html.escape(title)}</text>",
    ]
    x = LEFT
    for name, color, dash, marker in legend:
        if dash is None:
            parts.append(f'<rect x="{x}" y="29" width="12" height="12" fill="{color}"/>')
        else:
            parts.append(
                f'<line x1="{x}" x2="{x + 22}" y1="35" y2="35" stroke="{color}" stroke-width="2" stroke-dasharray="{dash}"/>'
            )
            parts += [_marker(marker, x + 11, 35, color)] if marker else []
        offset = 16 if dash is None else 27
        parts.append(_text(x + offset, 39, name, "start"))
        x += offset + 14 + int(6.6 * len(name))
    return "".join([*parts, *body, "</svg>"])
