"""report.html: one self-contained page made from results.json, passages.json and the plots.

It loads no other files. The templates escape all text that comes from a document, a file name or a config.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from retro_jax.core.files import atomic_path
from retro_jax.evaluate.conditions import CONDITIONS
from retro_jax.evaluate.questions.summary import table_rows
from retro_jax.evaluate.report.passages import SHORTEST_RUN
from retro_jax.evaluate.report.tables import (
    Column,
    Table,
    bpb_table,
    difference_table,
    leakage_table,
    metric_tables,
    pile_table,
    plain_table,
    tried_table,
)
from retro_jax.evaluate.report.templates import render

FULL_COLOR = 4.0  # bits from which a token has the full color
STRONGEST, FAINTEST = 0.6, 0.03  # opacity of the full color, and the least that is drawn
COSTS_MORE = 1.0  # bits; a token on which retrieval costs more is also underlined


def make_report(
    results: Mapping, passages: Sequence[Mapping], plots: Mapping[str, str], title: str = "RETRO report"
) -> str:
    """The page as HTML.

    Args:
      plots: of `make_plots`, by name.
    """
    return render(
        "report.html",
        title=title,
        subtitle=_subtitle(results),
        verdict=results["verdict"],
        sets=[_section(name, found, results, plots) for name, found in results["sets"].items()],
        questions=[
            {"name": name, "verdict": found["verdict"], "table": question_table(name, found)}
            for name, found in results.get("questions", {}).items()
        ],
        conditions=CONDITIONS.values(),
        plots=plots,
        overlap_neighbors=results["settings"]["overlap_neighbors"],
        full_color=f"{FULL_COLOR:g}",
        shortest_run=SHORTEST_RUN,
        passages=[_colored(passage) for passage in passages],
        several=len(results["sets"]) > 1,
        facts=_facts(results),
    )


def _section(name: str, found: Mapping, results: Mapping, plots: Mapping[str, str]) -> dict:
    """What the page shows of one set."""
    own = {stem.removeprefix(f"{name}-"): plot for stem, plot in plots.items() if stem.startswith(f"{name}-")}
    leakage = [own[f"leakage-{subset}"] for subset in found["leakage"]]
    extra = [tried_table(found, results["conditions"]), pile_table(found) if found["protocol"] == "pile" else None]
    perplexity = found["all"]["perplexity"]
    return {
        "name": name,
        "subtitle": f"{found['all']['documents']:,} documents with {found['all']['bytes']:,} scored bytes, protocol "
        f"{found['protocol']}, windows with {found['overlap']:.4g} context{_left_out(found)}",
        "verdict": found["verdict"],
        "tables": [bpb_table(found), difference_table(found), *metric_tables(found), *filter(None, extra)],
        "perplexity": ", ".join(
            f"{one} {perplexity[one]:.2f}" for one in ("baseline", "off", "on") if perplexity.get(one) is not None
        ),
        "plots": [own["gains"], *(own[stem] for stem in ("neighbors", "share") if stem in own)],
        "leakage_plots": [*leakage, own["overlap"]],
        "leakage_table": leakage_table(found),
    }


def question_table(name: str, found: Mapping) -> Table:
    """Exact match of a set of questions, in percent."""
    head, *rows = table_rows(found)
    caption = (
        f"Exact match (%) of {found['questions']:,} questions with {found['passages']} passages each, which contain an answer "
        f"for {100 * found['answerable']:.1f}%. Intervals (95%) over questions."
    )
    return plain_table(caption, [Column(column) for column in head], rows)


def _left_out(found: Mapping) -> str:
    counts = {
        "contaminated_documents": "documents are left out as contaminated",
        "documents_not_searched": "training documents are not searched",
    }
    return "".join(f"; {found['facts'][key]:,} {words}" for key, words in counts.items() if key in found["facts"])


def _subtitle(results: Mapping) -> str:
    database, model = results["database"], results["model"]
    return (
        f"{model['parameters']:,} parameters (baseline {_count(model['baseline_parameters'])}); a database of "
        f"{database['chunks']:,} chunks of {_documents(database)} documents; sets: {', '.join(results['sets'])}."
    )


def _documents(database: Mapping) -> str:
    """How many; of a share they are not counted."""
    if "documents" in database:
        return f"{database['documents']:,}"
    return f"{database['fraction']:.4g} of the build's"


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _colored(passage: Mapping) -> dict:
    chunks = [{**chunk, "tokens": [_token(token) for token in chunk["tokens"]]} for chunk in passage["chunks"]]
    return {**passage, "chunks": chunks}


def _token(token: Mapping) -> dict:
    """Adds the class and the opacity for what retrieval saved ("helped") or cost on a token."""
    gain = token["off"] - token["on"]
    strength = min(abs(gain) / FULL_COLOR, 1.0) * STRONGEST
    kind = "helped" if gain > 0 else "cost more" if gain < -COSTS_MORE else "cost"
    return {**token, "strength": strength, "kind": "" if strength < FAINTEST else kind}


def _facts(results: Mapping) -> list[Table]:
    database, model = results["database"], results["model"]
    recall = database["recall"]
    two = [Column(""), Column("", "fact")]
    index = [
        ("chunks", f"{database['chunks']:,} of {database['chunk_length']} tokens"),
        ("documents", _documents(database)),
        ("search", database["index"]),
        (f"recall@{recall['k']}", f"{recall['value']:.4f}"),
        ("neighbors read, at most", str(results["settings"]["neighbors"])),
    ]
    sizes = [("RETRO parameters", f"{model['parameters']:,}")]
    sizes += [("baseline parameters", _count(model["baseline_parameters"]))]
    sizes += [(name.replace("_", " "), str(value)) for name, value in model["settings"].items()]
    seconds = [(stage, f"{value:,.1f}") for stage, value in results["seconds"].items()]
    seconds.append(("all", f"{sum(results['seconds'].values()):,.1f}"))
    licenses = [
        (name, source["license"], f"{source['train_bytes']:,}", f"{source['validation_bytes']:,}")
        for name, source in results["data"].items()
    ]
    of_data = [Column("subset"), Column("license", "words"), Column("training bytes"), Column("held-out bytes")]
    return [
        plain_table("Database", two, index),
        plain_table("Seconds by stage", two, seconds),
        plain_table("Models", two, sizes),
        plain_table("Data and licenses", of_data, licenses),
        plain_table("Versions", two, [(name, str(value)) for name, value in results["versions"].items()]),
    ]


def write_text(path: Path, content: str) -> None:
    """Writes a file atomically."""
    with atomic_path(path) as temporary:
        Path(temporary).write_text(content, encoding="utf-8")
