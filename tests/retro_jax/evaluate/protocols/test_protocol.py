"""The registry of protocols: one may be added from outside, and what is wrong is refused with the rule."""

import pytest

from retro_jax.evaluate.protocols import PROTOCOLS, EvaluationText, Protocol, get, register
from retro_jax.evaluate.protocols.protocol import field, first_field


def _haiku(record, number):
    return EvaluationText("\n".join(field(record, name, number) for name in ("first", "second", "third")))


HAIKU = Protocol("haiku", "poems of three lines", "none", _haiku, forms={".csv": "csv", ".poem.csv": "lines"})


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr("retro_jax.evaluate.protocols.protocol.PROTOCOLS", PROTOCOLS | {})
    return register(HAIKU)


def test_a_protocol_of_another_modules_making_reads_records(registered):
    assert get("haiku") is registered
    rows = [{"first": "a", "second": "", "third": "c"}, {"first": "d", "second": "e", "third": "f"}]
    assert list(registered.texts(rows)) == [(1, EvaluationText("a\n\nc")), (2, EvaluationText("d\ne\nf"))]


def test_two_protocols_never_share_a_name(registered):
    with pytest.raises(ValueError, match="There is a protocol named 'haiku' already"):
        register(HAIKU)


def test_an_unknown_protocol_lists_the_known_ones():
    with pytest.raises(ValueError, match="no protocol 'hiaku'; there is: curation, documents, "):
        get("hiaku")


def test_the_longest_ending_decides_the_form_and_an_unknown_one_lists_those_that_are_read():
    assert HAIKU.form_of("A.CSV") == "csv"
    assert HAIKU.form_of("b.poem.csv") == "lines"
    with pytest.raises(ValueError, match=r"poems\.txt: protocol 'haiku' reads files that end in \.csv, \.poem\.csv"):
        HAIKU.form_of("poems.txt")


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 2])
def test_an_overlap_outside_of_0_to_1_is_refused(overlap):
    with pytest.raises(ValueError, match=r"'x': overlap must be in \[0, 1\), not"):
        Protocol("x", "", "", _haiku, overlap=overlap)


def test_an_unknown_form_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'x': \.pdf has form 'pdf'; forms are text, lines, json, table, csv"):
        Protocol("x", "", "", _haiku, forms={".pdf": "pdf"})


def test_a_missing_field_says_record_expected_and_found():
    with pytest.raises(ValueError, match="record 1,234: expected a field 'text', found the fields 'txt', 'id'"):
        field({"txt": "a", "id": 1}, "text", 1234)
    with pytest.raises(ValueError, match="record 2: expected text in 'text', found NoneType None"):
        field({"text": None}, "text", 2)
    with pytest.raises(ValueError, match="record 3: expected an object with the field 'text', found str 'abc'"):
        field("abc", "text", 3)
    assert len(str(pytest.raises(ValueError, field, "x" * 10**6, "text", 1).value)) < 200


def test_the_first_field_that_holds_text_names_a_document():
    assert first_field({"url": "u", "title": None, "id": 7}, ("title", "url", "id")) == "u"
    assert first_field({"id": 7}, ("title", "id")) == ""


def test_every_protocol_says_what_it_scores_and_where_the_paper_uses_it():
    for name, protocol in PROTOCOLS.items():
        assert name == protocol.name
        assert len(protocol.meaning.split()) > 3 and protocol.paper and protocol.metrics, name
