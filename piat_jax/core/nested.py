"""Fields in groups: the nested dicts of configs and their files."""

from collections.abc import Mapping
from typing import Any

IN_PIXELS = ("eps", "step_size")
"""Endings of field names in pixel units, which are usually written as 8/255."""


def leaves(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All fields of nested dicts as {"group.name": value}, in order.

    >>> leaves({"seed": 0, "attack": {"eps": 0.1, "steps": 10}})
    {'seed': 0, 'attack.eps': 0.1, 'attack.steps': 10}
    """
    found: dict[str, Any] = {}
    for name, value in plain.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def in_255ths(path: str, value: Any) -> str:
    """A field's value as "8/255" if it is in pixel units and a multiple of 1/255, else "".

    >>> in_255ths("attack.eps", 8 / 255), in_255ths("attack.eps", 0.1), in_255ths("optimizer.momentum", 0.2)
    ('8/255', '', '')
    """
    if not path.endswith(IN_PIXELS) or not isinstance(value, float) or not 0 < value < 1:
        return ""
    count = round(255 * value)
    return f"{count}/255" if abs(255 * value - count) < 1e-6 else ""
