"""Documents, the Pile, Curation Corpus and LAMBADA, read from files of the exact public form."""

import json

import made_up_sets
import pytest
from made_up_sets import CURATION, LAMBADA_OPENAI, LAMBADA_PLAIN, PILE

from retro_jax.evaluate.protocols import EvaluationText, Excluded, get
from retro_jax.evaluate.protocols.pile import EXCLUDED, SUBSETS
from retro_jax.evaluate.protocols.table_15 import COLUMNS, TABLE_15, layout


def texts(name, path):
    protocol = get(name)
    bare = path.name.removesuffix(".gz").removesuffix(".zst")
    return [text for _, text in protocol.texts(made_up_sets.records(path, protocol.form_of(bare)))]


def scored_text(one: EvaluationText) -> str:
    return b"".join(one.text.encode()[start:end] for start, end in one.scored).decode()


def test_documents_of_c4_are_whole(tmp_path):
    given = ["One.\nTwo.", "", "Tōkyō 日本 🜁", "x"]
    found = texts("documents", made_up_sets.write_c4(tmp_path, given))
    assert found == [EvaluationText(text, name=f"https://example.org/{n}") for n, text in enumerate(given)]


def test_a_text_file_is_one_document(tmp_path):
    path = tmp_path / "Hurricane Ida.txt"
    path.write_text("Hurricane Ida\n\nIt rained.\n")
    assert texts("documents", path) == [EvaluationText("Hurricane Ida\n\nIt rained.\n")]


def test_the_pile_goes_by_subset_without_the_two_that_the_paper_leaves_out(tmp_path):
    found = texts("pile", made_up_sets.write_pile(tmp_path))
    assert [one.reason for one in found if isinstance(one, Excluded)] == ["Enron Emails", "YoutubeSubtitles"]
    by_hand = [(json.dumps(text), name) for name, text in PILE if name not in ("Enron Emails", "YoutubeSubtitles")]
    kept = [one for one in found if isinstance(one, EvaluationText)]
    assert [json.dumps(one.text) for one in kept] == [text for text, _ in by_hand]
    assert [one.subset for one in kept] == ["arxiv", "github", "arxiv", "wikipedia_en", "gutenberg_pg_19"]


def test_every_set_of_the_pile_has_its_place():
    """22 sets; the 16 of Table 15 by the table's names."""
    assert len(SUBSETS) + len(EXCLUDED) == 22 and not set(SUBSETS) & set(EXCLUDED)
    assert len(set(SUBSETS.values())) == 20
    assert set(TABLE_15) == set(list(SUBSETS.values())[:16])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a"}, "record 7: expected meta.pile_set_name, found meta 'None'"),
        ({"text": "a", "meta": "{}"}, "record 7: expected meta.pile_set_name, found meta '{}'"),
        ({"text": "a", "meta": {"set": "ArXiv"}}, "record 7: expected meta.pile_set_name, found meta .*ArXiv"),
        (
            {"text": "a", "meta": {"pile_set_name": "Arxiv"}},
            r"record 7: expected a set of the Pile .*\(ArXiv, .*YoutubeSubtitles\), found 'Arxiv'",
        ),
        ("a", "record 7: expected an object with the field 'text', found str 'a'"),
    ],
)
def test_a_record_that_is_not_of_the_pile_is_refused(record, message):
    with pytest.raises(ValueError, match=message):
        get("pile").read(record, 7)


def test_table_15_is_the_papers():
    """Retro beats its baseline on 16 of 16 subsets, Jurassic-1 on 10, and Gopher on 9; its columns have these sums."""
    assert len(TABLE_15) == 16 and all(len(row) == len(COLUMNS) for row in TABLE_15.values())
    wins = [sum(row[-1] < row[column] for row in TABLE_15.values()) for column in range(4)]
    assert wins[0] == 16 and wins[2] == 10 and wins[3] == 9
    sums = [round(sum(column), 3) for column in zip(*TABLE_15.values(), strict=True)]
    assert sums == [12.38, 12.971, 11.278, 11.103, 10.725]
    assert TABLE_15["github"] == (0.420, 0.645, 0.358, 0.367, 0.199)


def test_our_columns_stand_behind_the_papers():
    header, rows = layout({"github": {"on": 0.5, "off": 0.75}, "europarl": {"off": 1.0}})
    assert header == ("subset", "7B baseline", "GPT-3", "Jurassic-1 178B", "Gopher 280B", "Retro 7.5B", "on", "off")
    assert [row[0] for row in rows] == [*TABLE_15, "europarl"]
    assert rows[4] == ("github", 0.420, 0.645, 0.358, 0.367, 0.199, 0.5, 0.75)
    assert rows[0][-2:] == (None, None)
    assert rows[-1] == ("europarl", None, None, None, None, None, None, 1.0)
    assert layout({})[0] == ("subset", *COLUMNS)


def test_curation_scores_the_summary_alone(tmp_path):
    found = texts("curation", made_up_sets.write_curation(tmp_path))
    assert [one.reason for one in found if isinstance(one, Excluded)] == ["no article", "no summary"]
    kept = [one for one in found if isinstance(one, EvaluationText)]
    for one, (title, article, summary, *_) in zip(kept, [CURATION[0], CURATION[2]], strict=True):
        assert one.text == article + " TL;DR: " + summary
        assert scored_text(one) == summary and one.name == title
    assert kept[1].scored == ((len("Ether – or æther – is back 🜁 TL;DR: ".encode()), len(kept[1].text.encode())),)


def test_curation_reads_tables_with_nulls_and_names_what_is_missing():
    read = get("curation").read
    assert read({"article_content": None, "summary": "s"}, 1) == Excluded("no article")
    with pytest.raises(
        ValueError, match="record 3: expected a field 'article_content', found the fields 'title', 'summary'"
    ):
        read({"title": "t", "summary": "s"}, 3)
    with pytest.raises(ValueError, match="record 4: expected an object with the field 'article_content', found str"):
        read("a line", 4)


@pytest.mark.parametrize(
    ("write", "passages", "words"),
    [
        (made_up_sets.write_lambada_plain, LAMBADA_PLAIN, ["lamp", "café", "lamp"]),
        (made_up_sets.write_lambada_openai, LAMBADA_OPENAI, ["lamp", "Café"]),
    ],
)
def test_lambada_scores_the_last_word(tmp_path, write, passages, words):
    found = texts("lambada", write(tmp_path))
    assert [one.text for one in found] == list(passages)
    assert [scored_text(one) for one in found] == words
    assert [one.text.rpartition(" ")[2] for one in found] == words  # as other harnesses cut it
    assert all(one.words == 1 for one in found)


def test_lambada_takes_whitespace_at_the_end_for_none_and_refuses_a_passage_without_a_word():
    read = get("lambada").read
    assert read("a b \r\n", 1) == EvaluationText("a b", ((2, 3),), 1)
    assert read("b\n", 1).scored == ((0, 1),)
    assert read({"text": "a\nb"}, 1).scored == ((2, 3),)
    for empty in ("\n", "", {"text": "  "}):
        with pytest.raises(ValueError, match="record 9: expected a passage that ends in a word, found none"):
            read(empty, 9)
    with pytest.raises(ValueError, match="record 9: expected a field 'text', found the fields 'passage'"):
        read({"passage": "a"}, 9)


def test_every_protocol_knows_the_files_that_its_set_comes_in():
    for name, file, form in (
        ("documents", "c4-validation.00000-of-00008.json", "json"),
        ("documents", "Hurricane Ida.txt", "text"),
        ("wikitext103", "wiki.valid.tokens", "lines"),
        ("wikitext103", "wiki.test.raw", "lines"),
        ("wikitext103", "validation-00000-of-00001.parquet", "table"),
        ("wikitext103", "wikitext-test.arrow", "table"),
        ("pile", "test.jsonl", "json"),
        ("curation", "curation-corpus-base-with-articles.csv", "csv"),
        ("lambada", "lambada_test_plain_text.txt", "lines"),
        ("lambada", "lambada_test.jsonl", "json"),
    ):
        assert get(name).form_of(file) == form, (name, file)
    for name, file in (("pile", "test.txt"), ("curation", "articles.txt"), ("documents", "a.csv")):
        with pytest.raises(ValueError, match=f"protocol '{name}' reads files that end in"):
            get(name).form_of(file)
