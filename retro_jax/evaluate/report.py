"""report.html: one self-contained page made from results.json, passages.json and the runs' metrics.jsonl.

Nothing in it is loaded from elsewhere, and no text of the data is trusted: whatever comes from a document, a file name
or a config is escaped.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from retro_jax.evaluate.conditions import CONDITIONS
from retro_jax.evaluate.metrics import METRICS, Metric
from retro_jax.evaluate.overlap import ALPHAS
from retro_jax.evaluate.passages import SHORTEST_RUN
from retro_jax.evaluate.plots import MARKERS, Series, bar_chart, interval_chart, line_chart
from retro_jax.evaluate.report_style import STYLE
from retro_jax.evaluate.summary import NOT_SHOWN

STRONGEST = 4.0  # bits at which a token's color is full
HELPED, HURT = "43,127,196", "217,98,43"  # blue and orange: apart for every common kind of color blindness

e = html.escape


def make_plots(results: Mapping, metrics: Mapping[str, Sequence[Mapping]]) -> dict[str, str]:
    """The SVGs by file stem.

    Args:
      metrics: records of metrics.jsonl by run, "retro" and "baseline".
    """
    subsets = results["subsets"]
    gaps = [
        (f"{name}: on − {other}", CONDITIONS[other].color, figures[f"on_minus_{other}"])
        for name, figures in [*subsets.items(), ("all", results["all"])]
        for other in ("off", "random", "baseline")
        if f"on_minus_{other}" in figures
    ]
    plots = {
        "gains": interval_chart(
            "What retrieval changes (left of 0 is better)", gaps, "bits per byte, 95% interval; hollow: none is shown"
        )
    }
    plots["training"] = line_chart(
        "Training",
        [
            Series(name, points(metrics.get(run, ()), "bpb"), CONDITIONS[color].color, CONDITIONS[color].dash)
            for name, run, color in (("RETRO", "retro", "on"), ("baseline", "baseline", "baseline"))
        ],
        "step",
        "bits per byte of training text",
    )
    plots["check"] = line_chart(
        "Held-out loss while training",
        [
            Series(
                name,
                points(metrics.get("retro", ()), f"validation_loss_{name}"),
                CONDITIONS[name].color,
                CONDITIONS[name].dash,
                marker,
            )
            for name, marker in zip(("off", "on", "random"), MARKERS, strict=True)
        ],
        "step",
        "nats a token",
    )
    for name, curves in results["leakage"].items():
        series = [
            Series(
                condition,
                [(a, b) for a, b in zip(curves["alphas"], curves["bpb"][condition], strict=True) if b is not None],
                CONDITIONS[condition].color,
                CONDITIONS[condition].dash,
                marker,
            )
            for condition, marker in zip(("baseline", "off", "on"), MARKERS, strict=True)
            if condition in curves["bpb"]
        ]
        title = f"bpb(α), {'all subsets' if name == 'all' else name}"
        plots[f"leakage-{name}"] = line_chart(title, series, "overlap r(C) at most α", "bits per byte", percent=True)
    plots["overlap"] = bar_chart(
        "How much of a chunk stands in its neighbors",
        ["0", *(f"≤{100 * alpha:g}" for alpha in ALPHAS)],
        {name: results["leakage"][name]["histogram"] for name in subsets},
        "longest common run, r(C), in percent of the chunk",
        "share of bytes",
    )
    return plots


def points(records: Sequence[Mapping], key: str) -> list[tuple[float, float]]:
    """(step, value) of the records that have a number under the key."""
    return [(record["step"], record[key]) for record in records if isinstance(record.get(key), (int, float))]


def make_report(
    results: Mapping, passages: Sequence[Mapping], plots: Mapping[str, str], title: str = "RETRO report"
) -> str:
    """The page as HTML."""
    leakage = [plots[f"leakage-{name}"] for name in results["leakage"]]
    verdict = results["verdict"]
    parts = [
        f"<h1>{e(title)}</h1>",
        f'<p class="soft">{e(_subtitle(results))}</p>',
        f'<p class="verdict{" seen" if verdict["seen"] else ""}">{e(verdict["text"])}</p>',
        "<h2>Bits per byte of held-out text</h2>",
        _bpb_table(results),
        _difference_table(results),
        *(_metric_table(results, metric) for metric in METRICS.values() if metric.name not in ("bpb", "perplexity")),
        _meanings(results),
        "<h2>What retrieval changes, and when it came</h2>",
        _figures([plots["gains"], plots["check"], plots["training"]]),
        "<h2>Is it more than copying?</h2>",
        _leakage_words(results),
        _figures([*leakage, plots["overlap"]]),
        _leakage_table(results),
        "<h2>Passages</h2>",
        _passage_words(),
        *(_passage(passage) for passage in passages),
        "<h2>How this was made</h2>",
        '<div class="columns">',
        *(f"<div>{table}</div>" for table in _facts(results)),
        "</div>",
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{e(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _subtitle(results) -> str:
    database, model = results["database"], results["model"]
    return (
        f"{model['parameters']:,} parameters (baseline {_count(model['baseline_parameters'])}); a database of "
        f"{database['chunks']:,} chunks of {database['documents']:,} documents; {results['all']['documents']:,} held-out "
        f"documents with {results['all']['bytes']:,} bytes."
    )


def _count(number) -> str:
    return "-" if number is None else f"{number:,}"


def _rows(results):
    return [*((name, figures, "") for name, figures in results["subsets"].items()), ("all", results["all"], "all")]


def _bpb_table(results) -> str:
    def cell(figures, condition):
        value = figures["bpb"][condition]
        shown = "-" if value is None else f"{value:.4f}"
        return (
            f"<td{_control(condition)}>{f'<b>{shown}</b>' if condition == 'on' and on_is_best(figures) else shown}</td>"
        )

    head = "".join(f"<th{_control(name)}>{name}</th>" for name in CONDITIONS)
    body = "".join(
        f'<tr class="{kind}"><td>{e(name)}</td><td>{figures["documents"]:,}</td><td>{figures["bytes"]:,}</td>'
        f"<td>{figures['overlap']:.2f}</td>{''.join(cell(figures, c) for c in CONDITIONS)}</tr>"
        for name, figures, kind in _rows(results)
    )
    return (
        '<p class="caption">Lower is better. Every text token is scored once, bytes are UTF-8; '
        "controls in gray. On is bold where it is shown to be below Off and below the baseline.</p>"
        '<div class="scroll"><table>'
        f"<thead><tr><th>subset</th><th>documents</th><th>bytes</th><th>overlap</th>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _metric_table(results, metric: Metric) -> str:
    """A metric that was added to the two that have their place on the page."""

    def cell(value):
        return "<td>-</td>" if value is None else f"<td>{value:.{metric.digits}f}</td>"

    head = "".join(f"<th{_control(name)}>{name}</th>" for name in CONDITIONS)
    body = "".join(
        f"<tr><td>{e(name)}</td>{''.join(cell(figures[metric.name].get(c)) for c in CONDITIONS)}</tr>"
        for name, figures, _ in _rows(results)
    )
    return (
        f'<p class="caption">{e(metric.name)}: {e(metric.meaning)}.</p><div class="scroll"><table>'
        f"<thead><tr><th>subset</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def on_is_best(figures: Mapping) -> bool:
    """Whether On is shown to be below Off, and below the baseline where there is one."""
    gaps = [figures[name] for name in ("on_minus_off", "on_minus_baseline") if name in figures]
    return all(gap["shown"] and gap["mean"] < 0 for gap in gaps)


def _control(condition: str) -> str:
    return ' class="control"' if CONDITIONS[condition].control else ""


def _difference_table(results) -> str:
    names = ["on_minus_off", "on_minus_random", "on_minus_shuffled", "off_minus_baseline", "on_minus_baseline"]

    head = "".join(f"<th>{name.replace('_minus_', ' − ')}</th>" for name in names)
    body = "".join(
        f'<tr class="{kind}"><td>{e(name)}</td>{"".join(_gap_cell(figures.get(gap)) for gap in names)}</tr>'
        for name, figures, kind in _rows(results)
    )
    return (
        '<p class="caption">Differences in bits per byte with 95% bootstrap intervals over documents; '
        f"negative where the first is better. Not bold: no difference is shown, {NOT_SHOWN}.</p>"
        '<div class="scroll"><table>'
        f"<thead><tr><th>subset</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _gap_cell(gap: Mapping | None) -> str:
    if gap is None:
        return "<td>-</td>"
    mean = f"{gap['mean']:+.4f}"
    if gap["low"] is None:
        return f"<td>{mean} <small>one document</small></td>"
    return f"<td>{f'<b>{mean}</b>' if gap['shown'] else mean}<br><small>{gap['low']:+.4f} to {gap['high']:+.4f}</small></td>"


def _meanings(results) -> str:
    meanings = [(condition.name, condition.meaning) for condition in CONDITIONS.values()]
    words = "; ".join(f"<b>{name}</b>: {e(meaning)}" for name, meaning in meanings)
    ppl = results["all"]["perplexity"]
    shown = ", ".join(f"{name} {ppl[name]:.2f}" for name in ("baseline", "off", "on") if ppl[name] is not None)
    return (
        f'<p class="soft">{words}. <b>overlap</b>: mean r(C), the share of a chunk that stands in one run in a neighbor. '
        f"Perplexity a token, over all tokens: {shown}.</p>"
    )


def _figures(plots: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(f"<figure>{plot}</figure>" for plot in plots)}</div>'


def _leakage_words(results) -> str:
    nearest = results["settings"]["overlap_neighbors"]
    return (
        f"<p>r(C) is the longest run of tokens that a held-out chunk shares with any of its {nearest} nearest database "
        "passages, divided by its length. bpb(α) counts only chunks with r(C) ≤ α (paper 2.6): at the left stands text "
        "that the database does not hold, at the right everything. A gain that is there only at the right is copying.</p>"
    )


def _leakage_table(results) -> str:
    rows = "".join(
        f"<tr><td>{e(name)}</td><td>{curves['byte_share'][0]:.1%}</td>"
        f"{_gap_cell(curves['on_minus_off_at_lowest_alpha'])}{_gap_cell(_all_of(results, name)['on_minus_off'])}</tr>"
        for name, curves in results["leakage"].items()
    )
    return (
        '<p class="caption">On − Off in bits per byte (negative is better), on low-overlap chunks and on '
        'all; bold where a difference is shown.</p><div class="scroll"><table><thead><tr><th>subset</th>'
        "<th>bytes with r ≤ 12.5%</th>"
        f"<th>on − off there</th><th>on − off on all</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _all_of(results, name: str) -> Mapping:
    return results["all"] if name == "all" else results["subsets"][name]


def _passage_words() -> str:
    return (
        '<p>Left: held-out text. <span class="legend">'
        f'<span style="background:rgba({HELPED},.55)">Blue</span> tokens cost fewer bits with retrieval than without, '
        f'<span class="hurt" style="background:rgba({HURT},.55)">orange, dotted</span> ones more; full color is '
        f"{STRONGEST:g} bits.</span> Right: what the model read while predicting it, the neighbors of the chunk before: "
        "the passage that was found, then, behind a bar, its continuation. <mark>Underlined</mark>: the longest run it "
        f"shares with the text at the left, from {SHORTEST_RUN} tokens on. Hover over a token for its bits.</p>"
    )


def _passage(passage: Mapping) -> str:
    gain = passage["bits_off"] - passage["bits_on"]
    per_byte = f"{passage['bits_off'] / passage['bytes']:.2f} → {passage['bits_on'] / passage['bytes']:.2f}"
    chunks = "".join(
        f'<div class="chunk"><div><div class="text">{"".join(_token(token) for token in chunk["tokens"])}</div>'
        f'<div class="soft">chunk {chunk["chunk"]}, r = {chunk["overlap"]:.2f}</div></div>'
        f"<div>{''.join(_neighbor(neighbor) for neighbor in chunk['neighbors']) or _NOTHING}</div></div>"
        for chunk in passage["chunks"]
    )
    return (
        f'<section class="passage"><header><h3>{e(passage["subset"])}: {e(passage["document"])}</h3>'
        f'<div class="soft">{e(passage["kind"])}: retrieval saves {gain:+.0f} bits here, {per_byte} bits per byte</div>'
        f"</header>{chunks}</section>"
    )


_NOTHING = '<div class="soft">Nothing: the first chunk of a document reads no neighbors.</div>'


def _token(token: Mapping) -> str:
    gain = token["off"] - token["on"]
    strength = min(abs(gain) / STRONGEST, 1.0) * 0.6
    text = e(token["text"])
    if strength < 0.03:
        return text
    color, kind = (HELPED, "") if gain > 0 else (HURT, ' class="hurt"' if gain < -1 else "")
    note = f"off {token['off']:.1f} bits, on {token['on']:.1f} bits"
    return f'<span{kind} style="background:rgba({color},{strength:.2f})" title="{note}">{text}</span>'


def _neighbor(neighbor: Mapping) -> str:
    found = "".join(_part(part) for part in neighbor["parts"] if not part["continuation"])
    more = "".join(_part(part) for part in neighbor["parts"] if part["continuation"])
    return (
        f'<div class="neighbor"><div class="soft">{e(neighbor["subset"])}: {e(neighbor["document"])}, distance '
        f'{neighbor["distance"]:.2f}</div><div class="text">{found}<span class="more">{more}</span></div></div>'
    )


def _part(part: Mapping) -> str:
    return f"<mark>{e(part['text'])}</mark>" if part["shared"] else e(part["text"])


def _facts(results) -> list[str]:
    database, model = results["database"], results["model"]
    recall = database["recall"]
    settings = results["settings"]
    index = [
        ("chunks", f"{database['chunks']:,} of {database['chunk_length']} tokens"),
        ("documents", f"{database['documents']:,}"),
        ("search", database["index"]),
        (f"recall@{recall['k']}", f"{recall['value']:.4f}"),
        ("neighbors read, at most", str(settings["neighbors"])),
    ]
    sizes = [("RETRO parameters", f"{model['parameters']:,}")]
    sizes += [("baseline parameters", _count(model["baseline_parameters"]))]
    sizes += [(name.replace("_", " "), str(value)) for name, value in model["settings"].items()]
    seconds = [(stage, f"{value:,.1f}") for stage, value in results["seconds"].items()]
    seconds.append(("all", f"{sum(results['seconds'].values()):,.1f}"))
    versions = [(name, str(value)) for name, value in results["versions"].items()]
    licenses = [
        (name, source["license"], f"{source['train_bytes']:,}", f"{source['validation_bytes']:,}")
        for name, source in results["data"].items()
    ]
    return [
        _table("Database", ("", ""), index),
        _table("Seconds by stage", ("", ""), seconds),
        _table("Models", ("", ""), sizes),
        _table("Data and licenses", ("subset", "license", "training bytes", "held-out bytes"), licenses, words={1}),
        _table("Versions", ("", ""), versions),
    ]


_CELL = "<td>"


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], words: set[int] = frozenset()) -> str:
    top = f"<thead><tr>{''.join(f'<th>{e(name)}</th>' for name in head)}</tr></thead>" if any(head) else ""
    opening = {n: '<td class="words">' for n in words}
    body = "".join(
        f"<tr>{''.join(f'{opening.get(n, _CELL)}{e(cell)}</td>' for n, cell in enumerate(row))}</tr>" for row in rows
    )
    return f'<p class="caption">{e(caption)}</p><table>{top}<tbody>{body}</tbody></table>'


def write_text(path: Path, content: str) -> None:
    """Writes a file atomically."""
    from retro_jax.core.files import atomic_path

    with atomic_path(path) as temporary:
        Path(temporary).write_text(content, encoding="utf-8")
