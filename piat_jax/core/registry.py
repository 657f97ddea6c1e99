"""Registries: tables from names to entries, which a decorator fills where each entry is defined."""

import os
import re
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, Generic, NamedTuple, TypeVar

from piat_jax.core.checks import InputError, check_choice

T = TypeVar("T")
Entry = TypeVar("Entry")


class About(NamedTuple):
    """Descriptive text of a registered entry, for lists."""

    name: str
    title: str  # the name in papers
    summary: str  # one sentence
    paper: str  # such as "Zhang et al. (2019), arXiv:1901.08573"


class Registry(MutableMapping[str, T], Generic[T]):
    """A mapping from names to entries, in the order of registration; add entries with the decorator `register`.

    Plain assignment, `registry["mine"] = Mine`, adds an entry without text. An entry can only be replaced by one that
    is defined in the same place, as when a config file is executed twice.

    Args:
      kind: the kind of entries, for error messages.

    Raises:
      InputError: a name that is taken, or that cannot be written in a config.

    >>> shapes = Registry("shape")
    >>> @shapes.register("unit_square", summary="As wide as high.")
    ... def square():
    ...     return 1.0
    >>> list(shapes), shapes["unit_square"](), shapes.about("unit_square").title
    (['unit_square'], 1.0, 'UNIT-SQUARE')
    >>> shapes["unit_square"] = max
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: shape 'unit_square' already exists; give another name, or remove it first
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._texts: dict[str, About] = {}

    def register(self, name: str, *, title: str = "", summary: str = "", paper: str = "") -> Callable[[Entry], Entry]:
        """A decorator that registers an entry and returns it unchanged.

        Args:
          name: letters, digits, _ and -.
          title: the name in papers; default the name in capitals.
          summary: one sentence.
          paper: authors, year and reference.

        Raises:
          InputError: see the class; or the decorator has no parentheses.

        >>> @Registry("shape").register
        ... def ball(): ...
        Traceback (most recent call last):
        piat_jax.core.checks.InputError: @shape above 'ball' has no name; write @shape("name", title=...)
        """
        check_parentheses(self.kind, name)

        def add(entry: Entry) -> Entry:
            self[name] = entry  # type: ignore[assignment]
            self._texts[name] = About(name, title or default_title(name), summary, paper)
            return entry

        return add

    def about(self, name: str) -> About:
        """Title, summary and paper of an entry; the last two are "" if not given.

        Raises:
          InputError: no entry has this name.
        """
        check_choice(self.kind, name, self)
        return self._texts.get(name, About(name, default_title(name), "", ""))

    def __setitem__(self, name: str, entry: T) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise InputError(
                f"{self.kind} {name!r} is not a name; give letters, digits, _ and -, such as 'my_{self.kind}'"
            )
        if name in self._entries and _origin(self._entries[name]) != _origin(entry):
            raise InputError(f"{self.kind} {name!r} already exists; give another name, or remove it first")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __delitem__(self, name: str) -> None:
        del self._entries[name]
        self._texts.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<{self.kind}s: {', '.join(self)}>"


def check_parentheses(kind: str, name: object) -> None:
    """Raise InputError if a decorator was written without parentheses, so that its name is the decorated object."""
    if callable(name):
        decorator = kind.removesuffix(" attack").replace("-", "_")
        raise InputError(
            f'@{decorator} above {getattr(name, "__name__", name)!r} has no name; write @{decorator}("name", title=...)'
        )


def default_title(name: str) -> str:
    """A name in the usual spelling of papers: "pgd_at" is PGD-AT."""
    return name.upper().replace("_", "-")


def _origin(entry: Any) -> Any:
    """Where a class or function is defined; for a tuple, of each part; any other entry itself.

    By its file if that is known: a file that is executed and also imported defines the same thing twice.
    """
    if isinstance(entry, tuple):
        return tuple(map(_origin, entry))
    place = (_file(entry) or getattr(entry, "__module__", None), getattr(entry, "__qualname__", None))
    return place if all(place) else entry


def _file(entry: Any) -> str:
    """The file of a function, or of a class's first method that has one; "" if there is none."""
    for part in (entry, *(vars(entry).values() if isinstance(entry, type) else ())):
        name = getattr(getattr(part, "__code__", None), "co_filename", "")
        if name and not name.startswith("<"):
            return os.path.realpath(name)
    return ""
