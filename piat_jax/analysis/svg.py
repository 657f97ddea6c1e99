"""Figures inside a page: SVG whose colours are the page's, so that they suit a light and a dark one."""

import io
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from piat_jax.analysis.curves import COLORS, STYLE
from piat_jax.analysis.html import Markup, note, tag

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS = 115
"""Of an inch: letters of 8 points are as large as a page's notes."""
# By what matplotlib writes. Black is ink, and so the seventh line too.
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
      figure: of matplotlib. Its texts stay texts, in the page's ink.
      name: goes before every id, which are unique in a page only so.
      text: what is read aloud in the figure's place.
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
      name: of the element and before its ids.
      caption: below it, and read aloud.
      kind: a class: "wide" scrolls instead of getting small, "small" stands beside others.
    """
    drawn = tag(
        "div", inline_svg(figure, name=name, text=caption), class_="drawing", tabindex=0 if kind == "wide" else None
    )
    return tag("figure", drawn, tag("figcaption", note(caption)), class_=kind, id=name)


def file_name(key: str) -> str:
    """A metric's name as that of a file and an element."""
    return "".join(each if (each.isalnum() and each.isascii()) or each in "_-" else "_" for each in key)


@dataclass
class Figures:
    """The figures of a page, by name, in order."""

    drawn: dict[str, "Figure"] = field(default_factory=dict)

    def add(self, name: str, figure: "Figure", caption: str, *, kind: str = "") -> Markup:
        """The element of a figure, which is kept under its name."""
        self.drawn[name] = figure
        return framed(figure, name=name, caption=caption, kind=kind)
