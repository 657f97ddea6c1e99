"""Fields in groups: nested dicts, as configs and their files have them."""

from collections.abc import Mapping
from typing import Any

IN_PIXELS = ("eps", "step_size")
"""How the names of fields end that are in the unit of pixels, which people write as 8/255."""


def leaves(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every field of nested dicts as {"group.name": value}, in their order.

    >>> leaves({"seed": 0, "attack": {"eps": 0.1, "steps": 10}})
    {'seed': 0, 'attack.eps': 0.1, 'attack.steps': 10}
    """
    found: dict[str, Any] = {}
    for name, value in plain.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def in_255ths(path: str, value: Any) -> str:
    """A field's value as "8/255" where it is in pixels and such a fraction; "" elsewhere.

    >>> in_255ths("attack.eps", 8 / 255), in_255ths("attack.eps", 0.1), in_255ths("optimizer.momentum", 0.2)
    ('8/255', '', '')
    """
    if not path.endswith(IN_PIXELS) or not isinstance(value, float) or not 0 < value < 1:
        return ""
    count = round(255 * value)
    return f"{count}/255" if abs(255 * value - count) < 1e-6 else ""
