"""Results as one tidy table, one figure in each row: results.csv and results.parquet, for notebooks and spreadsheets."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

from retro_jax.core.files import atomic_path
from retro_jax.evaluate.metrics import METRICS
from retro_jax.evaluate.scores import write_table

COLUMNS = ("set", "protocol", "subset", "metric", "condition", "alpha", "value", "low", "high", "shown", "documents")
DIFFERENCE = "_minus_"


def rows(results: Mapping) -> Iterator[dict]:
    """Every figure of results.json.

    metric "bpb_difference" is the first condition minus the second one ("on - off"), with its 95% interval; metric
    "bpb_by_overlap" is bits per byte over the chunks whose overlap with their neighbors is at most `alpha`.
    """
    for set_name, found in results["sets"].items():
        common = {"set": set_name, "protocol": found["protocol"]}
        for subset, figures in [*found["subsets"].items(), ("all", found["all"])]:
            here = {**common, "subset": subset, "documents": figures["documents"]}
            for metric in METRICS:
                for condition, value in figures.get(metric, {}).items():
                    if value is not None:
                        yield {**here, "metric": metric, "condition": condition, "value": value}
            for key, gap in figures.items():
                if DIFFERENCE in key:
                    ends = {name: gap[name] for name in ("low", "high", "shown")}
                    condition = key.replace(DIFFERENCE, " - ")
                    yield {**here, "metric": "bpb_difference", "condition": condition, "value": gap["mean"], **ends}
            curves = found["leakage"][subset]
            for condition, values in curves["bpb"].items():
                for alpha, value in zip(curves["alphas"], values, strict=True):
                    if value is not None:
                        of_alpha = {"metric": "bpb_by_overlap", "condition": condition, "alpha": alpha, "value": value}
                        yield {**here, **of_alpha}
    for set_name, found in results.get("questions", {}).items():
        here = {"set": set_name, "protocol": found["protocol"], "subset": "all", "documents": found["questions"]}
        for condition, match in found["exact_match"].items():
            ends = {name: match[name] for name in ("low", "high")}
            yield {**here, "metric": "exact_match", "condition": condition, "value": match["mean"], **ends}
        for key, gap in found["differences"].items():
            ends = {name: gap[name] for name in ("low", "high", "shown")}
            condition = key.replace(DIFFERENCE, " - ")
            yield {**here, "metric": "exact_match_difference", "condition": condition, "value": gap["mean"], **ends}


def write_exports(results: Mapping, folder: Path) -> None:
    """Writes results.csv and results.parquet, atomically."""
    table = [{name: row.get(name) for name in COLUMNS} for row in rows(results)]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    with atomic_path(Path(folder) / "results.csv") as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
    write_table(Path(folder) / "results.parquet", {name: [row[name] for row in table] for name in COLUMNS})
