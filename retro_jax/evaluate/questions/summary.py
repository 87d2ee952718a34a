"""Turns answers into figures: exact match by condition, with intervals over questions and paired differences."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from retro_jax.evaluate.summary import NOT_SHOWN, paired_difference

DIFFERENCES = (("on", "off"), ("on", "random"), ("on", "empty"), ("on", "baseline"), ("off", "baseline"))


@dataclass(frozen=True)
class Answered:
    """The answers to N questions.

    Attributes:
      hits: whether each is correct, by condition.
      tokens: the number of tokens of each, with the one that ends it.
      found: rank, from 1, of the first passage that contains an answer; 0: none.
    """

    hits: Mapping[str, Bool[np.ndarray, "N"]]
    tokens: Mapping[str, Int[np.ndarray, "N"]]
    found: Int[np.ndarray, "N"]


def summarize(answered: Answered, k: int, limit: int, resamples: int, seed: int) -> dict:
    """The figures as plain JSON; shares are in [0, 1].

    "exact_match": mean, low, high by condition; "differences": those of DIFFERENCES by name ("on_minus_off") with "shown";
    "answerable": share of questions that have an answer in one of the first k passages; "by_passages": exact match of
    those ("with") and of the others ("without"); "longest": share of answers that the limit cut off; "verdict".
    """
    inside = (answered.found > 0) & (answered.found <= k)
    ones = np.ones(len(inside))

    def gap(values) -> dict:
        return paired_difference(values, ones, resamples, seed)

    means = {name: gap(hits.astype(float)) for name, hits in answered.hits.items()}
    differences = {
        f"{one}_minus_{other}": gap(answered.hits[one].astype(float) - answered.hits[other])
        for one, other in DIFFERENCES
        if one in answered.hits and other in answered.hits
    }
    parts = {"with": inside, "without": ~inside}
    return {
        "exact_match": {name: {key: mean[key] for key in ("mean", "low", "high")} for name, mean in means.items()},
        "differences": differences,
        "answerable": float(inside.mean()),
        "by_passages": {
            name: {
                "questions": int(rows.sum()),
                "exact_match": {
                    one: float(hits[rows].mean()) if rows.any() else None for one, hits in answered.hits.items()
                },
            }
            for name, rows in parts.items()
        },
        "longest": {name: float((tokens >= limit).mean()) for name, tokens in answered.tokens.items()},
        "verdict": verdict(differences),
    }


def verdict(differences: Mapping[str, Mapping]) -> dict:
    """Whether On is shown to be above Off and above the passages of other questions."""
    if "on_minus_off" not in differences:
        return {"seen": False, "text": "A baseline answered alone: nothing is said about passages."}
    wanted = [differences[name] for name in ("on_minus_off", "on_minus_random")]
    seen = all(gap["shown"] and gap["mean"] > 0 for gap in wanted)
    text = " and ".join(
        f"{100 * gap['mean']:+.1f} points {against}{'' if gap['shown'] else ' (not shown)'}"
        for gap, against in zip(
            wanted, ("against retrieval off", "against the passages of other questions"), strict=True
        )
    )
    return {"seen": seen, "text": f"{'Passages help' if seen else 'No effect of passages is shown'}: {text}."}


def table_rows(figures: Mapping) -> list[list[str]]:
    """Rows, the header first: exact match in percent by condition, and the differences of On."""
    lines = [["condition", "exact match", "95% interval", "answer in passages", "not in passages"]]
    for condition, found in figures["exact_match"].items():
        parts = [figures["by_passages"][part]["exact_match"][condition] for part in ("with", "without")]
        lines.append([condition, _percent(found["mean"]), _interval(found), *(_percent(part) for part in parts)])
    for key, gap in figures["differences"].items():
        lines.append([key.replace("_minus_", " - "), _percent(gap["mean"], gap["shown"]), _interval(gap), "", ""])
    return lines


def table_text(name: str, figures: Mapping) -> str:
    """The table for a terminal."""
    lines = table_rows(figures)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    head = (
        f"{name}: {figures['questions']:,} questions, {figures['passages']} passages each; they contain an answer for "
        f"{100 * figures['answerable']:.1f}%"
    )
    notes = [f"~ no difference is shown: {NOT_SHOWN}."] if any("~" in row for row in rows) else []
    return "\n".join([head, *rows, figures["verdict"]["text"], *notes])


def _percent(share: float | None, shown: bool = True) -> str:
    return "-" if share is None else f"{100 * share:.1f}{'' if shown else ' ~'}"


def _interval(found: Mapping) -> str:
    return "one question" if found["low"] is None else f"{100 * found['low']:.1f} .. {100 * found['high']:.1f}"
