"""Each kind of figure: what it draws, that equal arguments give equal bytes, and that hostile names stay text."""

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from retro_jax.evaluate.report.figures import Interval, Series, bars, dots, histogram, lines
from retro_jax.evaluate.report.figures.svg import WIDTH, label

SVG = "{http://www.w3.org/2000/svg}"
WICKED = "_<script>alert(1)</script>$\\frac$ & \"'\x00\x1b 漢字 " + "long " * 40
LINE = Series(
    "off", [(0, 2.0), (100, 1.5), (200, 1.4)], "#2b7fc4", "7 4", "square", [(1.9, 2.1), (1.4, 1.6), (1.3, 1.5)]
)
ROWS = [("laws", "#d9622b", Interval(-0.2, -0.3, -0.1)), ("tales", "#d9622b", Interval(0.1, -0.1, 0.3, shown=False))]
BINS = [f"≤{n}.5" for n in range(10, 22)]


def text(drawn: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(drawn).iter(f"{SVG}text")]


def marks(drawn: str) -> list[str]:
    return re.findall('class="([^"]+)"', drawn)


def every_kind(name: str) -> dict[str, str]:
    """A figure of each kind with a name in every place that takes text."""
    return {
        "lines": lines(name, [Series(name, [(1, 2.0), (2, 3.0)], "#2b7fc4", "", "circle")], name, name),
        "dots": dots(name, [(name, "#d9622b", Interval(-0.2, -0.3, 0.1, shown=False))], name),
        "bars": bars(name, [name, "b"], {name: [Interval(1.0, 0.9, 1.1), 2.0]}, name, name),
        "histogram": histogram(name, ["0", name], {name: [0.4, 0.6]}, name, name),
        "nothing": lines(name, [], name, name),
    }


def test_lines_have_a_legend_bands_and_a_note_where_nothing_is():
    drawn = lines("Loss", [LINE, Series("on", [(0, 2.0)], "#d9622b"), Series("none", [], "#000000")], "step", "nats")
    assert marks(drawn) == ["band", "line", "line"]
    assert {"Loss", "off", "on", "step", "nats", "0", "200"} <= set(text(drawn)) and "none" not in text(drawn)
    assert drawn.count("stroke-dasharray: 7,4") == 2  # the line, and its sample in the legend
    assert (
        drawn.count("<use ") == 3 + 1 + 2 + 1
    )  # marks (a single point has one, or it would not be seen), legend, band
    assert text(lines("Loss", [], "x", "y")) == ["nothing to show", "Loss"]


def test_lines_write_x_as_percent_or_on_a_log_scale():
    values = [(0.125, 2.0), (1, 1.5)]
    assert {"20%", "100%"} <= set(text(lines("t", [Series("a", values, "#2b7fc4")], "x", "y", x="percent")))
    values = [(1e3, 2.0), (1e5, 1.5), (2e6, 1.4)]
    assert {"1000", "10k", "100k", "1M"} <= set(text(lines("t", [Series("a", values, "#2b7fc4")], "x", "y", x="log")))


def test_values_that_are_not_finite_are_left_out():
    """A training that diverged logs nan and inf."""
    values = [(0, 2.0), (1, float("nan")), (2, float("inf")), (3, 1.0)]
    drawn = lines("t", [Series("a", values, "#2b7fc4")], "x", "y")
    assert not re.search("nan|inf", drawn) and marks(drawn) == ["line"]


def test_dots_are_hollow_where_no_difference_is_shown():
    drawn = dots("Gains", ROWS, "bits per byte")
    assert marks(drawn) == ["interval", "mark", "interval", "mark hollow"]
    assert "<title>-0.2000 (-0.3000 to -0.1000)</title>" in drawn
    filled, hollow = re.findall('class="mark.*?</g></g>', drawn)
    assert "fill: #d9622b" in filled and "fill-opacity: 0; stroke: #d9622b" in hollow
    assert marks(dots("t", [("a", "#d9622b", Interval(0.0))], "x")) == ["mark"]


def test_bars_stand_in_groups_with_intervals():
    drawn = bars("t", ["a", "b"], {"one": [1.0, Interval(2.0, 1.5, 2.5)], "two": [3.0, 4.0]}, "x", "y")
    assert marks(drawn) == ["bar"] * 4 + ["interval"]
    assert "<title>two, b: 4</title>" in drawn and {"a", "b", "one", "two"} <= set(text(drawn))


def test_a_histogram_is_in_percent_and_its_labels_do_not_meet():
    drawn = histogram("t", BINS, {"laws": [0.2, *[0.05] * 11]}, "r(C)", "share of bytes")
    assert marks(drawn) == ["bar"] * 12 and "<title>laws, ≤10.5: 20.0%</title>" in drawn and "20%" in text(drawn)
    labels = [e for e in ElementTree.fromstring(drawn).iter(f"{SVG}text") if e.text in BINS]
    sizes = [float(re.search("font-size: ([0-9.]+)px", e.get("style"))[1]) * 0.6 * len(e.text) for e in labels]
    places = [float(e.get("x")) for e in labels]
    for at in range(len(BINS) - 1):
        assert places[at] + sizes[at] / 2 < places[at + 1] - sizes[at + 1] / 2


def test_hostile_names_stay_text_inside_of_the_figure():
    """Markup, mathematics, a leading underscore (hidden in matplotlib's legends), control characters, missing glyphs."""
    for kind, drawn in every_kind(WICKED).items():
        assert "<script" not in drawn and "\x00" not in drawn, kind
        ElementTree.fromstring(drawn)
        if kind != "nothing":
            assert sum(part.startswith("_<script>") for part in text(drawn)) >= 3, kind


def test_a_legend_stays_inside_of_the_figure():
    series = [Series(f"a name of 24 letters, {n:02d}", [(0, n), (1, n)], "#2b7fc4") for n in range(9)]
    drawn = ElementTree.fromstring(lines("t", series, "x", "y"))
    ends = [float(e.get("x")) + 5.5 * len(e.text) for e in drawn.iter(f"{SVG}text") if e.text.startswith("a name")]
    assert len(ends) == 9 and max(ends) < WIDTH


def test_a_label_is_cut_and_is_one_line():
    assert label("a\n b\tc") == "a b c" and label("x" * 50) == "x" * 39 + "…" and label("\x07") == "\ufffd"
    assert label("長" * 30) == "長" * 19 + "…"  # twice as wide


def test_the_page_decides_ink_and_fonts_and_nothing_refers_outside():
    for drawn in every_kind("name").values():
        assert set(re.findall('(?:fill|stroke): ([^;"]+)', drawn)) <= {"none", "currentColor", "#2b7fc4", "#d9622b"}
        assert (
            drawn.count("font-family") == 1 and "url(" not in drawn and "<style" not in drawn and "xlink" not in drawn
        )
        used = set(re.findall(' href="#([^"]+)"', drawn))
        assert len(re.findall(' href="', drawn)) == len(re.findall(' href="#', drawn))
        assert set(re.findall(' id="([^"]+)"', drawn)) == used


def test_equal_arguments_give_equal_bytes_whatever_the_users_settings():
    import matplotlib

    first = every_kind("a")
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path", "axes.labelpad": 30}):
        before = dict(matplotlib.rcParams)
        assert every_kind("a") == first
        assert dict(matplotlib.rcParams) == before
    program = (
        "import test_figures, hashlib; print(hashlib.sha256(repr(test_figures.every_kind('a')).encode()).hexdigest())"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {program}"],
            env={"PYTHONHASHSEED": seed, "PATH": "", "HOME": "", "MPLCONFIGDIR": matplotlib.get_cachedir()},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "module", ["retro_jax", "retro_jax.evaluate.report.plots", "retro_jax.evaluate.report", "launch.evaluate"]
)
def test_matplotlib_is_imported_only_when_a_figure_is_drawn(module):
    program = f"import sys, {module}; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
