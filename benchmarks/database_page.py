"""Turns the rows of benchmarks/database.py into docs/database.md."""

from collections.abc import Mapping, Sequence

HEAD = """# The database, measured

Written by `make database-report`; do not edit. Text: the nine subsets of `configs/nine_subsets.py`, {bytes:.2f} MB of it
(`{percent:g}` percent) in the largest build, on {cores} CPU cores. Chunks of {length} tokens, frozen encoder all-MiniLM-L6-v2.

{machine}Seconds are those of a stage's work; memory is the most resident at once while the stage ran, of the whole process.
"""
SUBSETS = """
## Documents

Every document read is in one of the five columns behind. Duplicates have the text of another document; over the budget
is what the share leaves out. MB are of the text kept, held out or not.

| subset | read | kept | held out | duplicates | over the budget | dropped for other reasons | MB |
|---|---|---|---|---|---|---|---|
"""
STAGES = """
## Stages of the largest build

| stage | holds | MB on disk | seconds | rate | peak MB of memory |
|---|---|---|---|---|---|
"""
SEARCH = """
## Search

Recall is against exact distances in float64, over a sample of {queries} chunks that do not count themselves.

| percent of the text | database chunks | index | recall@2 | recall@10 | queries/s | exact search, queries/s |
|---|---|---|---|---|---|---|
"""
GROWTH = """
## Growth

Seconds of a stage at shares of the same text; each smaller one is a part of the larger. The smaller ones use the tokenizer
of the largest, so that stage only copies it.

| percent of the text | MB | chunks | {stages} | peak MB |
|---|---|---|{lines}|---|
"""
UNITS = {
    "documents": ("bytes", "MB/s", 1e6),
    "chunks": ("chunks", "chunks/s", 1),
    "embeddings": ("chunks", "chunks/s", 1),
}


def page(rows: Sequence[Mapping]) -> str:
    """The page of the builds there are; the first is the largest."""
    whole = rows[0]
    stages = whole["stages"]
    length = stages["chunks"]["counts"]["chunk_length"]
    head = HEAD.format(
        bytes=stages["documents"]["counts"]["bytes"] / 1e6,
        percent=whole["percent"],
        cores=whole["cores"],
        length=length,
        machine=_machine(rows),
    )
    parts = [head, SUBSETS, *_subsets(stages["documents"]["counts"]["subsets"]), STAGES, *_stages(whole)]
    ordered = sorted(rows, key=lambda row: row["percent"])
    parts += [SEARCH.format(queries=whole["search"]["queries"]), *(_search(row) for row in ordered)]
    parts += [GROWTH.format(stages=" | ".join(stages), lines="|".join(["---"] * len(stages)))]
    return "".join([*parts, *(_growth(row) for row in ordered)])


def _machine(rows) -> str:
    """Says so where other work ran beside, for then the seconds are of no use to others."""
    load = max(max(row["load_before"], row["load_after"]) for row in rows)
    idle = load <= rows[0]["cores"] + 1
    said = (
        ""
        if idle
        else f"The machine was shared: its load average before and after builds was up to {load:.0f}.\nRates are far below those of a quiet one, and seconds of different builds do not compare. "
    )
    again = [f"{row['percent']:g}" for row in rows if row["continued"]]
    return said + (f"Builds continued after an interruption: {', '.join(again)} percent. " if again else "")


def _subsets(subsets: Mapping) -> list[str]:
    lines, total = [], [0, 0, 0, 0, 0, 0, 0.0]
    for name, count in sorted(subsets.items()):
        dropped = dict(count["dropped"])
        copies, over = dropped.pop("duplicate"), dropped.pop("budget")
        train, held = count["train"], count["validation"]
        size = (train["bytes"] + held["bytes"]) / 1e6
        figures = [count["read"], train["documents"], held["documents"], copies, over, sum(dropped.values()), size]
        total = [a + b for a, b in zip(total, figures, strict=True)]
        lines.append(_subset(name, figures))
    return [*lines, _subset("all", total)]


def _subset(name: str, figures) -> str:
    return f"| {name} | " + " | ".join(f"{figure:,}" for figure in figures[:-1]) + f" | {figures[-1]:.2f} |\n"


def _stages(row: Mapping) -> list[str]:
    lines = []
    chunks = row["stages"]["chunks"]["counts"]["chunks"]
    for stage, facts in row["stages"].items():
        key, unit, scale = UNITS.get(stage, ("", "chunks/s", 1))
        amount = facts["counts"].get(key, chunks) / scale
        rate = "" if stage == "tokenizer" else f"{amount / max(facts['seconds'], 1e-9):,.2f} {unit}"
        holds = f"{facts['counts']['documents']:,} documents" if stage == "documents" else f"{chunks:,} chunks"
        peak = row["peak_bytes"][stage] / 1e6
        lines.append(
            f"| {stage} | {holds if stage != 'tokenizer' else ''} | {facts['bytes'] / 1e6:,.1f} | {facts['seconds']:,.1f} | "
            f"{rate} | {peak:,.0f} |\n"
        )
    return lines


def _search(row: Mapping) -> str:
    found, stages = row["search"], row["stages"]
    rates = found["queries_a_second"]
    recall = " | ".join(f"{found['recall'][k]:.4f}" for k in ("2", "10"))
    return (
        f"| {row['percent']:g} | {stages['chunks']['counts']['database_chunks']:,} | {stages['index']['counts']['kind']} | "
        f"{recall} | {rates['index']:,.0f} | {rates['exact']:,.0f} |\n"
    )


def _growth(row: Mapping) -> str:
    stages = row["stages"]
    seconds = " | ".join(f"{facts['seconds']:,.1f}" for facts in stages.values())
    return (
        f"| {row['percent']:g} | {stages['documents']['counts']['bytes'] / 1e6:.2f} | {stages['chunks']['counts']['chunks']:,} | "
        f"{seconds} | {max(row['peak_bytes'].values()) / 1e6:,.0f} |\n"
    )
