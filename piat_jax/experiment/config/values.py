"""Values of config fields, from text or Python values."""

import ast
import os
from fractions import Fraction
from typing import Any

ONE_OR_SEVERAL = ("dataset.extra",)
"""Fields that hold a text or a tuple of texts; a text with commas is split."""


def parse_value(given: Any, like: Any) -> Any:
    """Convert `given` to the type of `like`; text is parsed, and floats may be fractions.

    >>> parse_value("8/255", 0.1) == 8 / 255, parse_value("1,2", (0.5,)), parse_value("(3, 4)", (0,))
    (True, (1.0, 2.0), (3, 4))
    >>> parse_value(1, 0.5), parse_value([3, 4], (0,))
    (1.0, (3, 4))
    """
    if isinstance(given, os.PathLike):
        given = os.fspath(given)
    if not isinstance(given, str):
        return _as_type_of(given, like)
    text = given
    if isinstance(like, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(text)
        return text.lower() in ("true", "1")
    if isinstance(like, int):
        return int(text)
    if isinstance(like, float):
        try:
            return float(text)
        except ValueError:
            return float(Fraction(text.replace(" ", "")))
    if isinstance(like, tuple):
        parts = [part.strip().strip("'\"") for part in text.strip().strip("()").split(",") if part.strip()]
        if like:
            return tuple(parse_value(part, like[0]) for part in parts)
        return tuple(ast.literal_eval(part) for part in parts)
    return text


def one_or_several(given: Any) -> str | tuple[str, ...]:
    """Split a text at commas; one text or none remains a text."""
    if isinstance(given, list | tuple):
        found = tuple(parse_value(each, "") for each in given)
    else:
        found = parse_value(given, ("",))
    return found if len(found) > 1 else "".join(found)


def _as_type_of(value: Any, like: Any) -> Any:
    """A Python value as the type of `like`; ValueError if the types do not fit."""
    if isinstance(like, tuple) and isinstance(value, list | tuple):
        return tuple(parse_value(each, like[0]) if like else each for each in value)
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, type(like)) and isinstance(value, bool) == isinstance(like, bool):
        return value
    raise ValueError(value)


def kind_of(value: Any) -> str:
    """What a field takes, in words."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number (8/255 is one)"
    return "a list such as 1,2,3" if isinstance(value, tuple) else "text"
