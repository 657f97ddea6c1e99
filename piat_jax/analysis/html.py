"""HTML elements, with escaping of all text that is not marked as HTML."""

import html
from collections.abc import Iterable

from piat_jax.analysis.table import MISSING, Cell, Table

EMPTY = ("br", "img", "meta")
"""Elements without an end tag."""


class Markup(str):
    """Text that is already HTML."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element; children that are not Markup are escaped, and attributes are quoted.

    Args:
      name: of the element.
      *children: text, Markup, or any object, as its `str`; None is skipped.
      **attributes: `class_` is class, and `data_x` is data-x; None or "" leaves one out.

    >>> tag("p", "a < b, ", tag("b", "c"), class_="note")
    '<p class="note">a &lt; b, <b>c</b></p>'
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value not in (None, "")}
    opened = "".join(f' {key}="{html.escape(str(value))}"' for key, value in given.items())
    inside = "" if name in EMPTY else f"{join(children)}</{name}>"
    return Markup(f"<{name}{opened}>{inside}")


def join(children: Iterable[object], separator: str = "") -> Markup:
    """Join children, as `tag` takes them.

    >>> join(["<", Markup("<br>")])
    '&lt;<br>'
    """
    texts = (child if isinstance(child, Markup) else html.escape(str(child)) for child in children if child is not None)
    return Markup(separator.join(texts))


def grid(heads: Iterable[object], rows: Iterable[Iterable[object]], *, labels: int = 1, name: str = "") -> Markup:
    """A table that scrolls if it is wider than the page.

    Args:
      heads: of the columns.
      rows: their cells, as `tag` takes children.
      labels: number of text columns, from the left; the others are numbers.
      name: a class of the table.
    """
    top = tag("tr", *(tag("th", head, scope="col", class_=_of_column(i, labels)) for i, head in enumerate(heads)))
    body = (tag("tr", *(tag("td", cell, class_=_of_column(i, labels)) for i, cell in enumerate(row))) for row in rows)
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body), class_=name), class_="wide", tabindex=0)


def table(found: Table) -> Markup:
    """A table of means, with the best of each column in bold and its notes below."""
    rows = [[_cell(cell) for cell in row] for row in found.rows]
    return join([grid(found.columns, rows, labels=found.labels), *(note(text) for text in found.notes)])


def note(text: object) -> Markup:
    """A small paragraph."""
    return tag("p", text, class_="note")


def _of_column(index: int, labels: int) -> str:
    return "label" if index < labels else ""


def _cell(cell: object) -> object:
    if cell is None:
        return MISSING
    return tag("b", cell) if isinstance(cell, Cell) and cell.best else cell
