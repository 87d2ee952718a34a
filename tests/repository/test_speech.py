"""Plain speech: phrases of a dialect that the docs, docstrings, comments and messages left behind do not come back."""

import re

import pytest
from places import ROOT
from test_packaging import text_files

# Pattern -> what to write instead. Only phrases that have no good use in this repository.
DIALECT = {
    r"\banew\b": "again, re-",
    r"\bdone without\b": "skipped, not needed",
    r"\b(is|are|was|were) told\b": "is logged, is reported",
    r"\bmend(s|ed|ing)?\b": "correct, repair, fix",
    r"\bcannot be meant\b": "is out of range",
    r"\bmatrix products?\b": "matmul",
    r"\bwithout a word\b": "silently",
    r"\bin vain\b": "too long, without success",
    r"\bbuilds? of before\b": "of earlier versions",
    r"\bcomes? again\b": "repeats",
    r"\bwhat (is|was) there\b(?! (to|for))": "existing files",
    r"\bare not there\b": "are missing, do not exist",
    r"\bholds? (it |this |them )?against\b": "compares with",
    r"\bno real run is faster\b": "a lower bound",
    r"\bis judged when\b": "is checked after",
    # A number of a list that is not in the repository.
    r"\btraps? \d+\b": "the mistake in words",
    r"\bproperty \d+\b": "the property in words",
    r"\b(?-i:PAPER|TRAPS|DESIGN|ANCHORS|HOUSE)(\.md|,? section| \d)": "the paper's section, or the fact itself",
}
BRITISH = (
    r"neighbour|colour|behaviour|favour|licence|grey\b|\bcentres?\b|artefact|modelling|labelled|isation\b"
    r"|\b(initial|normal|serial|organ|recogn|optim|summar|real|general|special)is(e|es|ed|ing)\b"
)
SUFFIXES = (".py", ".md", ".sh", ".sbatch", ".toml", ".yaml", ".html", ".css", "")


def offenses(pattern: str, texts: dict[str, str]) -> list[str]:
    """Places of a pattern; it may span a line break."""
    found = re.compile(pattern.replace(" ", r"[\s\"#]+f?\"?"), re.IGNORECASE)
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}"
        for name, text in texts.items()
        for match in found.finditer(text)
    ]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in text_files()
        if path.suffix in SUFFIXES and path.name != "test_speech.py" and "golden" not in path.parts
    }


@pytest.mark.parametrize("pattern", DIALECT)
def test_a_phrase_of_the_dialect_does_not_come_back(pattern, texts):
    """Guards against wording that a reader from outside has to decode; the list says what to write instead."""
    assert offenses(pattern, texts) == [], f"write: {DIALECT[pattern]}"


def test_spelling_is_american(texts):
    """Guards against two spellings of one word, in names and in prose."""
    assert offenses(BRITISH, texts) == []


def test_a_phrase_is_found_over_a_line_break():
    """Guards against a pattern that misses a message split over two lines of source."""
    text = 'f"the file is "\n    f"told"  # and\n# done\n# without'
    assert offenses(r"\bis told\b", {"a.py": text}) == ["a.py:1: 'is \"\\n    f\"told'"]
    assert len(offenses(r"\bdone without\b", {"a.py": text})) == 1
