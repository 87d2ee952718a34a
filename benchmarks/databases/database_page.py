"""Turns the rows of benchmarks/databases/database.py into docs/measured/database.md."""

from collections.abc import Mapping, Sequence

HEAD = """# The database, measured

Written by `make database-report`; do not edit. Text: the nine subsets of `configs/nine_subsets.py`, {bytes:.2f} MB of it
(`{percent:g}` percent) in the largest build, on {cores} CPU cores. Chunks of {length} tokens, frozen encoder all-MiniLM-L6-v2.

{machine}Seconds are those of a stage's work; memory is the most resident at once while the stage ran, of the whole process.
"""
SUBSETS = """
## Documents

Every document read is in one of the six columns behind. Duplicates have the text of another document, near duplicates are
training documents with a Jaccard index of {jaccard:g} or more of {gram}-grams with a held-out one; over the budget is what the
share leaves out. MB are of the text kept, held out or not. The last column is not about what is dropped: it counts the
documents that have a near duplicate in the corpus, before the budget.

| subset | read | kept | held out | duplicates | near duplicates | over the budget | dropped for other reasons | MB | near another |
|---|---|---|---|---|---|---|---|---|---|
"""
STAGES = """
## Stages of the largest build

| stage | holds | MB on disk | seconds | processor seconds | rate | peak MB of memory |
|---|---|---|---|---|---|---|
"""
SEARCH = """
## Search

Recall is against exact distances in float64, over a sample of {queries} chunks that do not count themselves.

| percent of the text | database chunks | index | recall@2 | recall@10 | queries/s | exact search, queries/s |
|---|---|---|---|---|---|---|
"""
GROWTH = """
## Growth

Processor seconds of a stage (all threads; other work on the machine does not count) at shares of the same text; each smaller
one is a part of the larger. The smaller ones use the tokenizer of the largest, so that stage only copies it; and every share
reads all sources whole, since a share is a budget, so the documents stage costs much the same. Below, the same for each MB:
where it falls or stays, the cost is linear or better. Neighbors rise: a leaf of the index holds sqrt(keys) keys, and more
leaves are searched for one recall as the keys grow (about keys^0.2), so a query looks at keys^0.7 of them.

| percent of the text | MB | chunks | {stages} | peak MB |
|---|---|---|{lines}|---|
"""
PARTS = """
## Memory in parts

Memory of the stages above grows with the index, which they held as one shard. Here the same chunks are indexed and searched
in index shards (`config.data.index_shards`; without it a shard has up to two million keys), one open at a time, by a process
that embeds nothing. More shards need less memory; a chunk is searched in those near it (routing.md). Resident memory counts
what is mapped of the files too: embeddings and chunks, which the system may drop at any time.

| percent of the text | database chunks | index shards | recall@{k} | index, processor seconds | neighbors, processor seconds | index, peak MB | neighbors, peak MB |
|---|---|---|---|---|---|---|---|
"""
UNITS = {
    "documents": ("bytes", "MB/s", 1e6),
    "chunks": ("chunks", "chunks/s", 1),
    "embeddings": ("chunks", "chunks/s", 1),
}


def page(rows: Sequence[Mapping], in_parts: Sequence[Mapping] = ()) -> str:
    """The page of the given builds, the first the largest, and of those rebuilt in parts."""
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
    documents = stages["documents"]["counts"]
    near = documents["near_duplicates"]
    parts = [head, SUBSETS.format(jaccard=near["jaccard"], gram=near["gram"]), *_subsets(documents), STAGES]
    parts += _stages(whole)
    ordered = sorted(rows, key=lambda row: row["percent"])
    parts += [SEARCH.format(queries=whole["search"]["queries"]), *(_search(row) for row in ordered)]
    table = GROWTH.format(stages=" | ".join(stages), lines="|".join(["---"] * len(stages)))
    parts += [table, *(_growth(row, 1) for row in ordered), "\n", table[table.index("| percent") :]]
    parts += (_growth(row, row["stages"]["documents"]["counts"]["bytes"] / 1e6) for row in ordered)
    if in_parts:
        parts += [PARTS.format(k=in_parts[0]["recall"]["k"]), *(_parts(row) for row in in_parts)]
    return "".join(parts)


def _machine(rows) -> str:
    """A note if other work ran on the machine, which makes the seconds incomparable."""
    load = max(max(row["load_before"], row["load_after"]) for row in rows)
    idle = load <= rows[0]["cores"] + 1
    said = (
        ""
        if idle
        else f"The machine was shared: its load average before and after builds was up to {load:.0f}.\nRates are below those of a quiet one, and seconds of different builds do not compare. "
    )
    again = [f"{row['percent']:g}" for row in rows if row["continued"]]
    return said + (f"Builds continued after an interruption: {', '.join(again)} percent. " if again else "")


def _subsets(documents: Mapping) -> list[str]:
    lines, total = [], [0, 0, 0, 0, 0, 0, 0, 0.0, 0]
    for name, count in sorted(documents["subsets"].items()):
        dropped = dict(count["dropped"])
        copies, near, over = (dropped.pop(reason) for reason in ("duplicate", "near_duplicate", "budget"))
        train, held = count["train"], count["validation"]
        size = (train["bytes"] + held["bytes"]) / 1e6
        figures = [
            count["read"],
            train["documents"],
            held["documents"],
            copies,
            near,
            over,
            sum(dropped.values()),
            size,
        ]
        figures.append(documents["near_duplicates"]["subsets"].get(name, {"near": 0})["near"])
        total = [a + b for a, b in zip(total, figures, strict=True)]
        lines.append(_subset(name, figures))
    return [*lines, _subset("all", total)]


def _subset(name: str, figures) -> str:
    return f"| {name} | " + " | ".join(f"{x:,.2f}" if isinstance(x, float) else f"{x:,}" for x in figures) + " |\n"


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
            f"{row['cpu_seconds'][stage]:,.1f} | {rate} | {peak:,.0f} |\n"
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


def _growth(row: Mapping, divisor: float) -> str:
    stages = row["stages"]
    seconds = " | ".join(f"{row['cpu_seconds'][stage] / divisor:,.{1 if divisor == 1 else 2}f}" for stage in stages)
    return (
        f"| {row['percent']:g} | {stages['documents']['counts']['bytes'] / 1e6:.2f} | {stages['chunks']['counts']['chunks']:,} | "
        f"{seconds} | {max(row['peak_bytes'].values()) / 1e6:,.0f} |\n"
    )


def _parts(row: Mapping) -> str:
    seconds = " | ".join(f"{row['cpu_seconds'][stage]:,.1f}" for stage in ("index", "neighbors"))
    peaks = " | ".join(f"{row['peak_bytes'][stage] / 1e6:,.0f}" for stage in ("index", "neighbors"))
    shards = f"{row['shards']} (continued)" if row.get("continued") else row["shards"]
    return f"| {row['percent']:g} | {row['keys']:,} | {shards} | {row['recall']['value']:.4f} | {seconds} | {peaks} |\n"
