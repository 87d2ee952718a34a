"""The text and tables of docs/measured/routing.md, from the rows of `routing.py`."""

import numpy as np
from scipy import stats

HEAD = """# The routed index, measured

Written by `make routing`; do not edit. Keys are the database chunks of a build and of shares of its documents, queries are
2,000 chunks spread over all of it. {texts}Times are processor seconds of all threads on
{cores} CPU cores ({date}); the machine was shared (load up to {load:.0f}).

## The router alone

The shards that a query visits for a recall@10 of 0.95 when each visited shard is searched exactly; a neighbor is of another
document. A key is in two shards (SOAR's rule) or in one. "If all visit as many" is the number of nearest shards that every
query would have to visit for this recall; a margin takes fewer on average. Keys read are those of the visited shards, with
copies, as a share of all keys. The largest shard is in times the mean.
"""
ROUTER = """
| text | keys | shards | copies of a key | keys a shard | visits | most | if all visit as many | keys read | largest shard | learn, s | assign, s |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""
FITS = """
### Growth

Visits = a shards^b, fitted to the logarithms, with the 95% interval of b from the residuals.

| rows | copies of a key | a | b | interval of b |
|---|---|---|---|---|
"""
INDEX = """
## The whole index

SCaNN in every shard, set for a recall@10 of 0.95 of all together. "Seconds a million" are processor seconds of a million queries.

| text | share | keys | shards | recall@10 | visits | keys in visited shards | build, s | seconds a million |
|---|---|---|---|---|---|---|---|---|
"""
STAGE = """
## The stages of a build

Index and neighbors of all chunks, each in a process of its own. Ranges are the index shards of earlier versions, which every
query reads. Memory counts what is mapped of the embeddings too.

| text | chunks | index shards | recall@10 | visits | index, processor s | neighbors, processor s | index, peak MB | neighbors, peak MB |
|---|---|---|---|---|---|---|---|---|
"""


def page(rows: dict) -> str:
    every = [row for kind in rows.values() for row in kind]
    text = HEAD.format(
        texts="".join(f"{text[0].upper()}{text[1:]}. " for text in dict.fromkeys(row["text"] for row in every)),
        cores=every[0]["cores"],
        date=every[-1]["date"],
        load=max(row["load"] for row in every),
    )
    text += ROUTER + "".join(map(router_row, rows["router"])) + FITS
    for text_name in dict.fromkeys(map(name, rows["router"])):
        for copies in (2, 1):
            some = [row for row in rows["router"] if name(row) == text_name and row["copies"] == copies]
            grown = [row for row in some if abs(copies * row["keys"] / row["shards"] - 2400) < 400]
            full = [row for row in some if row["share"] == 1]
            for what, of in (("shards of 2,400 keys, growing database", grown), ("all keys, more shards", full)):
                if len({row["shards"] for row in of}) > 2:
                    text += fit_row(f"{text_name}, {what}", copies, of)
    if rows["index"]:
        text += INDEX + "".join(map(index_row, rows["index"]))
    if rows["stage"]:
        text += STAGE + "".join(map(stage_row, rows["stage"]))
    return text


def fit(rows: list[dict]) -> tuple[float, float, float]:
    """a, b, and the half width of the 95% interval of b."""
    found = stats.linregress(np.log([row["shards"] for row in rows]), np.log([row["visits"] for row in rows]))
    half = float(stats.t.ppf(0.975, len(rows) - 2) * found.stderr)
    return float(np.exp(found.intercept)), float(found.slope), half


def fit_row(name: str, copies: int, rows: list[dict]) -> str:
    a, b, half = fit(rows)
    return f"| {name} ({len(rows)} rows) | {copies} | {a:.2f} | {b:.2f} | {b - half:.2f} to {b + half:.2f} |\n"


def name(row: dict) -> str:
    """The text of a row, up to where its description begins."""
    return row["text"].partition(":")[0]


def router_row(row: dict) -> str:
    cells = [
        name(row),
        f"{row['keys']:,}",
        row["shards"],
        row["copies"],
        f"{row['copies'] * row['keys'] / row['shards']:,.0f}",
        f"{row['visits']:.2f}",
        row["most_visits"],
        row["fixed_visits"],
        f"{row['keys_read'] / row['keys']:.3f}",
        f"{row['largest']:.2f}",
        f"{row['learn_seconds']:.1f}",
        f"{row['assign_seconds']:.1f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |\n"


def index_row(row: dict) -> str:
    cells = [
        name(row),
        f"{100 * row['share']:g}%",
        f"{row['keys']:,}",
        row["shards"],
        f"{row['recall']:.4f}",
        f"{row['visits']:.2f}",
        f"{row['keys_read']:,.0f}",
        f"{row['build_seconds']:.1f}",
        f"{row['seconds_a_million']:,.0f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |\n"


def stage_row(row: dict) -> str:
    kind = {"today": "one", "ranges": f"{row['shards']} ranges", "routed": f"{row['shards']} routed"}[row["name"]]
    cells = [name(row), f"{row['chunks']:,}", kind, f"{row['recall']:.4f}", f"{row['visits']:.2f}"]
    cells += [f"{row[f'{stage}_seconds']:,.1f}" for stage in ("index", "neighbors")]
    cells += [f"{row[f'{stage}_bytes'] / 1e6:,.0f}" for stage in ("index", "neighbors")]
    return "| " + " | ".join(cells) + " |\n"
