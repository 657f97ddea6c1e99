"""Two habits of the docstrings here that Markdown does not know: doctests, and several names before one colon."""

import re
from typing import Any

import griffe

NAMES = re.compile(r"^( +)(\w+(?:, \*{0,2}\w+)+):(?= )", re.MULTILINE)
DOCTEST = re.compile(r"^( *)>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)


class DocstringsExtension(griffe.Extension):
    """Turns them into Markdown."""

    def on_object(self, *, obj: griffe.Object, **rest: Any) -> None:
        """Change an object's docstring."""
        del rest
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """A docstring whose doctests are blocks of code and whose `model, attack: as in X` is one entry of a list.

    Names before one colon are joined by spaces that do not break, so the first is not taken for the name of the others.
    A doctest ends at an empty line.
    """
    return DOCTEST.sub(r"\1```pycon\n\g<0>\n\1```", NAMES.sub(_joined, text))


def _joined(match: re.Match[str]) -> str:
    return match[1] + match[2].replace(", ", ",\u00a0") + ":"
