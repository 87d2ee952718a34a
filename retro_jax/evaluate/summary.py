"""From bits of tokens to results: sums by subset, intervals over documents, curves by overlap, and a verdict in words."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from retro_jax.evaluate.conditions import CONDITIONS
from retro_jax.evaluate.metrics import METRICS, Scored
from retro_jax.evaluate.overlap import ALPHAS, leakage_curves
from retro_jax.evaluate.scoring import HeldOut

DIFFERENCES = (("on", "off"), ("on", "random"), ("on", "shuffled"), ("off", "baseline"), ("on", "baseline"))
RESAMPLES_AT_ONCE = 4_000_000  # cells of the table of resampled counts
TAIL = 0.025  # of the resamples on each side of a 95% interval
ENOUGH = 160  # resamples: of fewer, the ends of the interval are known too badly to say on which side of 0 they are
NOT_SHOWN = "0 lies within the 95% interval, or so near to its end that the draw of resamples decides"
DEVIATIONS = 3  # by which the draw of resamples may move an end


def summarize(held_out: HeldOut, subset_names: Sequence[str], *, resamples: int, seed: int) -> dict:
    """{"subsets": {NAME: figures}, "all": figures, "leakage": {...}, "verdict": {...}} as plain JSON.

    Figures: documents, tokens (scored), bytes, every metric (metrics.py) by condition, differences with 95% intervals, and the mean of r(C) over bytes.
    """
    subset_of = [
        (name, held_out.subsets == number)
        for number, name in enumerate(subset_names)
        if (held_out.subsets == number).any()
    ]
    everything = np.ones(len(held_out.subsets), bool)
    subsets = {name: figures(held_out, rows, resamples, seed) for name, rows in subset_of}
    return {
        "subsets": subsets,
        "all": figures(held_out, everything, resamples, seed),
        "leakage": {name: leakage(held_out, rows, resamples, seed) for name, rows in [("all", everything), *subset_of]},
        "verdict": verdict(subsets),
    }


def figures(held_out: HeldOut, rows: Bool[np.ndarray, "N"], resamples: int, seed: int) -> dict:
    """The figures of the documents that own `rows` (whole documents)."""
    numbers = np.unique(held_out.documents[rows], return_inverse=True)[1]
    scored = {
        name: Scored(held_out.bits[name][rows], held_out.bytes[rows], held_out.scored[rows], numbers)
        for name in CONDITIONS
        if name in held_out.bits
    }
    bits = {name: of.bits for name, of in scored.items()}
    of_any = next(iter(scored.values()))
    sizes, weights = of_any.bytes, held_out.bytes[rows].sum(axis=1)
    found = {
        "documents": len(sizes),
        "tokens": int(of_any.tokens.sum()),
        "bytes": int(sizes.sum()),
        **{metric.name: {name: float(metric.value(of)) for name, of in scored.items()} for metric in METRICS.values()},
        "overlap": float((held_out.overlap[rows] * weights).sum() / weights.sum()),
    }
    for one, other in DIFFERENCES:
        if one in bits and other in bits:
            found[f"{one}_minus_{other}"] = paired_difference(bits[one] - bits[other], sizes, resamples, seed)
    for metric in METRICS:
        found[metric].setdefault("baseline", None)
    return found


def paired_difference(
    differences: Float[np.ndarray, "D"], sizes: Float[np.ndarray, "D"], resamples: int, seed: int
) -> dict:
    """Bits per byte by which one condition is above another, with a 95% bootstrap interval over documents.

    Documents, not tokens, are drawn again (with their differences and bytes together): tokens of one document rise and
    fall together.

    Returns:
      "mean", "low", "high", and "shown": whether a difference is shown, that is whether 0 lies outside of the interval
      for any draw of so many resamples. The ends are None where one document gives nothing to draw from.
    """
    mean = float(differences.sum() / sizes.sum())
    count = len(sizes)
    if count < 2:
        return {"mean": mean, "low": None, "high": None, "shown": False}
    generator = np.random.default_rng(seed)
    ratios = []
    for start in range(0, resamples, step := max(1, RESAMPLES_AT_ONCE // count)):
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - start))
        ratios.append((drawn @ differences) / np.maximum(drawn @ sizes, 1))
    ratios = np.sort(np.concatenate(ratios))
    low, high = np.quantile(ratios, [TAIL, 1 - TAIL])
    # The resamples below the end of the true interval are binomial: the end lies between two ranks, whatever the draw.
    rank = max(0, math.floor(resamples * TAIL - DEVIATIONS * math.sqrt(resamples * TAIL * (1 - TAIL))))
    shown = resamples >= ENOUGH and bool(ratios[rank] > 0 or ratios[-1 - rank] < 0)
    return {"mean": mean, "low": float(low), "high": float(high), "shown": shown}


def leakage(held_out: HeldOut, rows: Bool[np.ndarray, "N"], resamples: int, seed: int) -> dict:
    """bpb(alpha) of some chunks; and on - off where at most an eighth of a chunk stands in its neighbors."""
    bits = {name: table[rows].sum(axis=1, dtype=np.float64) for name, table in held_out.bits.items()}
    curves = leakage_curves(held_out.overlap[rows], held_out.bytes[rows].sum(axis=1), bits)
    low = rows & (held_out.overlap <= ALPHAS[0] + 1e-9) & (held_out.bytes.sum(axis=1) > 0)
    curves["on_minus_off_at_lowest_alpha"] = None
    if low.any():
        numbers = np.unique(held_out.documents[low], return_inverse=True)[1]
        gap = held_out.bits["on"][low].sum(axis=1, dtype=np.float64) - held_out.bits["off"][low].sum(axis=1)
        sizes = np.bincount(numbers, weights=held_out.bytes[low].sum(axis=1))
        curves["on_minus_off_at_lowest_alpha"] = paired_difference(np.bincount(numbers, gap), sizes, resamples, seed)
    return curves


def verdict(subsets: Mapping[str, Mapping]) -> dict:
    """Was the promised effect seen: On below Off and below random neighbors, by more than the interval (see `paired_difference`), where overlap is highest?"""
    name = max(sorted(subsets), key=lambda name: subsets[name]["overlap"])
    found = subsets[name]
    gaps = {other: found[f"on_minus_{other}"] for other in ("off", "random")}
    seen = all(gap["shown"] and gap["mean"] < 0 for gap in gaps.values())
    figures = " and ".join(
        f"{gap['mean']:+.4f} bits per byte against {'retrieval off' if other == 'off' else 'random neighbors'} "
        f"({interval(gap)})"
        for other, gap in gaps.items()
    )
    opening = (
        f"Retrieval helps on '{name}', the subset with the highest overlap"
        if seen
        else f"No effect of retrieval is shown on '{name}', the subset with the highest overlap, at this size"
    )
    return {"subset": name, "seen": seen, "text": f"{opening}: with its neighbors the model stands {figures}."}


def interval(gap: Mapping) -> str:
    if gap["low"] is None:
        return "one document, no interval"
    return f"95% interval {gap['low']:+.4f} to {gap['high']:+.4f}"


def table_text(results: Mapping) -> str:
    """The results table as a terminal shows it: bits per byte by subset and condition, and what On changes."""
    head = ["subset", "bytes", "overlap", *CONDITIONS, "on - off", "95% interval", "on - baseline", "95% interval"]
    lines = [head]
    for name, found in [*results["subsets"].items(), ("all", results["all"])]:
        gaps = [cell for other in ("off", "baseline") for cell in _gap_cells(found.get(f"on_minus_{other}"))]
        cells = ["-" if found["bpb"][c] is None else f"{found['bpb'][c]:.4f}" for c in CONDITIONS]
        lines.append([name, f"{found['bytes']:,}", f"{found['overlap']:.2f}", *cells, *gaps])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    lowest = results["leakage"]["all"]["on_minus_off_at_lowest_alpha"]
    notes = [
        "Bits per byte of held-out text, lower is better. Controls: random (database chunks by chance), empty (no",
        "neighbors), shuffled (those of another chunk), oracle (the true continuation; a cheat and an upper bound).",
    ]
    if any("~" in cell for line in lines for cell in line):
        notes.append(f"~ no difference is shown: {NOT_SHOWN}.")
    if lowest is not None:
        mean, ends = _gap_cells(lowest)
        notes.append(f"on - off where at most 12.5% of a chunk stands in its neighbors: {mean} ({ends}).")
    return "\n".join([text, "", *notes])


def _gap_cells(gap: Mapping | None) -> tuple[str, str]:
    """A difference, with a ~ where none is shown, and its interval."""
    if gap is None:
        return "-", "-"
    ends = "one document" if gap["low"] is None else f"{gap['low']:+.4f} .. {gap['high']:+.4f}"
    return f"{gap['mean']:+.4f}{'' if gap['shown'] else ' ~'}", ends
