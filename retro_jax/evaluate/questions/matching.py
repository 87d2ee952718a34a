"""Exact match with the normalization of SQuAD's evaluation, which DPR and FiD use as well."""

import re
import string
from collections.abc import Iterable

PUNCTUATION = str.maketrans("", "", string.punctuation)  # of ASCII alone
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize(text: str) -> str:
    """Lower case, without punctuation and articles, one space between words."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, answers: Iterable[str]) -> bool:
    """Whether a prediction is one of the answers, after normalization."""
    found = normalize(prediction)
    return any(found == normalize(answer) for answer in answers)


def stands_in(answers: Iterable[str], text: str) -> bool:
    """Whether a text contains one of the answers as complete words, after normalization."""
    words = f" {normalize(text)} "
    return any(f" {found} " in words for answer in answers if (found := normalize(answer)))
