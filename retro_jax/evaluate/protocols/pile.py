"""The Pile by subset (paper 4.1, Figure 4, Table 15): whole documents, without Enron Emails and YouTube Subtitles.

A record is a JSON object of `test.jsonl.zst` or `val.jsonl.zst`: {"text": ..., "meta": {"pile_set_name": ...}}.
"""

from collections.abc import Mapping

from retro_jax.evaluate.protocols.protocol import (
    USUAL_FORMS,
    EvaluationText,
    Excluded,
    Protocol,
    Record,
    field,
    register,
)

# The Pile's own names -> the names of Table 15. The table omits the last four without explanation; they are scored too.
SUBSETS = {
    "ArXiv": "arxiv",
    "Books3": "books3",
    "DM Mathematics": "dm_mathematics",
    "FreeLaw": "freelaw",
    "Github": "github",
    "Gutenberg (PG-19)": "gutenberg_pg_19",
    "HackerNews": "hackernews",
    "NIH ExPorter": "nih_exporter",
    "OpenSubtitles": "opensubtitles",
    "PhilPapers": "philpapers",
    "Pile-CC": "pile_cc",
    "PubMed Abstracts": "pubmed_abstracts",
    "PubMed Central": "pubmed_central",
    "StackExchange": "stackexchange",
    "Ubuntu IRC": "ubuntu_irc",
    "USPTO Backgrounds": "uspto_backgrounds",
    "BookCorpus2": "bookcorpus2",
    "EuroParl": "europarl",
    "OpenWebText2": "openwebtext2",
    "Wikipedia (en)": "wikipedia_en",
}
EXCLUDED = ("Enron Emails", "YoutubeSubtitles")


def read(record: Record, number: int) -> EvaluationText | Excluded:
    """A document with its subset; Excluded, with its set as reason, where the paper leaves that set out."""
    text = field(record, "text", number)
    meta = record.get("meta")
    if not isinstance(meta, Mapping) or "pile_set_name" not in meta:
        raise ValueError(f"record {number:,}: expected meta.pile_set_name, found meta {str(meta)[:60]!r}.")
    name = meta["pile_set_name"]
    if name in EXCLUDED:
        return Excluded(name)
    if name not in SUBSETS:
        raise ValueError(
            f"record {number:,}: expected a set of the Pile in meta.pile_set_name ({', '.join([*SUBSETS, *EXCLUDED])}), "
            f"found {name!r}."
        )
    return EvaluationText(text, subset=SUBSETS[name])


register(
    Protocol(
        "pile",
        "every token of whole documents, by subset",
        "4.1, Figure 4, Table 15",
        read,
        metrics=("bpb", "perplexity"),
        forms={end: form for end, form in USUAL_FORMS.items() if form != "text"},
        columns=("text", "meta"),
    )
)
