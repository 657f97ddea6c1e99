"""Config files and overrides from the command line: every problem at once, with the nearest name that exists."""

import ast
import difflib
import runpy
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from piat_jax.core.checks import InputError, did_you_mean
from piat_jax.core.files import expanded
from piat_jax.objectives import WRAPPERS

# A ConfigDict; its fields have no static types.
Config = Any


def load_config(text: str) -> Config:
    """The config of `FILE.py` or `FILE.py:METHOD`, locked against new fields.

    Raises:
      InputError: the file is missing or defines no get_config, or the method is unknown.
    """
    path_text, _, method = text.partition(":")
    path = expanded(path_text)
    if not path.is_file():
        others = sorted(str(other) for other in path.parent.glob("*.py") if other.stem not in ("__init__", "common"))
        hint = did_you_mean(path_text, others) if others else f"; there is no folder {path.parent} with config files"
        raise InputError(f"config={path_text!r} is not a file{hint}")
    # Config files import their neighbours as `configs.common`.
    root = str(path.resolve().parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        module = runpy.run_path(str(path), run_name=f"piat_config_{path.stem}")
        if "get_config" not in module:
            raise InputError(f"config={path_text!r} defines no function get_config(method)")
        config = module["get_config"](method) if method else module["get_config"]()
    except InputError:
        raise
    except Exception as error:  # whatever is wrong in a file of the user's own
        raise InputError(f"config={path_text!r}: {_place(error, path)}{type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"config={path_text!r}: get_config returned {type(config).__name__}; return a ConfigDict, such as that of "
            "configs.common.get_config(method) with fields changed"
        )
    return config.lock()


def _place(error: Exception, path: Path) -> str:
    """Where in a file an error comes from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
    return f"line {line}: " if line else ""


def split_overrides(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """`--config.a.b=value` arguments as {"a.b": "value"}, and the rest.

    `--config.flag` and `--noconfig.flag` set a boolean; `--config.a.b value` works as well.

    >>> split_overrides(["--config.attack.eps=8/255", "--noconfig.dataset.flip", "--workdir=x"])
    ({'attack.eps': '8/255', 'dataset.flip': 'false'}, ['--workdir=x'])
    """
    overrides, rest = {}, []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        flag = argument.lstrip("-")
        if argument.startswith("-") and flag.startswith("noconfig."):
            overrides[flag.removeprefix("noconfig.")] = "false"
        elif argument.startswith("-") and flag.startswith("config."):
            path, equals, value = flag.removeprefix("config.").partition("=")
            if not equals:
                value = remaining.pop(0) if remaining and not remaining[0].startswith("--") else "true"
            overrides[path] = value
        else:
            rest.append(argument)
    return overrides, rest


def apply_overrides(config: Config, overrides: Mapping[str, str]) -> list[str]:
    """Set fields from text, by the type each has; returns what went wrong, one line each."""
    problems = []
    fields = dict(leaves(config))
    groups = {path.rpartition(".")[0] for path in fields} - {""}
    for path, text in overrides.items():
        if path in groups:
            inside = [name for name in fields if name.startswith(f"{path}.")]
            problems.append(f"config.{path} is a group of fields; set one of them: {', '.join(inside)}")
            continue
        if path not in fields:
            problems.append(f"config.{path}{_unknown(path, list(fields), config)}")
            continue
        try:
            value = parse_value(text, fields[path])
        except (ValueError, SyntaxError, ZeroDivisionError):
            problems.append(f"config.{path}={text!r} is not {_kind(fields[path])}")
            continue
        group, _, name = path.rpartition(".")
        parent = config
        for part in group.split(".") if group else ():
            parent = parent[part]
        parent[name] = value
    return problems


def _unknown(path: str, fields: Sequence[str], config: Config) -> str:
    """What to say of a field that there is not: the nearest one, or where to look.

    Only what differs is compared: within a group the names in it, else those of all groups, then whole paths.
    """
    group, _, name = path.rpartition(".")
    part = path.partition(".")[0]
    if part in WRAPPERS and part not in config:
        return f": {config.method} has no {part}; write --config=FILE:{config.method}+{part}"
    of = f": {config.method} has no such" if group == "objective" else " is unknown"
    inside = {field.rpartition(".")[2]: field for field in fields if group and field.startswith(f"{group}.")}
    anywhere = {field.rpartition(".")[2]: field for field in reversed(fields)}
    whole = {} if inside else {field: field for field in fields}
    for written, among, cutoff in ((name, inside, 0.6), (path, whole, 0.75), (name, anywhere, 0.75)):
        if near := difflib.get_close_matches(written, among, n=1, cutoff=cutoff):
            return f"{of}; did you mean {among[near[0]]!r}?"
    if inside:
        return f"{of}; choose one of {', '.join(inside.values())}"
    parts = dict.fromkeys(f"{field.partition('.')[0]}." if "." in field else field for field in fields)
    return f"{of}; there are {', '.join(parts)}; configs/common.py lists what is in the groups"


def leaves(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field as ("group.name", value), in the order of definition."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def parse_value(text: str, like: Any) -> Any:
    """`text` as a value of the same type as `like`; floats may be fractions.

    >>> parse_value("8/255", 0.1) == 8 / 255, parse_value("1,2", (0.5,)), parse_value("(3, 4)", (0,))
    (True, (1.0, 2.0), (3, 4))
    """
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


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number (8/255 is one)"
    return "a list such as 1,2,3" if isinstance(value, tuple) else "text"


def to_plain(config: Config) -> dict[str, Any]:
    """The resolved config as JSON-able dicts; tuples become lists."""
    return {
        name: to_plain(value) if isinstance(value, ConfigDict) else list(value) if isinstance(value, tuple) else value
        for name, value in config.items()
    }


def from_plain(plain: Mapping[str, Any]) -> Config:
    """The inverse of `to_plain`."""
    return ConfigDict(
        {
            name: from_plain(value)
            if isinstance(value, Mapping)
            else tuple(value)
            if isinstance(value, list)
            else value
            for name, value in plain.items()
        }
    ).lock()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields in which two plain configs differ, as "name: old -> new".

    >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    ['a.b: 1 -> 3']
    """
    before, after = dict(leaves(ConfigDict(old))), dict(leaves(ConfigDict(new)))
    return [
        f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in [*before, *(name for name in after if name not in before)]
        if before.get(name, "absent") != after.get(name, "absent")
    ]
