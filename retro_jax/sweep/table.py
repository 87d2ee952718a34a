"""The tidy table of a sweep: results.csv and results.parquet with the same rows, one figure in each.

A row is a point, seed, set, subset, condition and metric, with a column for each key that varies. A point without results
has one row with its state.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retro_jax.core.files import atomic_path
from retro_jax.evaluate.report.export import rows
from retro_jax.evaluate.scores import write_table
from retro_jax.sweep.outcomes import DONE, Outcome

OF_POINT = ("point", "group", "seed", "state")
OF_FIGURE = ("set", "subset", "condition", "metric", "alpha", "value", "low", "high", "shown", "documents")
COST = ("seconds", "tokens", "parameters", "flops")


def tidy(outcomes: Sequence[Outcome]) -> dict[str, list]:
    """The columns of the table."""
    axes = list(outcomes[0].axes) if outcomes else []
    found = list(_rows(outcomes))
    types = dict.fromkeys((*OF_POINT, "set", "subset", "condition", "metric", *axes))
    columns = {name: [row.get(name) for row in found] for name in (*OF_POINT, *axes, *OF_FIGURE, *COST)}
    return {name: _one_type(values) if name in types else values for name, values in columns.items()}


def _rows(outcomes: Sequence[Outcome]) -> Iterator[dict[str, Any]]:
    for one in outcomes:
        same = {"point": one.name, "group": one.group, "seed": one.seed, "state": one.state, **one.axes, **one.cost}
        if one.state == DONE:
            for row in rows(one.results):
                yield {**row, **same}
        else:
            yield same


def _one_type(values: Sequence) -> list:
    """The values of a column with one type: as they are where all are texts, numbers or switches; else as texts."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) < 2 and kinds <= {str, int, float, bool}:
        return list(values)
    if kinds <= {int, float}:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else str(value) for value in values]


def write_tidy(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Writes results.csv and results.parquet, atomically."""
    columns = tidy(outcomes)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    with atomic_path(folder / "results.csv") as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
    write_table(folder / "results.parquet", columns)
