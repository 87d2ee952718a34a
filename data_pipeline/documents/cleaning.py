"""Selects the documents to keep, over all units, from the metadata rows that reading wrote.

kept.npy        int64 [D, 4]: of each document that stays, in its final order, the number of the unit it was read in,
                where its line begins there, the line's bytes, the bytes of its text
dropped.jsonl   what cleaning took from the training split, and why
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.documents.near_duplicates import (
    GRAM,
    PERMUTATIONS,
    compare_with_exact,
    near_copies,
    near_held_out,
    share_by_subset,
)
from data_pipeline.documents.selection import REASONS, SPLITS, Selection, check_ids
from data_pipeline.documents.spill import Spill
from data_pipeline.stages.run import StageError
from retro_jax.config import SourceConfig

PLACES, DROPPED = "kept.npy", "dropped.jsonl"


def select(
    units: Path,
    stems: Sequence[str],
    jaccard: float,
    sources: Mapping[str, SourceConfig],
    counts: Mapping,
    temporary: Path,
    known: Callable[[frozenset[int]], Mapping[int, str]] | None = None,
) -> dict:
    """Writes both files into `temporary`.

    Args:
      units, stems: where units were read to, and their names in order.
      jaccard: near duplicates from this index on; 0 is off.
      counts: of reading, "read", "licenses" and "dropped" by subset.
      known: gives the SHA-256 of documents, by id, that the database holds already.

    Returns:
      Counts by subset, and of near duplicates.

    Raises:
      StageError: no document is left, or two of one id have different texts.
    """
    spill = Spill(units, stems)
    check_ids(spill.facts, spill.describe)
    selection = Selection(spill.facts, sources)
    selection.drop_copies()
    if known is not None:
        selection.drop_known(known(frozenset(spill.facts["id"].tolist())))
    selection.drop_over_budget(validation=True)
    selection.drop_titles()
    near = _clean(selection, spill, jaccard, temporary)
    selection.drop_over_budget(validation=False)
    subsets = _subset_counts(counts, selection, spill)
    rows = np.flatnonzero(selection.kept())
    if not len(rows):
        raise StageError(
            f"No document is left: {_summary(subsets)}. Give more text, or lower config.data.minimum_characters."
        )
    rows = rows[np.lexsort((spill.facts["id"][rows], spill.facts["validation"][rows]))]
    np.save(temporary / PLACES, spill.places(rows))
    return {"subsets": subsets, **near}


def _clean(selection: Selection, spill: Spill, threshold: float, temporary: Path) -> dict:
    """Drops training documents near a held-out one and lists what cleaning dropped; statistics for the manifest."""
    with open(temporary / DROPPED, "w", encoding="utf-8") as listing:
        for row in np.flatnonzero(selection.dropped("title")).tolist():
            listing.write(json.dumps({"reason": "title", **spill.facts_of(row)}, ensure_ascii=False) + "\n")
        if not threshold:
            return {}
        signatures = spill.signatures(PERMUTATIONS, temporary)
        training, held_out = selection.rows(validation=False), selection.rows(validation=True)
        gone = []
        for near in near_held_out(signatures, training, held_out, threshold, spill.text):
            gone.append(near.row)
            what = {"reason": "near_duplicate", **spill.facts_of(near.row), "near": spill.facts_of(near.near)}
            what |= {"estimated": near.estimated, "exact": near.exact}
            listing.write(json.dumps(what, ensure_ascii=False) + "\n")
    rows = np.flatnonzero(selection.kept())
    found, pairs = near_copies(signatures, rows, threshold)
    selection.drop(gone, "near_duplicate")
    facts = {"jaccard": threshold, "gram": GRAM, "permutations": PERMUTATIONS, "training_dropped": len(gone)}
    facts["subsets"] = share_by_subset(found, spill.subsets, spill.facts["subset"][rows])
    return {"near_duplicates": {**facts, "estimate": compare_with_exact(signatures, pairs, spill.text)}}


def _subset_counts(counts: Mapping, selection: Selection, spill: Spill) -> dict:
    """Of each subset: licenses, documents read, kept by split, dropped by reason."""
    subsets = {}
    for name in sorted(counts.get("read", {})):
        mine = spill.facts["subset"] == spill.subsets.index(name) if name in spill.subsets else np.zeros(0, bool)
        dropped = dict.fromkeys(REASONS, 0) | counts["dropped"].get(name, {})
        for reason in REASONS:
            dropped[reason] += int((mine & selection.dropped(reason)).sum()) if len(mine) else 0
        subset = {"license": "; ".join(sorted(counts["licenses"][name])), "read": counts["read"][name]}
        for split in SPLITS:
            held = (
                mine & selection.kept() & (spill.facts["validation"] == (split == "validation")) if len(mine) else mine
            )
            size = int(spill.facts["bytes"][held].sum()) if len(mine) else 0
            subset[split] = {"documents": int(held.sum()), "bytes": size}
        subsets[name] = {**subset, "dropped": dropped}
    return subsets


def _summary(counts: Mapping) -> str:
    return (
        "; ".join(
            f"{name}: {count['read']} read, dropped { ({k: n for k, n in count['dropped'].items() if n}) }"
            for name, count in sorted(counts.items())
        )
        or "nothing was read"
    )
