"""CSV with a header: long fields, quotes over lines, and rows that do not fit."""

import csv
import io

import pytest

from retro_jax.evaluate.protocols.csv_rows import csv_rows


def lines(text):
    return io.StringIO(text, newline="")


def test_rows_are_maps_and_a_quoted_field_goes_over_lines():
    text = 'a,b\n1,"two\r\n""three"", four"\n\n5,\n'
    assert list(csv_rows(lines(text))) == [{"a": "1", "b": 'two\r\n"three", four'}, {"a": "5", "b": ""}]


def test_an_article_longer_than_the_librarys_limit_is_read_and_the_limit_stays():
    before, long = csv.field_size_limit(), "x" * 200_000
    rows = csv_rows(lines(f"a,b\n{long},1\n"))
    assert next(rows)["a"] == long
    assert csv.field_size_limit() == before == 131_072


def test_no_header_and_no_rows():
    assert list(csv_rows([])) == []
    assert list(csv_rows(lines("a,b\n"))) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", r"record 2: expected 2 fields \(a, b\), found 1"),
        ("a,b\n1,2,3\n", r"record 1: expected 2 fields \(a, b\), found 3"),
        ('a,b\n1,2\n"3,4\n', "record 2: expected a row of CSV, found unexpected end of data"),
        ('a,b\n"1"x,2\n', "record 1: expected a row of CSV, found ',' expected after '\"'"),
    ],
)
def test_rows_that_do_not_fit_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        list(csv_rows(lines(text)))
