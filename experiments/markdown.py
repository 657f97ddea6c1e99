"""Tables in GitHub's Markdown."""

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, words: int | None = 1) -> str:
    """A table: its first `words` columns to the left, and those after them, of numbers, to the right.

    Args:
      heads: one for each column.
      rows: a cell for each column, as text or as anything that makes a text.
      words: how many columns begin at the left; None: all.

    >>> print(table(["", "seeds", "gap"], [["PIAT", 3, "0.4"], ["PGD-AT", 2, ""]]))
    | | seeds | gap |
    |---|---:|---:|
    | PIAT | 3 | 0.4 |
    | PGD-AT | 2 | |
    >>> print(table(["Claim", "Verdict"], [["PIAT is better", "holds"]], words=None))
    | Claim | Verdict |
    |---|---|
    | PIAT is better | holds |
    """
    left = len(heads) if words is None else words
    rules = "".join("---|" if place < left else "---:|" for place in range(len(heads)))
    first, *rest = ("|" + "".join(f" {cell}".rstrip() + " |" for cell in row) for row in (heads, *rows))
    return "\n".join([first, f"|{rules}", *rest])
