"""Command-line arguments: absl flags in a separate object, and overrides of a config's fields.

This module does not import JAX, so that --help is fast.
"""

from collections.abc import Sequence

from absl import flags

import piat_jax
from piat_jax.core.checks import InputError


class HelpRequested(Exception):
    """--help or --version was given; the message is the text to print."""


def new_flags() -> flags.FlagValues:
    """An empty set of flags with --help and --version."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow positional arguments
    flags.DEFINE_boolean("help", False, "Show this help.", short_name="h", flag_values=values)
    flags.DEFINE_boolean("version", False, "Show the version.", flag_values=values)
    return values


def parse(
    values: flags.FlagValues, arguments: Sequence[str], description: str | None, *, positional: bool = False
) -> list[str]:
    """Parse `arguments` into `values` and return the positional ones, if the command takes any.

    Raises:
      InputError: an unknown flag, a value of the wrong type, or an unexpected positional argument.
      HelpRequested: --help or --version was given.
    """
    try:
        given = values(["command", *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        told = str(error).removeprefix("FATAL Flags parsing error:").strip()
        if "config" in values and "Did you mean" not in told:
            told += f"; a field of the config is set as --config.{error.flagname}=VALUE"
        raise InputError(told) from error
    except flags.Error as error:
        raise InputError(str(error).removeprefix("FATAL Flags parsing error:").strip().replace("\n", "; ")) from error
    if values.version:
        raise HelpRequested(f"piat_jax {piat_jax.__version__}")
    if values.help:
        raise HelpRequested(f"{(description or '').strip()}\n{values.get_help(include_special_flags=False)}")
    if given and not positional:
        raise InputError(f"unexpected argument {given[0]!r}; fields are set as --config.FIELD=VALUE")
    return given


def split_overrides(arguments: Sequence[str], kind: str = "config") -> tuple[dict[str, str], list[str]]:
    """Split off `--config.a.b=value` arguments as {"a.b": "value"}; another `kind` replaces "config".

    `--config.flag` and `--noconfig.flag` set a boolean; `--config.a.b value` works as well.

    >>> split_overrides(["--config.attack.eps=8/255", "--noconfig.dataset.flip", "--workdir=x"])
    ({'attack.eps': '8/255', 'dataset.flip': 'false'}, ['--workdir=x'])
    """
    overrides, rest = {}, []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        flag = argument.lstrip("-")
        if argument.startswith("-") and flag.startswith(f"no{kind}."):
            overrides[flag.removeprefix(f"no{kind}.")] = "false"
        elif argument.startswith("-") and flag.startswith(f"{kind}."):
            path, equals, value = flag.removeprefix(f"{kind}.").partition("=")
            if not equals:
                value = remaining.pop(0) if remaining and not remaining[0].startswith("--") else "true"
            overrides[path] = value
        else:
            rest.append(argument)
    return overrides, rest
