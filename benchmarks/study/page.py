"""docs/measured/study.md and its plots, from the points of a study. Nothing here decides: checks.py does."""

import textwrap
from collections.abc import Mapping, Sequence

from cells import interval, value
from checks import FAILED, OPEN, REPRODUCED, RULE, WAITING, Checked, Claim, run_check, verdict
from claims import CLAIMS, NOVEL, RECURS, bits, minus
from points import Missing, Study, overlap_between
from quantities import estimate

from retro_jax.evaluate.conditions import CONDITIONS
from retro_jax.evaluate.overlap import ALPHAS
from retro_jax.evaluate.report.figures.charts import COLORS, Interval, Series, dots, lines
from retro_jax.presets.ablations import TABLE_13

ORDER = (FAILED, OPEN, REPRODUCED, WAITING)  # negative results first
SUBSETS = (RECURS, NOVEL, "")
LARGE = {"large_m16": "16", "large_m32": "32"}  # points of the larger model, and their chunk lengths
HEAD = """# What holds at small scale

Written by `make study` (benchmarks/study); do not edit. Text: the quickstart's, licenses that recur in each other (`{recurs}`) and
encyclopedia entries that do not (`{novel}`). {models}Points, their order and their cost: configs/study.py. Lower is better; bits per
byte of held-out text. {seeds}{missing}"""


def page(study: Study) -> str:
    """The page of what is finished."""
    checked = {claim.number: [run_check(check, study) for check in claim.checks] for claim in CLAIMS}
    wanted = sorted({one.missing for those in checked.values() for one in those if one.missing} | _unfinished(study))
    missing = f"\n\n**Not finished yet:** {', '.join(wanted)}." if wanted else ""
    head = HEAD.format(recurs=RECURS, novel=NOVEL, models=_models(study), seeds=_seeds(study), missing=missing)
    head = "\n\n".join(textwrap.fill(part, 130, break_on_hyphens=False) for part in head.split("\n\n"))
    parts = [head, _verdicts(checked), "## How a verdict is reached\n\n" + RULE, _figures(study), _rows(study)]
    return "\n\n".join(part for part in [*parts, _overlap(study), _larger(study)] if part) + "\n"


def _unfinished(study: Study) -> set[str]:
    wanted = {row.name for row in TABLE_13 if row.name != "no_retrieval"} | set(LARGE)
    return {f"the point {name}" for name in wanted - set(study.results)}


def _models(study: Study) -> str:
    if "default" not in study.results:
        return ""
    model = next(iter(study.results["default"].values()))["model"]
    return (
        f"The default is a RETRO of {model['parameters']:,} parameters with a baseline of {model['baseline_parameters']:,}, "
        f"{model['settings']['training_tokens']} tokens of training and chunks of {model['settings']['chunk_length']}. "
    )


def _seeds(study: Study) -> str:
    counts = sorted({len(seeds) for seeds in study.results.values()})
    return f"Seeds a point: {' or '.join(map(str, counts))}." if counts else "No point is finished."


def _verdicts(checked: Mapping[str, Sequence[Checked]]) -> str:
    lines_of: dict[str, list[str]] = {state: [] for state in ORDER}
    for claim in CLAIMS:
        state = verdict(checked[claim.number])
        lines_of[state].append(_verdict_line(claim, state, checked[claim.number]))
    counts = ", ".join(f"{len(lines_of[state])} {state}" for state in ORDER if lines_of[state])
    head = "| claim | the paper's figure | here | verdict | why |\n|---|---|---|---|---|"
    return "\n".join(
        [f"Of {len(CLAIMS)} claims: {counts}.", "", head, *(one for state in ORDER for one in lines_of[state])]
    )


def _verdict_line(claim: Claim, state: str, checked: Sequence[Checked]) -> str:
    ours = "<br>".join(f"{one.check.says}: {interval(one.found)}" for one in checked if one.found)
    why = "; ".join(one.why for one in checked if one.state != "holds") or "every check holds"
    return f"| {claim.number}. {claim.says} | {claim.paper} | {ours or '-'} | **{state}** | {why} |"


def _difference(study: Study, one, other) -> str:
    try:
        return interval(estimate(minus(one, other)(study)))
    except ValueError:
        return "-"


def _figures(study: Study) -> str:
    """Every condition of the default model, by subset."""
    if "default" not in study.results:
        return ""
    head = f"| subset | {' | '.join(CONDITIONS)} | On - Off | On - baseline |\n|{'---|' * (len(CONDITIONS) + 3)}"
    rows = []
    for subset in SUBSETS:
        values = " | ".join(value(study, "default", condition, subset) for condition in CONDITIONS)
        on = bits("default", "on", subset)
        gaps = " | ".join(_difference(study, on, bits("default", other, subset)) for other in ("off", "baseline"))
        rows.append(f"| {subset or 'all'} | {values} | {gaps} |")
    return "\n".join(["## The default model\n", head, *rows])


def _rows(study: Study) -> str:
    """Table 13 with all rows."""
    head = (
        f"| group | row | paper, C4 | On, {RECURS} | less the default (95%) | On, all | less the default (95%) | seeds |\n"
        f"|{'---|' * 8}"
    )
    rows = []
    for row in TABLE_13:
        point, condition = ("default", "baseline") if row.name == "no_retrieval" else (row.name, "on")
        cells = [row.group, row.meaning, f"{row.bpb:.3f}"]
        for subset in (RECURS, ""):
            own = bits(point, condition, subset)
            gap = "" if row.name == "default" else _difference(study, own, bits("default", "on", subset))
            cells += [value(study, point, condition, subset), gap]
        rows.append(f"| {' | '.join([*cells, str(len(study.results.get(point, ())))])} |")
    return "\n".join(["## Table 13\n", head, *rows, "", "![Table 13](study-rows.svg)"])


def _overlap(study: Study) -> str:
    """Gain by overlap, with the share of bytes."""
    if "default" not in study.results:
        return ""
    head = (
        "| overlap r(C) | share of bytes | baseline | Off | On | On - Off (95%) | On - baseline (95%) |\n|" + "---|" * 7
    )
    rows = []
    first = study.point("default", study.seeds("default")[0])
    for low, high in zip((-1.0, *ALPHAS[:-1]), ALPHAS, strict=True):
        inside = overlap_between(low, high)
        share = first.chunk_bytes[inside(first.overlap)].sum() / first.chunk_bytes.sum()
        values = {name: bits("default", name, "", inside) for name in ("baseline", "off", "on")}
        means = [f"{estimate(value(study)).mean:.4f}" if share else "-" for value in values.values()]
        gaps = [_difference(study, values["on"], values[other]) if share else "-" for other in ("off", "baseline")]
        rows.append(f"| {max(low, 0):.1%} to {high:.1%} | {share:.1%} | {' | '.join([*means, *gaps])} |")
    return "\n".join(["## Gain against overlap\n", head, *rows, "", "![Gain against overlap](study-overlap.svg)"])


def _larger(study: Study) -> str:
    there = {name: chunk for name, chunk in LARGE.items() if name in study.results}
    if not there:
        return ""
    head = "| chunk | subset | baseline | Off | On | random | On - Off (95%) | On - baseline (95%) |\n|" + "---|" * 8
    rows = []
    for name, chunk in there.items():
        for subset in SUBSETS:
            values = [value(study, name, condition, subset) for condition in ("baseline", "off", "on", "random")]
            on = bits(name, "on", subset)
            gaps = [_difference(study, on, bits(name, other, subset)) for other in ("off", "baseline")]
            rows.append(f"| {chunk} | {subset or 'all'} | {' | '.join([*values, *gaps])} |")
    parameters = next(iter(study.results[next(iter(there))].values()))["model"]["parameters"]
    return "\n".join([f"## A model of {parameters:,} parameters, one seed\n", head, *rows])


def plots(study: Study) -> dict[str, str]:
    """The SVGs by file name."""
    found = {}
    rows = []
    for row in TABLE_13[1:]:
        point, condition = ("default", "baseline") if row.name == "no_retrieval" else (row.name, "on")
        try:
            one = estimate(minus(bits(point, condition), bits("default"))(study))
        except Missing:
            continue
        shown = (one.low > 0 or one.high < 0) and one.agree
        rows.append((row.meaning, COLORS[1], Interval(one.mean, one.low, one.high, shown)))
    if rows:
        found["study-rows.svg"] = dots(
            f"Less the default, {RECURS}", rows, "bits per byte, 95% over seeds and documents"
        )
    if "default" in study.results:
        found["study-overlap.svg"] = lines(
            "Gain against overlap", _overlap_series(study), "overlap r(C)", "gain, bits per byte", x="percent"
        )
    return found


def _overlap_series(study: Study) -> list[Series]:
    series = []
    for number, (name, other) in enumerate((("Off - On", "off"), ("baseline - On", "baseline"))):
        points, band = [], []
        for low, high in zip((-1.0, *ALPHAS[:-1]), ALPHAS, strict=True):
            inside = overlap_between(low, high)
            first = study.point("default", study.seeds("default")[0])
            if not first.chunk_bytes[inside(first.overlap)].sum():
                continue
            one = estimate(minus(bits("default", other, "", inside), bits("default", "on", "", inside))(study))
            points.append((high, one.mean))
            band.append((one.low, one.high))
        series.append(Series(name, points, COLORS[number], band=band))
    return series
