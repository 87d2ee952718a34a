"""The paper's rule for Wikitext (2.6): articles of the evaluation set, found by title, are removed from training."""

import re
import unicodedata
from collections.abc import Iterable

from data_pipeline.formats.compression import convert_command, open_plain
from data_pipeline.formats.sniff import check_text, decode
from data_pipeline.sources.listing import list_files

HEADING = re.compile(r"^ ?= (.*[^= ]) = *$", re.MULTILINE)  # Wikitext's mark of an article; sections have "= ="


def read_titles(path: str, where: str) -> frozenset[str]:
    """Normal forms of the titles in Wikitext's own text (wiki.valid.tokens), or in a file of a title a line.

    Raises:
      StageError: the file is missing or not UTF-8.
    """
    titles: set[str] = set()
    for file in list_files(path, where, any_ending=True).files:
        with open_plain(file) as stream:
            content = stream.read()
        check_text(content, file.url, convert_command(file))
        text = decode(content, file.url, 0, convert_command(file))
        titles.update(_normal(HEADING.findall(text) or text.splitlines()))
    return frozenset(titles)


def normal_title(title: str) -> str:
    """Letters and digits alone, in one case: Wikitext writes " @-@ " for a hyphen and spaces around punctuation."""
    folded = unicodedata.normalize("NFKC", title).casefold()
    return re.sub(r"[\W_]+", "", folded) or folded.strip()


def title_of(title: str, text: str) -> str:
    """The normal form of a document's title: the one given, or its first non-empty line."""
    return normal_title(title or next((line for line in text[:2000].splitlines() if line.strip()), ""))


def _normal(titles: Iterable[str]) -> set[str]:
    return {normal_title(title) for title in titles if title.strip()}
