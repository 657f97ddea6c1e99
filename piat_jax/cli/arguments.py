"""Flags of a command, through absl, in an object of their own so that commands can be called from Python."""

from collections.abc import Sequence

from absl import flags

from piat_jax.core.checks import InputError


class HelpRequested(Exception):
    """--help was given; its text is the message."""


def new_flags() -> flags.FlagValues:
    """An empty set of flags with --help."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow positional arguments
    flags.DEFINE_boolean("help", False, "Show this help.", short_name="h", flag_values=values)
    return values


def parse(
    values: flags.FlagValues, arguments: Sequence[str], description: str | None, *, folders: bool = False
) -> list[str]:
    """Read `arguments` into `values` and return the positional ones, which only commands on `folders` take.

    Raises:
      InputError: an unknown flag, a value of the wrong type, or a positional argument where none is taken.
      HelpRequested: --help was given.
    """
    try:
        positional = values(["command", *arguments])[1:]
    except flags.Error as error:
        raise InputError(str(error).removeprefix("FATAL Flags parsing error:").strip().replace("\n", "; ")) from error
    if values.help:
        raise HelpRequested(f"{(description or '').strip()}\n{values.get_help(include_special_flags=False)}")
    if positional and not folders:
        raise InputError(f"unexpected argument {positional[0]!r}; fields are set as --config.FIELD=VALUE")
    return positional
