"""Compares the results of several work directories: figures side by side, and paired differences over shared documents."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retro_jax.core.files import DamagedFile, atomic_path, read_json
from retro_jax.evaluate.metrics import METRICS
from retro_jax.evaluate.report.tables import Cell, Column, Row, Table, gap_cell
from retro_jax.evaluate.report.templates import render
from retro_jax.evaluate.results import FORMAT
from retro_jax.evaluate.scores import Scores
from retro_jax.evaluate.summary import paired_difference

RESAMPLES = 10_000
AGAIN = "Run `retro evaluate` there again."


@dataclass(frozen=True)
class Evaluated:
    """A work directory with results."""

    name: str
    workdir: Path
    results: Mapping


def open_runs(workdirs: Sequence[Path]) -> list[Evaluated]:
    """The results of work directories, in order; folders of the same name get a number.

    Raises:
      ValueError: fewer than two, one without results, or results of another format.
    """
    if len(workdirs) < 2:
        raise ValueError(
            f"A comparison needs two work directories or more, but {len(workdirs)} was given: retro compare RUN RUN."
        )
    runs = []
    for number, workdir in enumerate(workdirs):
        path = Path(workdir) / "results.json"
        if not path.exists():
            raise ValueError(f"There is no results.json in {workdir}. Run `retro evaluate --workdir={workdir}` first.")
        results = read_json(path, AGAIN, keys=("made_from",))
        if (found := results["made_from"].get("format")) != FORMAT:
            raise ValueError(f"{path} has format {found} of another version, but {FORMAT} is needed. {AGAIN}")
        same = [one for one in workdirs if Path(one).name == Path(workdir).name]
        name = Path(workdir).name if len(same) == 1 else f"{Path(workdir).name} ({number + 1})"
        runs.append(Evaluated(name, Path(workdir), results))
    return runs


def compare(runs: Sequence[Evaluated], metric: str = "bpb") -> dict:
    """The metric by set, subset, run and condition, and On of each run minus On of the first, as plain JSON.

    Raises:
      ValueError: an unknown metric, or no set that two runs have in common.
    """
    if metric not in METRICS:
        raise ValueError(f"--metric={metric} is not a metric; known metrics: {', '.join(METRICS)}.")
    names = list(dict.fromkeys(name for run in runs for name in run.results["sets"]))
    sets = {name: [run for run in runs if name in run.results["sets"]] for name in names}
    if not any(len(those) > 1 for those in sets.values()):
        raise ValueError(
            "No set was evaluated in two of these work directories: "
            + "; ".join(f"{run.name} has {', '.join(run.results['sets'])}" for run in runs)
            + ". Join the set to both databases (retro join), then evaluate."
        )
    found = {}
    for name, those in sets.items():
        of_set = {run.name: run.results["sets"][name] for run in those}
        subsets = list(dict.fromkeys(subset for one in of_set.values() for subset in one["subsets"]))
        found[name] = {
            "values": {
                subset: {run: _values(one, subset, metric) for run, one in of_set.items()}
                for subset in [*subsets, "all"]
            },
            "differences": {run.name: _difference(those[0], run, name) for run in those[1:]},
        }
    conditions = list(dict.fromkeys(one["name"] for run in runs for one in run.results["conditions"]))
    names = {run.name: str(run.workdir) for run in runs}
    return {"metric": metric, "runs": names, "conditions": conditions, "sets": found}


def _values(found: Mapping, subset: str, metric: str) -> dict:
    figures = found["all"] if subset == "all" else found["subsets"].get(subset, {})
    return {name: value for name, value in figures.get(metric, {}).items() if value is not None}


def _difference(first: Evaluated, other: Evaluated, name: str) -> dict | None:
    """On of `other` minus On of `first` in bits per byte, over the documents that count in both figures; None where the
    texts differ, or the documents that were left out."""
    one, two = _on(first, name), _on(other, name)
    if one is None or two is None or not all(map(np.array_equal, one[:3], two[:3])):
        return None
    _, sizes, left_out, bits = one
    kept = np.delete(np.arange(len(sizes)), left_out)
    return paired_difference((two[3] - bits)[kept], sizes[kept], RESAMPLES, 0)


def _on(run: Evaluated, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """(ids, bytes, numbers left out, bits under On) of the documents of a set; None where scores are missing, or where it
    is not known what an earlier version left out."""
    places, found = run.results["made_from"]["scores"][name], run.results["sets"][name]
    if "on" not in places:
        return None  # a baseline alone
    if "left_out" not in found and run.results["settings"]["contaminated"]:
        return None
    folders = {kind: run.workdir / "scores" / name / places[kind] for kind in ("text", "on")}
    parts = len(list(folders["text"].glob("part-*.parquet")))
    try:
        text = list(Scores(folders["text"], parts).each(("id", "bytes")))
        on = list(Scores(folders["on"], parts).each(("bits",)))
    except (DamagedFile, OSError):
        return None
    if not text:
        return None
    return (
        np.concatenate([part["id"] for part in text]),
        np.concatenate([part["bytes"] for part in text]),
        np.array(found.get("left_out", ()), np.int64),
        np.concatenate([part["bits"] for part in on]),
    )


def tables(found: Mapping) -> dict[str, list[Table]]:
    """The tables of each set."""
    metric, pages = METRICS[found["metric"]], {}
    for name, of_set in found["sets"].items():
        there = {c for runs in of_set["values"].values() for one in runs.values() for c in one}
        conditions = [name for name in found["conditions"] if name in there]
        rows = [
            Row([Cell(subset), Cell(run), *(_cell(values.get(c), metric.digits) for c in conditions)], subset == "all")
            for subset, runs in of_set["values"].items()
            for run, values in runs.items()
        ]
        columns = [Column("subset"), Column("run"), *(Column(one) for one in conditions)]
        pages[name] = [Table(f"{metric.name}: {metric.meaning}.", columns, rows)]
        if of_set["differences"]:
            gaps = [
                Row([Cell(run), gap_cell(gap) if gap else Cell("-", note="different documents, or scores missing")])
                for run, gap in of_set["differences"].items()
            ]
            first = next(iter(next(iter(of_set["values"].values()))))
            caption = (
                f"On minus On of {first}, in bits per byte, with 95% intervals over documents; bold where it is shown."
            )
            pages[name].append(Table(caption, [Column("run"), Column("difference")], gaps))
    return pages


def _cell(value: float | None, digits: int) -> Cell:
    return Cell("-" if value is None else f"{value:.{digits}f}")


def comparison_text(found: Mapping) -> str:
    """The tables for a terminal."""
    lines = []
    for name, of_set in tables(found).items():
        for table in of_set:
            grid = [[column.name for column in table.columns]]
            grid += [[" ".join(filter(None, (cell.text, cell.note))) for cell in row.cells] for row in table.rows]
            widths = [max(len(line[place]) for line in grid) for place in range(len(grid[0]))]
            lines += ["", f"{name}: {table.caption}"]
            lines += ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in grid]
    return "\n".join(lines[1:])


def write_comparison(found: Mapping, folder: Path) -> None:
    """Writes compare.html and compare.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("set", "subset", "run", "metric", "condition", "value"))
    for name, of_set in found["sets"].items():
        for subset, runs in of_set["values"].items():
            for run, values in runs.items():
                writer.writerows((name, subset, run, found["metric"], c, value) for c, value in values.items())
    page = render("compare.html", title="RETRO comparison", runs=found["runs"], sets=tables(found))
    for name, content in (("compare.csv", text.getvalue()), ("compare.html", page)):
        with atomic_path(Path(folder) / name) as temporary:
            Path(temporary).write_text(content, encoding="utf-8")
