"""Wikitext-103: articles, and perplexity per word of its original tokenization (paper 4.1, C.2, Tables 4 and 14).

A file is `wiki.valid.tokens` (rare words are `<unk>`) or `wiki.valid.raw` (rare words are kept), a line a record, or a
table with one line a row in "text", where blank lines are empty strings. An article begins at its title's line,
` = Title = `, between two blank lines. Every line belongs to one article, so the words of articles add up to the words of
the file.

Words are counted as published scripts do: what whitespace separates, and one end of line for each line. The perplexity of
a word is 2 ** (bits of the text / words), whatever tokenizer the model has.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, pairwise

from retro_jax.evaluate.protocols.protocol import EvaluationText, Protocol, Record, field, register

BLANK = " \n"  # how the files write an empty line
TITLE = re.compile(r"\s*= (?!=)(.+)(?<!=) =\s*")  # ` = = Section = = ` does not match


def cut(records: Iterable[Record]) -> Iterator[tuple[int, str]]:
    """Yields (number of its first line, text) of each article; the first one has the blank lines before its title."""
    article, first, before = [], 1, BLANK
    lines = (_line(record, number) for number, record in enumerate(records, start=1))
    for number, (line, after) in enumerate(pairwise(chain(lines, [BLANK])), start=1):
        if TITLE.fullmatch(line) and not before.strip() and not after.strip() and any(map(str.strip, article)):
            yield first, "".join(article)
            article, first = [], number
        article.append(line)
        before = line
    if article:
        yield first, "".join(article)


def read(record: Record, number: int) -> EvaluationText:
    """An article, all of it scored."""
    if not isinstance(record, str):
        raise ValueError(f"record {number:,}: expected an article as `cut` gives it, found {type(record).__name__}.")
    title = TITLE.fullmatch(next(filter(str.strip, record.split("\n")), ""))
    if not title:
        raise ValueError(
            f"record {number:,}: expected the line ` = Title = ` of an article between blank lines, found "
            f"{record.strip()[:60]!r}. Give the whole file, with its first line."
        )
    return EvaluationText(record, words=count_words(record), name=title[1].strip())


def count_words(text: str) -> int:
    """Words of a text: what whitespace separates, and one end of line for each line."""
    return len(text.split()) + text.count("\n") + (not text.endswith("\n") and text != "")


def _line(record: Record, number: int) -> str:
    """A line of the file as the file has it; a table gives "" for a blank line."""
    if not isinstance(record, Mapping):
        return record
    text = field(record, "text", number)
    if not text.strip():
        return BLANK
    return text if text.endswith("\n") else text + "\n"


_table_4 = register(
    Protocol(
        "wikitext103",
        "perplexity per word of the original tokenization, every token after 87.5% of a window",
        "4.1, C.2, Tables 4 and 11",
        read,
        overlap=0.875,
        metrics=("word_perplexity", "bpb", "perplexity"),
        forms={
            ".tokens": "lines",
            ".raw": "lines",
            ".txt": "lines",
            ".jsonl": "json",
            ".json": "json",
            ".parquet": "table",
            ".arrow": "table",
        },
        cut=cut,
    )
)
register(
    replace(
        _table_4,
        name="wikitext103_75",
        meaning="perplexity per word of the original tokenization, every token after 75% of a window",
        paper="C.2",
        overlap=0.75,
    )
)
register(
    replace(
        _table_4,
        name="wikitext103_50",
        meaning="perplexity per word of the original tokenization, every token after half a window",
        paper="4.1, Table 14",
        overlap=0.5,
    )
)
