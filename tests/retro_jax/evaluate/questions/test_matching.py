"""Exact match: cases worked out by hand."""

import pytest

from retro_jax.evaluate.questions.matching import exact_match, normalize, stands_in


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The  Lamp.", "lamp"),
        ("an apple a day", "apple day"),
        ("U.S.A.", "usa"),
        ("state-of-the-art", "stateoftheart"),  # punctuation goes before articles
        ("Théâtre — “x”", "théâtre — “x”"),  # punctuation of ASCII alone
        ("another theory", "another theory"),
        ("the", ""),
        ("A\tB\n c", "b c"),
    ],
)
def test_normalization(text, expected):
    assert normalize(text) == expected


def test_any_answer_counts_and_no_part_of_one():
    assert exact_match("the Lamp!", ["mill", "lamp"])
    assert not exact_match("lamp post", ["lamp"]) and not exact_match("", ["lamp"]) and not exact_match("x", [])


def test_an_answer_stands_in_a_text_as_whole_words():
    assert stands_in(["The Lamp"], "He lit a lamp, then left.")
    assert not stands_in(["lamp"], "He lit the lamps.") and not stands_in(["the"], "the lamp")
