"""Wikitext-103: articles and words of both distributions and of the table, against obvious counts."""

import made_up_sets
import pytest
from made_up_sets import WIKI_ARTICLES, WIKI_RAW, WIKI_TOKENS, wikitext_rows, write_wikitext

from retro_jax.evaluate.protocols import get
from retro_jax.evaluate.protocols.wikitext103 import count_words

PROTOCOL = get("wikitext103")


def texts(path):
    return [text for _, text in PROTOCOL.texts(made_up_sets.records(path, PROTOCOL.form_of(path.name)))]


def published_count(text: str) -> int:
    """As Transformer-XL and fairseq count: the tokens of each line, and <eos>."""
    return sum(len([*line.split(), "<eos>"]) for line in text.split("\n")[:-1])


@pytest.mark.parametrize(("text", "name"), [(WIKI_RAW, "wiki.valid.raw"), (WIKI_TOKENS, "wiki.test.tokens")])
def test_articles_are_cut_at_their_titles_and_nothing_is_lost(tmp_path, text, name):
    """Sections, ` = 7 = ` within a text, and a title that holds an equals sign are distinguished."""
    found = texts(write_wikitext(tmp_path, text, name))
    assert tuple(one.name for one in found) == WIKI_ARTICLES
    assert "".join(one.text for one in found) == text
    assert found[1].text == " = A = b ( equation ) = \n \n \n"
    assert all(one.scored == () for one in found)
    assert sum(one.words for one in found) == published_count(text)
    assert [one.words for one in found] == [published_count(one.text) for one in found]


def test_both_distributions_have_the_same_words(tmp_path):
    raw = texts(write_wikitext(tmp_path, WIKI_RAW, "wiki.valid.raw"))
    tokens = texts(write_wikitext(tmp_path, WIKI_TOKENS, "wiki.valid.tokens"))
    assert [one.words for one in raw] == [one.words for one in tokens]
    assert raw != tokens


def test_rows_of_the_table_give_the_text_of_the_file(tmp_path):
    """Its blank lines are "", and some copies have no line ends."""
    expected = texts(write_wikitext(tmp_path, WIKI_RAW, "wiki.valid.raw"))
    rows = wikitext_rows(WIKI_RAW)
    bare = [{"text": row["text"].removesuffix("\n")} for row in rows]
    for given in (rows, bare):
        assert [text for _, text in PROTOCOL.texts(given)] == expected


def test_numbers_are_those_of_the_titles_lines():
    assert [number for number, _ in PROTOCOL.texts(wikitext_rows(WIKI_RAW))] == [1, 15, 18]


def test_articles_of_a_title_alone_of_one_line_and_of_none():
    assert [text.text for _, text in PROTOCOL.texts([" = One = \n"])] == [" = One = \n"]
    assert [(text.text, text.words) for _, text in PROTOCOL.texts([" = One = "])] == [(" = One = ", 4)]
    assert list(PROTOCOL.texts([])) == []
    assert (count_words(""), count_words("\n"), count_words("a"), count_words("a\n\n")) == (0, 1, 1 + 1, 3)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([" Text first . \n", " \n", " = One = \n"], r"record 1: expected the line ` = Title = ` .* 'Text first \.'"),
        ([" \n", " \n"], "record 1: expected the line ` = Title = ` of an article between blank lines, found ''"),
        ([{"text": " = One = \n"}, {"line": ""}], "record 2: expected a field 'text', found the fields 'line'"),
    ],
)
def test_what_is_no_article_is_refused(records, message):
    with pytest.raises(ValueError, match=message):
        list(PROTOCOL.texts(records))


def test_a_line_like_a_title_without_a_blank_line_on_each_side_is_text():
    for lines in (("Text .", "= Two =", ""), ("", "= Two =", "Text .")):
        given = [" = One = \n", " \n", *(f" {line} \n" for line in lines)]
        assert [text.name for _, text in PROTOCOL.texts(given)] == ["One"]


def test_the_three_overlaps_read_alike():
    names = {"wikitext103": 0.875, "wikitext103_75": 0.75, "wikitext103_50": 0.5}
    for name, overlap in names.items():
        assert get(name).overlap == overlap and get(name).read is PROTOCOL.read
        assert get(name).metrics[0] == "word_perplexity"
