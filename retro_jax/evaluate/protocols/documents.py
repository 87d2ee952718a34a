"""Whole documents in windows of n tokens with stride n/2 (paper 4.1): C4, Wikipedia September 2021, any held-out text.

A record is a text file, a JSON object with "text" (`c4-validation.*.json.gz`), or a table's row with "text". Wikipedia
September 2021 (appendix A.2) is plain text of 23 articles; docs/guides/protocols.md lists them and what to remove.
"""

from retro_jax.evaluate.protocols.protocol import EvaluationText, Protocol, Record, field, first_field, register

NAMES = ("title", "url", "name", "id")  # the fields that may name a document, best first


def read(record: Record, number: int) -> EvaluationText:
    """The text of a record, all of it scored."""
    if isinstance(record, str):
        return EvaluationText(record)
    return EvaluationText(field(record, "text", number), name=first_field(record, NAMES))


register(
    Protocol(
        "documents",
        "every token of whole documents, in windows half of which is context",
        "4.1, Table 14 (C4, Wikipedia September 2021)",
        read,
        optional=NAMES,
    )
)
