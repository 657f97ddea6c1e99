"""Methods as text: parts joined by +: one objective, wrappers from the inside out, averages, and piat."""

import dataclasses
import textwrap
from typing import Any, NamedTuple

from piat_jax.averaging import AVERAGES, INTERPOLATIONS, PIAT, RationalWeight, average_fields
from piat_jax.core.checks import InputError, did_you_mean
from piat_jax.objectives import METHODS, WRAPPERS, AttackedObjective

SHARED = {field.name for field in dataclasses.fields(AttackedObjective)}
OF_EVERY_OBJECTIVE = {
    field.name: field.default
    for field in dataclasses.fields(AttackedObjective)
    if field.name not in ("model", "attack")
}


class Stack(NamedTuple):
    """The parts of a method."""

    base: str
    wrappers: tuple[str, ...] = ()  # from the inside out
    average: str = ""  # the average that is evaluated instead of the weights
    piat: bool = False
    further: tuple[str, ...] = ()  # averages that are evaluated as well; a number follows the name of a second one

    def __str__(self) -> str:
        averages = [*filter(None, [self.average]), *self.further]
        return "+".join([self.base, *self.wrappers, *averages, *(["piat"] if self.piat else [])])


def parse_method(method: str) -> Stack:
    """Split a method such as "trades+awp+swa+piat"; a missing objective is that of the wrapper's paper, mostly PGD-AT.

    >>> str(parse_method("piat")), str(parse_method("awp+piat")), str(parse_method("rat"))
    ('pgd_at+piat', 'pgd_at+awp+piat', 'trades+rat')
    >>> parse_method("trades+awp+swa")
    Stack(base='trades', wrappers=('awp',), average='swa', piat=False, further=())
    >>> parse_method("ema+ema2+swa").further
    ('ema2', 'swa')
    >>> parse_method("tradse+piat")
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: method='tradse+piat': 'tradse' is unknown; did you mean 'trades'?
    """
    parts = method.split("+")
    known = [*METHODS, *WRAPPERS, *AVERAGES, *INTERPOLATIONS]
    for part in parts:
        if part not in known and average_kind(part) not in AVERAGES:
            where = f"method={method!r}: {part!r}" if len(parts) > 1 else f"method={method!r}"
            raise InputError(f"{where} is unknown{did_you_mean(part, known)}")
        if parts.count(part) > 1:
            raise InputError(f"method={method!r} has {part!r} twice; leave one out")
    bases = [part for part in parts if part in METHODS]
    averages = [part for part in parts if average_kind(part) in AVERAGES]
    if len(bases) > 1:
        raise InputError(f"method={method!r} has {len(bases)} objectives ({', '.join(bases)}); keep one")
    if averages and averages[0] not in AVERAGES:
        raise InputError(
            f"method={method!r}: {averages[0]!r} is a further average without a first one; write "
            f"{average_kind(averages[0])!r}"
        )
    wrappers = tuple(part for part in parts if part in WRAPPERS)
    wanted = [WRAPPERS[name].default_inner for name in wrappers if WRAPPERS[name].default_inner != "pgd_at"]
    base = (bases or wanted or ["pgd_at"])[0]
    return Stack(base, wrappers, averages[0] if averages else "", "piat" in parts, tuple(averages[1:]))


def average_kind(part: str) -> str:
    """The average that a part of a method stands for: "ema2" is a second "ema".

    >>> average_kind("swa"), average_kind("ema2")
    ('swa', 'ema')
    """
    return part if part in AVERAGES else part.rstrip("0123456789")


def method_groups(stack: Stack) -> dict[str, dict[str, Any]]:
    """The config groups of a method: "objective", "attack" (its changes), "average", and one per wrapper.

    A further average has a group with its name.

    >>> groups = method_groups(parse_method("trades+awp"))
    >>> groups["objective"]["beta"], groups["attack"], groups["awp"]
    (6.0, {'start': 'normal', 'l2_rule': 'awp'}, {'gamma': 0.005, 'start': 0.045})
    """
    inside, groups = [stack.base], {"objective": _defaults(METHODS[stack.base], SHARED)}
    groups["objective"] = dict(OF_EVERY_OBJECTIVE) | groups["objective"]
    groups["attack"] = dict(METHODS[stack.base].attack_options)
    for name in stack.wrappers:
        wrapper = WRAPPERS[name]
        own = _defaults(wrapper, {"inner"}) | dict(wrapper.text_fields)
        for key in inside:
            own |= wrapper.variants.get(key, {})
        groups[name] = own
        for key, options in sorted(wrapper.inner_options.items(), key=lambda item: item[0].count("+")):
            if key.startswith(stack.base) and set(key.split("+")) <= set(inside):
                groups["objective"] |= options
        groups["attack"] |= wrapper.attack_options
        inside.append(name)
    if stack.average:
        groups["average"] = average_fields(stack.average)
    return groups | {part: average_fields(average_kind(part)) for part in stack.further}


def _defaults(cls: type, without: set[str]) -> dict[str, Any]:
    """A dataclass's fields and their defaults."""
    fields = [field for field in dataclasses.fields(cls) if field.name not in without]
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


def describe(name: str) -> str:
    """Describe a method or a part of one: names, summaries, papers and defaults."""
    stack = parse_method(name)
    groups = method_groups(stack)
    parts = name.split("+")
    lines = []
    for part in parts:
        named = average_kind(part)
        named = named if named in AVERAGES else part
        registry = next(known for known in (METHODS, WRAPPERS, AVERAGES, INTERPOLATIONS) if named in known)
        about = registry.about(named)
        lines += [part, *textwrap.wrap(about.summary, 110, initial_indent="    ", subsequent_indent="    ")]
        lines += [f"    {about.paper}"] if about.paper else []
    shown = {
        "objective": groups["objective"] if any(part in METHODS or part in WRAPPERS for part in parts) else {},
        "attack": groups["attack"],
        **{part: groups[part] for part in parts if part in WRAPPERS},
        "average": groups.get("average", {}),
        **{part: groups[part] for part in stack.further},
        "piat": _defaults(RationalWeight, set()) | _defaults(PIAT, {"weight"}) if "piat" in parts else {},
    }
    for group, fields in shown.items():
        if fields:
            text = ", ".join(f"{field}={_short(value)}" for field, value in fields.items())
            lines += textwrap.wrap(
                f"config.{group}: {text}", 110, initial_indent="    ", subsequent_indent="        ",
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    return repr(value)


def parts() -> dict[str, list[str]]:
    """The names of all parts, by type."""
    return {
        "Objectives, one in each method": list(METHODS),
        "Wrappers, around an objective and each other": list(WRAPPERS),
        "Averages of the weights: the first is evaluated instead of them, others as well": list(AVERAGES),
        "Interpolation, with any of these": list(INTERPOLATIONS),
    }
