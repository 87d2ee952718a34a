"""Curation Corpus: bits per byte of a summary after its article and "TL;DR:" (paper 4.1, Table 14).

A record is a row of the CSV file that the corpus's `web_scraper.py` writes: title, summary, url, date, article_content.
"""

from collections.abc import Mapping

from retro_jax.evaluate.protocols.protocol import (
    USUAL_FORMS,
    EvaluationText,
    Excluded,
    Protocol,
    Record,
    field,
    first_field,
    register,
)

ARTICLE, SUMMARY, NAMES = "article_content", "summary", ("title", "url")
LINK = " TL;DR: "  # the paper names the words; the spaces around them are ours


def read(record: Record, number: int) -> EvaluationText | Excluded:
    """Article, link, and summary, of which the summary's bytes are scored.

    A row without an article (its address was not reached) or without a summary is left out.
    """
    article, summary = (_text(record, name, number) for name in (ARTICLE, SUMMARY))
    for what, text in (("article", article), ("summary", summary)):
        if not text.strip():
            return Excluded(f"no {what}")
    start = len((article + LINK).encode())
    return EvaluationText(
        article + LINK + summary,
        scored=((start, start + len(summary.encode())),),
        name=first_field(record, NAMES),
    )


def _text(record: Record, name: str, number: int) -> str:
    """A field's text; a table has null for an empty field."""
    if isinstance(record, Mapping) and name in record and record[name] is None:
        return ""
    return field(record, name, number)


register(
    Protocol(
        "curation",
        "the summary alone, after article and TL;DR:",
        "4.1, Table 14",
        read,
        metrics=("bpb", "perplexity"),
        forms={".csv": "csv"} | {end: form for end, form in USUAL_FORMS.items() if form != "text"},
        columns=(ARTICLE, SUMMARY),
        optional=NAMES,
    )
)
