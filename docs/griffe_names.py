"""Several names before one colon, as docstrings here have them, stay together: `model, attack: as in X`."""

import re
from typing import Any

import griffe

NAMES = re.compile(r"^( +)(\w+(?:, \*{0,2}\w+)+):(?= )", re.MULTILINE)


class TogetherExtension(griffe.Extension):
    """Joins such names by spaces that do not break, so that the first is not taken for the name of the others."""

    def on_object(self, *, obj: griffe.Object, **rest: Any) -> None:
        """Join them in an object's docstring."""
        del rest
        if obj.docstring:
            obj.docstring.value = NAMES.sub(_joined, obj.docstring.value)


def _joined(match: re.Match[str]) -> str:
    return match[1] + match[2].replace(", ", ",\u00a0") + ":"
