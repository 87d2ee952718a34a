"""Turns scores into results: sums by subset, intervals over documents, curves by overlap, and a verdict in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from retro_jax.evaluate.conditions import CONDITIONS
from retro_jax.evaluate.metrics import METRICS, Scored
from retro_jax.evaluate.overlap import ALPHAS, leakage_curves, overlap_bins
from retro_jax.evaluate.scores import Scores

DIFFERENCES = (("on", "off"), ("on", "random"), ("on", "shuffled"), ("off", "baseline"), ("on", "baseline"))
RESAMPLES_AT_ONCE = 4_000_000  # cells of the table of resampled counts
TAIL = 0.025  # of the resamples on each side of a 95% interval
ENOUGH = 160  # resamples; with fewer, the ends of the interval are too uncertain to say on which side of 0 they are
NOT_SHOWN = "0 lies within the 95% interval, or so close to its end that another draw of resamples could include it"
DEVIATIONS = 3  # standard deviations by which another draw of resamples may move an end


@dataclass(frozen=True)
class Totals:
    """Sums over each of the D documents of a set, and over the bins of overlap; all results are computed from them.

    Memory: about 20 bytes for each document and condition; chunks and tokens stay on disk.
    """

    subsets: Int[np.ndarray, "D"]  # numbers into `subset_names`
    subset_names: Sequence[str]
    bytes: Int[np.ndarray, "D"]
    tokens: Int[np.ndarray, "D"]
    words: Int[np.ndarray, "D"]
    bits: Mapping[str, Float[np.ndarray, "D"]]  # by condition
    hits: Mapping[str, Int[np.ndarray, "D"]]
    weighted_overlap: Float[np.ndarray, "D"]  # sum of r(C) times bytes
    low_bytes: Int[np.ndarray, "D"]  # of the chunks with the lowest overlap
    low_gap: Float[np.ndarray, "D"]  # On - Off over those chunks, in bits
    bin_bytes: Float[np.ndarray, "S 9"]  # by subset and bin of overlap
    bin_bits: Mapping[str, Float[np.ndarray, "S 9"]]

    def scored(self, condition: str, rows: Bool[np.ndarray, "D"]) -> Scored:
        """The documents `rows` under a condition, as metrics read them."""
        return Scored(
            self.bits[condition][rows],
            self.bytes[rows],
            self.tokens[rows],
            self.words[rows],
            self.hits[condition][rows],
        )


def add_up(
    text: Scores,
    conditions: Mapping[str, Scores],
    subset_names: Sequence[str],
    keep: Bool[np.ndarray, "D"] | None = None,
) -> Totals:
    """Sums the scores up, part by part.

    Args:
      keep: documents that count; None: all.
    """
    names, parts = list(conditions), []
    numbers = {name: number for number, name in enumerate(subset_names)}
    shape = (len(subset_names), len(ALPHAS) + 1)
    bin_bytes, bin_bits = np.zeros(shape), {name: np.zeros(shape) for name in names}
    streams = [conditions[name].each(("number", "bits", "hits", "chunk_bits")) for name in names]
    for facts, *scored in zip(text.each(), *streams, strict=True):
        count = len(facts["number"])
        kept = np.ones(count, bool) if keep is None else keep[facts["number"]]
        subsets = np.array([numbers[name] for name in facts["subset"]])
        owners = np.repeat(np.arange(count), facts["chunks"])
        bins, used = overlap_bins(facts["chunk_overlap"]), kept[owners]
        low = used & (bins <= 1) & (facts["chunk_bytes"] > 0)

        def by_document(values, chosen=used, owners=owners, count=count):
            return np.bincount(owners[chosen], values[chosen], count)

        flat = subsets[owners] * shape[1] + bins
        bin_bytes += np.bincount(flat[used], facts["chunk_bytes"][used], bin_bytes.size).reshape(shape)
        chunk_bits = {name: one["chunk_bits"] for name, one in zip(names, scored, strict=True)}
        for name, bits in chunk_bits.items():
            bin_bits[name] += np.bincount(flat[used], bits[used], bin_bytes.size).reshape(shape)
        gap = chunk_bits["on"] - chunk_bits["off"] if {"on", "off"} <= chunk_bits.keys() else None
        columns = {
            "subsets": subsets,
            **{name: facts[name] for name in ("bytes", "tokens", "words")},
            "weighted_overlap": by_document(facts["chunk_overlap"] * facts["chunk_bytes"]),
            "low_bytes": by_document(facts["chunk_bytes"], low),
            "low_gap": np.zeros(count) if gap is None else by_document(gap, low),
            **{("bits", name): one["bits"] for name, one in zip(names, scored, strict=True)},
            **{("hits", name): one["hits"] for name, one in zip(names, scored, strict=True)},
        }
        parts.append({name: values[kept] for name, values in columns.items()})
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    by_condition = {kind: {name: found.pop((kind, name)) for name in names} for kind in ("bits", "hits")}
    return Totals(**found, **by_condition, subset_names=subset_names, bin_bytes=bin_bytes, bin_bits=bin_bits)


def summarize(totals: Totals, *, resamples: int, seed: int) -> dict:
    """{"subsets": {NAME: figures}, "all": figures, "leakage": {...}, "verdict": {...}} as plain JSON.

    Figures: documents, tokens (scored), bytes, words, every metric (metrics.py) by condition, differences with 95% intervals, and
    the mean of r(C) over bytes.
    """
    everything = np.ones(len(totals.bytes), bool)
    subset_of = [
        (name, totals.subsets == number)
        for number, name in enumerate(totals.subset_names)
        if totals.bytes[totals.subsets == number].sum()
    ]
    subsets = {name: figures(totals, rows, resamples, seed) for name, rows in subset_of}
    return {
        "subsets": subsets,
        "all": figures(totals, everything, resamples, seed),
        "leakage": {name: leakage(totals, rows, resamples, seed) for name, rows in [("all", everything), *subset_of]},
        "verdict": verdict(subsets),
    }


def figures(totals: Totals, rows: Bool[np.ndarray, "D"], resamples: int, seed: int) -> dict:
    """The figures of the documents `rows`."""
    scored = {name: totals.scored(name, rows) for name in totals.bits}
    sizes = totals.bytes[rows]
    found = {
        "documents": int(rows.sum()),
        **{name: int(getattr(totals, name)[rows].sum()) for name in ("tokens", "bytes", "words")},
        **{metric.name: {name: metric.value(of) for name, of in scored.items()} for metric in METRICS.values()},
        "overlap": float(totals.weighted_overlap[rows].sum() / max(sizes.sum(), 1)),
    }
    for one, other in DIFFERENCES:
        if one in scored and other in scored:
            gap = scored[one].bits - scored[other].bits
            found[f"{one}_minus_{other}"] = paired_difference(gap, sizes, resamples, seed)
    for metric in METRICS:
        found[metric].setdefault("baseline", None)
    return found


def paired_difference(
    differences: Float[np.ndarray, "D"], sizes: Float[np.ndarray, "D"], resamples: int, seed: int
) -> dict:
    """The difference of two conditions in bits per byte, with a 95% bootstrap interval over documents.

    Documents, not tokens, are resampled (each with its difference and its bytes), because the losses of tokens of one
    document are correlated.

    Returns:
      "mean", "low", "high", and "shown": whether 0 lies outside of the interval for any draw of so many resamples. The ends
      are None for a single document.
    """
    mean = float(differences.sum() / max(sizes.sum(), 1))
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
    # The number of resamples below the true end is binomial, so the end lies between two ranks for any draw.
    rank = max(0, math.floor(resamples * TAIL - DEVIATIONS * math.sqrt(resamples * TAIL * (1 - TAIL))))
    shown = resamples >= ENOUGH and bool(ratios[rank] > 0 or ratios[-1 - rank] < 0)
    return {"mean": mean, "low": float(low), "high": float(high), "shown": shown}


def leakage(totals: Totals, rows: Bool[np.ndarray, "D"], resamples: int, seed: int) -> dict:
    """bpb(alpha) of subsets, and On - Off over the chunks with an overlap of at most an eighth."""
    numbers = np.unique(totals.subsets[rows])
    curves = leakage_curves(
        totals.bin_bytes[numbers].sum(axis=0),
        {name: table[numbers].sum(axis=0) for name, table in totals.bin_bits.items()},
    )
    low = rows & (totals.low_bytes > 0)
    curves["on_minus_off_at_lowest_alpha"] = None
    if low.any() and {"on", "off"} <= totals.bits.keys():
        gap = paired_difference(totals.low_gap[low], totals.low_bytes[low], resamples, seed)
        curves["on_minus_off_at_lowest_alpha"] = gap
    return curves


def verdict(subsets: Mapping[str, Mapping]) -> dict:
    """Whether On is shown to be below Off and below random neighbors on the subset with the highest overlap."""
    if not subsets:
        return {"subset": None, "seen": False, "text": "No byte of text was scored."}
    name = max(sorted(subsets), key=lambda name: subsets[name]["overlap"])
    found = subsets[name]
    if "on_minus_off" not in found:
        return {"subset": name, "seen": False, "text": "A baseline was scored alone: nothing is said about retrieval."}
    gaps = {other: found[f"on_minus_{other}"] for other in ("off", "random")}
    seen = all(gap["shown"] and gap["mean"] < 0 for gap in gaps.values())
    figures = " and ".join(
        f"{gap['mean']:+.4f} bits per byte from {'retrieval off' if other == 'off' else 'random neighbors'} "
        f"({interval(gap)})"
        for other, gap in gaps.items()
    )
    opening = (
        f"Retrieval helps on '{name}', the subset with the highest overlap"
        if seen
        else f"No effect of retrieval is shown on '{name}', the subset with the highest overlap, at this size"
    )
    return {"subset": name, "seen": seen, "text": f"{opening}: On differs by {figures}."}


def interval(gap: Mapping) -> str:
    if gap["low"] is None:
        return "one document, no interval"
    return f"95% interval {gap['low']:+.4f} to {gap['high']:+.4f}"


def table_text(results: Mapping) -> str:
    """The results table for a terminal: bits per byte by subset and condition, and the differences of On."""
    head = ["subset", "bytes", "overlap", *CONDITIONS, "on - off", "95% interval", "on - baseline", "95% interval"]
    lines = [head]
    for name, found in [*results["subsets"].items(), ("all", results["all"])]:
        gaps = [cell for other in ("off", "baseline") for cell in _gap_cells(found.get(f"on_minus_{other}"))]
        cells = ["-" if (bpb := found["bpb"].get(c)) is None else f"{bpb:.4f}" for c in CONDITIONS]
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
        "Bits per byte of held-out text, lower is better. Controls: random (random database chunks), empty (no",
        "neighbors), shuffled (those of another chunk), oracle (the true continuation; an upper bound, not a result).",
    ]
    if any("~" in cell for line in lines for cell in line):
        notes.append(f"~ no difference is shown: {NOT_SHOWN}.")
    if lowest is not None:
        mean, ends = _gap_cells(lowest)
        notes.append(f"on - off where the overlap of a chunk with its neighbors is at most 12.5%: {mean} ({ends}).")
    return "\n".join([text, "", *notes])


def _gap_cells(gap: Mapping | None) -> tuple[str, str]:
    """A difference, with a ~ where none is shown, and its interval."""
    if gap is None:
        return "-", "-"
    ends = "one document" if gap["low"] is None else f"{gap['low']:+.4f} .. {gap['high']:+.4f}"
    return f"{gap['mean']:+.4f}{'' if gap['shown'] else ' ~'}", ends
