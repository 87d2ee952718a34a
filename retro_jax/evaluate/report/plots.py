"""The plots of a report, from results.json and metrics.jsonl."""

from collections.abc import Mapping, Sequence

from retro_jax.evaluate.conditions import CONDITIONS
from retro_jax.evaluate.overlap import ALPHAS
from retro_jax.evaluate.report.figures.charts import COLORS, MARKERS, Interval, Series, dots, histogram, lines
from retro_jax.evaluate.report.figures.svg import label

NAME = 24  # characters of a subset's name in a label
_MARKERS = [name for name in MARKERS if name]


def make_plots(results: Mapping, metrics: Mapping[str, Sequence[Mapping]]) -> dict[str, str]:
    """The SVGs by name: "training" and "check", and those of each set with its name as prefix ("held_out-gains").

    Args:
      metrics: records of metrics.jsonl by run, "retro" and "baseline".
    """
    training = {"on": ("RETRO", "retro"), "baseline": ("baseline", "baseline")}
    of_sets = {
        f"{name}-{stem}": plot
        for name, found in results["sets"].items()
        for stem, plot in set_plots(found, results["conditions"], results["settings"]["neighbors"]).items()
    }
    return {
        "training": lines(
            "Training",
            [
                condition_series(condition, points(metrics.get(run, ()), "bpb"), name=name, marked=False)
                for condition, (name, run) in training.items()
            ],
            "step",
            "bits per byte of training text",
        ),
        "check": lines(
            "Held-out loss while training",
            [
                condition_series(name, points(metrics.get("retro", ()), f"validation_loss_{name}"))
                for name in ("off", "on", "random")
            ],
            "step",
            "nats a token",
        ),
        **of_sets,
    }


def set_plots(found: Mapping, conditions: Sequence[Mapping], neighbors: int) -> dict[str, str]:
    """The SVGs of one set: "gains", "overlap", "leakage-SUBSET"; "neighbors" and "share" where several were tried.

    Args:
      conditions: as results.json lists them.
      neighbors: K of the condition On.
    """
    subsets = found["subsets"]
    gaps = [
        (f"{label(name, NAME)}: on − {other}", CONDITIONS[other].color, interval(figures[f"on_minus_{other}"]))
        for name, figures in [*subsets.items(), ("all", found["all"])]
        for other in ("off", "random", "baseline")
        if f"on_minus_{other}" in figures
    ]
    leakage = {f"leakage-{name}": leakage_curve(name, curves) for name, curves in found["leakage"].items()}
    return {
        "gains": dots(
            "What retrieval changes (left of 0 is better)",
            gaps,
            "bits per byte, 95% interval; hollow: no difference is shown",
        ),
        **tried_plots(found["all"]["bpb"], conditions, neighbors),
        **leakage,
        "overlap": histogram(
            "Overlap of chunks with their neighbors",
            ["0", *(f"≤{100 * alpha:g}" for alpha in ALPHAS)],
            {name: found["leakage"][name]["histogram"] for name in _largest(subsets)},
            "longest common run, r(C), in percent of the chunk",
            "share of bytes" if len(subsets) <= len(COLORS) else f"share of bytes, {len(COLORS)} largest subsets",
        ),
    }


def tried_plots(bpb: Mapping[str, float | None], conditions: Sequence[Mapping], neighbors: int) -> dict[str, str]:
    """Bits per byte against the number of neighbors and against the share of the database, where several were tried.

    Off and the baseline read no neighbors: they are horizontal lines.
    """
    plots = {}
    for stem, key, own, title, x_label, scale in (
        ("neighbors", "k", neighbors, "Number of neighbors", "neighbors", "number"),
        ("share", "share", 1.0, "Size of the database", "share of the database's documents", "log"),
    ):
        usual = {"k": 0, "share": 1.0, "database": ""}
        tried = [one for one in conditions if one[key] != usual[key] and bpb.get(one["name"]) is not None]
        if not tried or bpb.get("on") is None:
            continue
        on = sorted([(own, bpb["on"]), *((one[key], bpb[one["name"]]) for one in tried)])
        ends = (on[0][0], on[-1][0])
        level = {name: bpb[name] for name in ("off", "baseline") if bpb.get(name) is not None}
        series = [condition_series("on", on)]
        series += [condition_series(name, [(x, y) for x in ends], marked=False) for name, y in level.items()]
        plots[stem] = lines(title, series, x_label, "bits per byte", x=scale)
    return plots


def leakage_curve(subset: str, curves: Mapping) -> str:
    """bpb(α) of a subset without and with retrieval, and of the baseline where there is one."""
    series = [
        condition_series(
            name, [(a, b) for a, b in zip(curves["alphas"], curves["bpb"][name], strict=True) if b is not None]
        )
        for name in ("baseline", "off", "on")
        if name in curves["bpb"]
    ]
    title = f"bpb(α), {'all subsets' if subset == 'all' else subset}"
    return lines(title, series, "overlap r(C) at most α", "bits per byte", x="percent")


def _largest(subsets: Mapping[str, Mapping]) -> list[str]:
    """The subsets with the most bytes, as many as there are colors of bars, in their order."""
    largest = sorted(subsets, key=lambda name: -subsets[name]["bytes"])[: len(COLORS)]
    return [name for name in subsets if name in largest]


def condition_series(
    condition: str, values: Sequence[tuple[float, float]], *, name: str = "", marked: bool = True
) -> Series:
    """A line in the color, dash and marker of a condition: the same in every plot."""
    of, place = CONDITIONS[condition], list(CONDITIONS).index(condition)
    return Series(name or condition, values, of.color, of.dash, _MARKERS[place % len(_MARKERS)] if marked else "")


def interval(gap: Mapping) -> Interval:
    """A difference of results.json as an Interval of a figure."""
    return Interval(gap["mean"], gap["low"], gap["high"], gap["shown"])


def points(records: Sequence[Mapping], key: str) -> list[tuple[float, float]]:
    """(step, value) of the records that have a number under the key."""
    return [(record["step"], record[key]) for record in records if isinstance(record.get(key), (int, float))]
