"""Draws with matplotlib and returns SVG for light and dark pages; the one file that imports matplotlib.

INK becomes `currentColor`, text stays text in the font of the page, and there are no external references. matplotlib's
global settings are restored afterwards, and a user's matplotlibrc has no effect.
"""

import io
import re
import warnings
from bisect import bisect
from collections.abc import Callable
from itertools import accumulate
from typing import Any
from unicodedata import east_asian_width
from xml.etree import ElementTree

INK = "#010203"  # replaced by currentColor
WIDTH, HEIGHT = 400, 270  # of a figure, in the units of its view box
LONGEST, LONGEST_TITLE = 40, 44  # characters of a label, and of a title
PLACES = {"d", "x", "y", "transform"}  # attributes that hold coordinates
SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a subset may be named "$x"
    "font.family": ["DejaVu Sans"],  # matplotlib brings it: labels are measured alike on every machine
    "font.size": 11,
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "legend.fontsize": 11,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.2,
    "legend.borderpad": 0.1,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 11,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.xmargin": 0.02,
    "axes.ymargin": 0.08,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.scale_dashes": False,
    "lines.linewidth": 2,
    "lines.markersize": 6,
}


class Notes:
    """Annotations of single marks: a class for tests and style sheets, and a title that a browser shows on hovering."""

    def __init__(self):
        self.by_id: dict[str, tuple[str, str]] = {}

    def add(self, artist: Any, kind: str, title: str = "") -> None:
        artist.set_gid(f"note-{len(self.by_id)}")
        self.by_id[artist.get_gid()] = (kind, title)


def figure(title: str, draw: Callable[[Any, Notes], None], *, height: float = HEIGHT) -> str:
    """A figure with a title above one pair of axes.

    Args:
      draw: gets the axes and the notes, and draws.
      height: in units of the view box, which is WIDTH wide.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    kept = ("backend", "interactive")  # settings of windows, not of drawing
    settings = {name: value for name, value in matplotlib.rcParamsDefault.items() if name not in kept}
    notes, target = Notes(), io.StringIO()
    with matplotlib.rc_context(settings | SETTINGS | {"svg.hashsalt": title}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)  # the page's font may have it
        drawing = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        drawing.patch.set_visible(False)
        drawing.suptitle(label(title, LONGEST_TITLE))
        axes = drawing.add_subplot()
        axes.patch.set_visible(False)
        axes.grid(True)
        draw(axes, notes)
        FigureCanvasSVG(drawing).print_svg(target)
    return _for_a_page(target.getvalue(), title, notes.by_id)


def label(text: str, longest: int = LONGEST) -> str:
    """A text as one line of valid XML: no control characters, cut to the room of `longest` letters; 長 takes that of two."""
    line = " ".join(_xml(text).split())
    ends = list(accumulate(2 if east_asian_width(character) in "WF" else 1 for character in line))
    return line if not ends or ends[-1] <= longest else line[: bisect(ends, longest - 1)] + "…"


def _xml(text: str) -> str:
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def _for_a_page(drawn: str, title: str, notes: dict[str, tuple[str, str]]) -> str:
    """Strips matplotlib's SVG of prolog, namespaces, metadata, style sheet, fonts and unused ids."""
    root = ElementTree.fromstring(drawn)
    _drop_unneeded(root)
    used = {
        value[1:]
        for element in root.iter()
        for name, value in element.attrib.items()
        if name.rpartition("}")[2] == "href"
    }
    for element in root.iter():
        _clean(element, used)
        if (note := notes.get(element.attrib.get("id", ""))) is not None:
            kind, words = note
            del element.attrib["id"]
            element.set("class", kind)
            if words:
                element.insert(0, _title(words))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {
        "xmlns": "http://www.w3.org/2000/svg",
        "role": "img",
        "font-family": "system-ui, sans-serif",
        "style": "stroke-linejoin: round; stroke-linecap: butt",
    }
    root.insert(0, _title(title))
    return ElementTree.tostring(root, encoding="unicode")


def _drop_unneeded(parent: ElementTree.Element) -> None:
    """Drops metadata, clipping (no mark leaves the axes), the style sheet and empty groups."""
    for child in list(parent):
        _drop_unneeded(child)
        tag = child.tag.rpartition("}")[2]
        if tag in ("metadata", "clipPath", "style") or (tag in ("g", "defs") and not len(child)):
            parent.remove(child)


def _clean(element: ElementTree.Element, used: set[str]) -> None:
    """Cleans one element: plain names, the page's color and font, and an id only where it is used or annotated."""
    element.tag = element.tag.rpartition("}")[2]
    element.tail = None
    if element.tag not in ("text", "tspan", "title"):
        element.text = None
    attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    attributes.pop("clip-path", None)
    if attributes.get("id", "") not in used and not attributes.get("id", "").startswith("note-"):
        attributes.pop("id", None)
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    if "style" in attributes:
        style = re.sub(r"font-family: [^;]*;? ?", "", attributes["style"]).replace(INK, "currentColor")
        attributes["style"] = style.replace("font-weight: semibold", "font-weight: 600").strip()
        if element.tag == "text" and "fill:" not in style:
            attributes["fill"] = "currentColor"
    for name in PLACES & attributes.keys():  # rounded: machines differ in the last digits
        attributes[name] = re.sub(
            r"\d+\.\d+", lambda number: f"{float(number[0]):.2f}", " ".join(attributes[name].split())
        )
    element.attrib.clear()
    element.attrib.update(attributes)


def _title(text: str) -> ElementTree.Element:
    element = ElementTree.Element("title")
    element.text = label(text, 200)
    return element
