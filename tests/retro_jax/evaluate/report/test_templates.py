"""The pieces that pages are made of: tables, figures, the frame."""

import jinja2
import pytest
from places import ROOT

from retro_jax.evaluate.report.tables import Cell, Column, Row, Table, gap_cell, plain_table
from retro_jax.evaluate.report.templates import _environment, render

WICKED = "<script>alert(1)</script>\"'&"
FOLDER = ROOT / "retro_jax" / "evaluate" / "report" / "templates"


def macro(name: str, *arguments) -> str:
    return str(getattr(_environment().get_template("macros.html").module, name)(*arguments))


def test_a_table_has_caption_head_kinds_bold_cells_and_notes():
    columns = [Column("subset"), Column("random", "control"), Column("license", "words")]
    rows = [
        Row([Cell("laws"), Cell("1.5", bold=True, note="1.4 to 1.6"), Cell("CC0")]),
        Row([Cell("all")] * 3, total=True),
    ]
    drawn = macro("table", Table("Lower is better.", columns, rows))
    assert '<p class="caption">Lower is better.</p>\n<div class="scroll" tabindex="0"><table>' in drawn
    assert (
        '<thead><tr><th>subset</th><th class="control">random</th><th class="words">license</th></tr></thead>' in drawn
    )
    assert '<tr><td>laws</td><td class="control"><b>1.5</b><br><small>1.4 to 1.6</small></td>' in drawn
    assert '<td class="words">CC0</td></tr>' in drawn and '<tr class="total"><td>all</td>' in drawn
    assert "<thead>" not in macro("table", plain_table("facts", [Column(""), Column("")], [("a", "b")]))


def test_every_text_of_a_table_is_escaped():
    table = Table(WICKED, [Column(WICKED)], [Row([Cell(WICKED, bold=True, note=WICKED)]), Row([Cell(WICKED)])])
    drawn = macro("table", table)
    assert "<script" not in drawn and drawn.count("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;") == 5


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="'t' has 1 cells for 2 columns; it begins with 'a'"):
        plain_table("t", [Column("x"), Column("y")], [("a",)])


def test_a_difference_is_bold_where_it_is_shown():
    gap = {"mean": -0.25, "low": -0.5, "high": -0.125, "shown": True}
    assert gap_cell(gap) == Cell("-0.2500", bold=True, note="-0.5000 to -0.1250")
    assert gap_cell({**gap, "low": None, "shown": False}) == Cell("-0.2500", note="one document")
    assert gap_cell(None) == Cell("-")


def test_figures_stand_in_a_grid_with_captions():
    assert macro("figure", "<svg/>") == "<figure><svg/></figure>\n"
    assert macro("figure", "<svg/>", WICKED).endswith("&#34;&#39;&amp;</figcaption></figure>\n")
    assert macro("figures", ["<svg/>", "<svg/>"]).split() == [
        "<div",
        'class="plots">',
        *["<figure><svg/></figure>"] * 2,
        "</div>",
    ]


def test_the_frame_has_title_and_style():
    page = render("page.html", title=WICKED)
    assert page.startswith("<!doctype html>") and page.count("&lt;script&gt;") == 2 and "<script" not in page
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page


def test_a_missing_value_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="'title' is undefined"):
        render("page.html")


def test_figures_alone_are_not_escaped():
    """One `safe` in all templates, in the macro that takes figures; none turns escaping off."""
    sources = {path.name: path.read_text() for path in FOLDER.glob("*.html")}
    assert {name: text.count("| safe") + text.count("|safe") for name, text in sources.items() if "safe" in text} == {
        "macros.html": 1
    }
    assert not [name for name, text in sources.items() if "autoescape" in text]
