"""Figures inside a page: SVG with the page's colours, for light and dark mode."""

import io
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from piat_jax.analysis.curves import COLORS, STYLE
from piat_jax.analysis.html import Markup, note, tag

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS = 115
"""Pixels per inch: 8-point letters are as large as a page's notes."""
# By the colours that matplotlib writes. Black becomes the ink colour, and so does the seventh line.
VARIABLES = {
    "#ffffff": "var(--paper)",
    "#000000": "var(--ink)",
    "#e0e0e0": "var(--rule)",
    "#909090": "var(--muted)",
    **{color.lower(): f"var(--line{index})" for index, color in enumerate(COLORS) if color != "#000000"},
}


def inline_svg(figure: "Figure", *, name: str, text: str) -> Markup:
    """A figure as an element of a page.

    Args:
      figure: of matplotlib. Its text remains text, in the page's ink colour.
      name: prefix of all ids, to make them unique in a page.
      text: description for screen readers.
    """
    import matplotlib

    written = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    source = written.getvalue()
    source = source[source.index("<svg") :]
    source = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", source, flags=re.DOTALL)
    source = re.sub(r'\bid="', f'id="{name}-', source)
    source = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", source)
    source = re.sub('#[0-9a-f]{6}(?=[;"])', lambda found: VARIABLES.get(found[0], found[0]), source)
    opened = re.match(r"<svg[^>]*>", source)
    assert opened
    box = re.search(r'viewBox="[^"]*"', opened[0])
    assert box
    width = f"width: {round(figure.get_figwidth() * PIXELS)}px"
    label = str(tag("i", aria_label=text, style=width)).removeprefix("<i ").removesuffix("></i>")
    start = f'<svg {box[0]} {label} role="img" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return Markup(start + source[opened.end() :].strip())


def framed(figure: "Figure", *, name: str, caption: str, kind: str = "") -> Markup:
    """A figure and its caption.

    Args:
      figure: of matplotlib.
      name: of the element, and prefix of its ids.
      caption: below it, and for screen readers.
      kind: a class: "wide" scrolls instead of shrinking, "small" is placed next to others.
    """
    drawn = tag(
        "div", inline_svg(figure, name=name, text=caption), class_="drawing", tabindex=0 if kind == "wide" else None
    )
    return tag("figure", drawn, tag("figcaption", note(caption)), class_=kind, id=name)


def file_name(key: str) -> str:
    """A metric's name as a name for a file and an element."""
    return "".join(each if (each.isalnum() and each.isascii()) or each in "_-" else "_" for each in key)


@dataclass
class Figures:
    """The figures of a page, by name, in order."""

    drawn: dict[str, "Figure"] = field(default_factory=dict)

    def add(self, name: str, figure: "Figure", caption: str, *, kind: str = "") -> Markup:
        """Store a figure under its name, and return its element."""
        self.drawn[name] = figure
        return framed(figure, name=name, caption=caption, kind=kind)
