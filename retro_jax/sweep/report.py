"""Writes what a sweep has found: results.csv, results.parquet, best.json, sweep.html, hparams/."""

from collections.abc import Sequence
from pathlib import Path

from retro_jax.core.files import write_json
from retro_jax.evaluate.report.page import write_text
from retro_jax.sweep.hparams import write_hparams
from retro_jax.sweep.outcomes import Outcome, best_first, by_group, check_metric
from retro_jax.sweep.page import make_page, summary_text
from retro_jax.sweep.plots import group_values
from retro_jax.sweep.seeds import mean_over_seeds
from retro_jax.sweep.table import write_tidy


def write_report(outcomes: Sequence[Outcome], folder: Path, metric: str, title: str) -> str:
    """Writes the files; returns the summary as text.

    Args:
      metric: of `outcomes.known_metrics`; by it points are compared.

    Raises:
      ValueError: an unknown metric.
    """
    check_metric(metric)
    write_tidy(outcomes, folder)
    write_hparams(outcomes, folder / "hparams")
    write_json(folder / "best.json", {"metric": metric, "best": ranking(outcomes, metric)})
    write_text(folder / "sweep.html", make_page(outcomes, metric, title))
    return summary_text(outcomes, metric)


def ranking(outcomes: Sequence[Outcome], metric: str) -> list[dict]:
    """The groups that have the metric, best first: {"point", "points", "mean", "low", "high", "seeds", "axes"}."""
    groups = by_group(outcomes)
    values = group_values(groups, metric)
    means = {name: mean_over_seeds(found) for name, found in values.items()}
    return [
        {
            "point": name,
            "points": [one.name for one in groups[name] if one.value(metric) is not None],
            "mean": means[name].mean,
            "low": means[name].low,
            "high": means[name].high,
            "seeds": len(values[name]),
            "axes": dict(groups[name][0].axes),
        }
        for name in best_first({name: mean.mean for name, mean in means.items()}, metric)
    ]
