"""The tables of a report as data: captions, columns, rows. templates/macros.html writes them as HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retro_jax.evaluate.conditions import CONDITIONS
from retro_jax.evaluate.metrics import METRICS, Metric
from retro_jax.evaluate.protocols.table_15 import COLUMNS, layout
from retro_jax.evaluate.summary import DIFFERENCES, NOT_SHOWN


@dataclass(frozen=True)
class Column:
    """A column; kind is "", "control" (gray), "fact" (wrapped) or "words" (wrapped, left-aligned)."""

    name: str
    kind: str = ""


@dataclass(frozen=True)
class Cell:
    """A value as text, bold or not, with a small note below it."""

    text: str
    bold: bool = False
    note: str = ""


@dataclass(frozen=True)
class Row:
    cells: Sequence[Cell]
    total: bool = False  # drawn below a line, as a sum


@dataclass(frozen=True)
class Table:
    """A table with a caption. Without any column name it has no head.

    Raises:
      ValueError: a row is longer or shorter than the columns.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]

    def __post_init__(self):
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(
                    f"A row of the table {self.caption!r} has {len(row.cells)} cells for {len(self.columns)} columns; "
                    f"it begins with {row.cells[0].text if row.cells else ''!r}. Give each row one cell for each column."
                )


def plain_table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Table:
    """A table of texts."""
    return Table(caption, columns, [Row([Cell(text) for text in row]) for row in rows])


def bpb_table(results: Mapping) -> Table:
    """Bits per byte by subset and condition. On is bold where `on_is_best`."""

    def cell(figures, condition):
        value = figures["bpb"].get(condition)
        return Cell(_number(value, 4), bold=value is not None and condition == "on" and on_is_best(figures))

    columns = [Column(name) for name in ("subset", "documents", "bytes", "overlap")]
    rows = [
        Row(
            [
                Cell(name),
                Cell(f"{figures['documents']:,}"),
                Cell(f"{figures['bytes']:,}"),
                Cell(f"{figures['overlap']:.2f}"),
                *(cell(figures, condition) for condition in CONDITIONS),
            ],
            total,
        )
        for name, figures, total in _subsets(results)
    ]
    return Table(
        "Lower is better. Every text token is scored once, bytes are UTF-8; controls in gray. On is bold where it is shown "
        "to be below Off and below the baseline.",
        [*columns, *_condition_columns()],
        rows,
    )


def on_is_best(figures: Mapping) -> bool:
    """Whether On is shown to be below Off, and below the baseline where there is one."""
    gaps = [figures[name] for name in ("on_minus_off", "on_minus_baseline") if name in figures]
    return all(gap["shown"] and gap["mean"] < 0 for gap in gaps)


def difference_table(results: Mapping) -> Table:
    """The differences between conditions, with intervals."""
    columns = [Column("subset"), *(Column(f"{one} − {other}") for one, other in DIFFERENCES)]
    rows = [
        Row([Cell(name), *(gap_cell(figures.get(f"{one}_minus_{other}")) for one, other in DIFFERENCES)], total)
        for name, figures, total in _subsets(results)
    ]
    return Table(
        "Differences in bits per byte with 95% bootstrap intervals over documents; negative where the first is better. "
        f"Not bold: no difference is shown, {NOT_SHOWN}.",
        columns,
        rows,
    )


def metric_tables(results: Mapping) -> list[Table]:
    """A table for each metric of the set that the page does not show elsewhere."""
    there = [metric for metric in METRICS.values() if metric.name not in ("bpb", "perplexity")]
    return [_metric_table(results, metric) for metric in there if any(_figures(results["all"], metric))]


def _figures(figures: Mapping, metric: Metric) -> list[bool]:
    return [value is not None for value in figures.get(metric.name, {}).values()]


def _metric_table(results: Mapping, metric: Metric) -> Table:
    rows = [
        Row(
            [Cell(name), *(Cell(_number(figures.get(metric.name, {}).get(c), metric.digits)) for c in CONDITIONS)],
            total,
        )
        for name, figures, total in _subsets(results)
    ]
    return Table(f"{metric.name}: {metric.meaning}.", [Column("subset"), *_condition_columns()], rows)


def tried_table(results: Mapping, conditions: Sequence[Mapping]) -> Table | None:
    """On with other numbers of neighbors, shares of the database and databases; None where none was tried.

    Args:
      conditions: as results.json lists them.
    """
    tried = [one for one in conditions if one["name"] not in CONDITIONS]
    if not tried:
        return None
    columns = [Column("subset"), Column("off"), Column("on"), *(Column(one["name"]) for one in tried)]
    names = ["off", "on", *(one["name"] for one in tried)]
    rows = [
        Row([Cell(name), *(Cell(_number(figures["bpb"].get(one), 4)) for one in names)], total)
        for name, figures, total in _subsets(results)
    ]
    caption = "Bits per byte of On with other neighbors: " + "; ".join(
        f"{one['name']}: {one['meaning']}" for one in tried
    )
    return Table(f"{caption}.", columns, rows)


def pile_table(results: Mapping) -> Table:
    """Table 15 of the paper with our columns after the paper's."""
    bpb = {
        name: {condition: figures["bpb"].get(condition) for condition in ("baseline", "off", "on")}
        for name, figures in results["subsets"].items()
    }
    head, rows = layout(bpb)
    columns = [Column(head[0]), *(Column(name, "control") for name in COLUMNS), *map(Column, head[len(COLUMNS) + 1 :])]
    cells = [Row([Cell(row[0]), *(Cell(_number(value, 3)) for value in row[1:])]) for row in rows]
    return Table(
        "Table 15 of the paper: bits per byte by subset of the Pile; the paper's columns in gray.", columns, cells
    )


def leakage_table(results: Mapping) -> Table:
    """On − Off on chunks with little overlap and on all chunks."""
    columns = [Column(name) for name in ("subset", "bytes with r ≤ 12.5%", "on − off on these", "on − off on all")]
    everything = {"all": results["all"], **results["subsets"]}
    rows = [
        Row(
            [
                Cell(name),
                Cell(f"{curves['byte_share'][0]:.1%}"),
                gap_cell(curves["on_minus_off_at_lowest_alpha"]),
                gap_cell(everything[name].get("on_minus_off")),
            ]
        )
        for name, curves in results["leakage"].items()
    ]
    return Table(
        "On − Off in bits per byte (negative is better), on low-overlap chunks and on all; bold where a difference is shown.",
        columns,
        rows,
    )


def gap_cell(gap: Mapping | None) -> Cell:
    """A difference, bold where it is shown, above the ends of its interval."""
    if gap is None:
        return Cell("-")
    ends = "one document" if gap["low"] is None else f"{gap['low']:+.4f} to {gap['high']:+.4f}"
    return Cell(f"{gap['mean']:+.4f}", bold=gap["shown"], note=ends)


def _subsets(results: Mapping) -> list[tuple[str, Mapping, bool]]:
    return [*((name, figures, False) for name, figures in results["subsets"].items()), ("all", results["all"], True)]


def _condition_columns() -> list[Column]:
    return [Column(name, "control" if condition.control else "") for name, condition in CONDITIONS.items()]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
