"""LAMBADA: whether all tokens of a passage's last word are the greedy predictions (paper 4.1, Table 14).

A record is a line of `lambada_test_plain_text.txt`, or a JSON object with "text" of OpenAI's `lambada_test.jsonl`, whose
passages are not tokenized and keep their capitals: the two give different figures.
"""

from retro_jax.evaluate.protocols.protocol import USUAL_FORMS, EvaluationText, Protocol, Record, field, register


def read(record: Record, number: int) -> EvaluationText:
    """A passage of which the last word is scored: what follows the last whitespace, without whitespace at the end."""
    text = (record if isinstance(record, str) else field(record, "text", number)).rstrip()
    if not text:
        raise ValueError(f"record {number:,}: expected a passage that ends in a word, found none.")
    context = text[: len(text) - len(text.split()[-1])]
    return EvaluationText(text, scored=((len(context.encode()), len(text.encode())),), words=1)


register(
    Protocol(
        "lambada",
        "whether every token of a passage's last word is the most likely one",
        "4.1, Table 14",
        read,
        greedy=True,
        metrics=("accuracy", "word_perplexity", "bpb"),
        forms=USUAL_FORMS | {".txt": "lines"},
    )
)
