"""The tests that `make test` leaves to `make slow`, which are listed in slow.txt."""

from pathlib import Path

import pytest

LIST = Path(__file__).parent / "slow.txt"
STALE = pytest.StashKey[list[str]]()
"""What the list names and is not there; known where all tests were collected."""


def read(text):
    """The lines of a list, as what they name and whether that is slow."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.removeprefix("!"), not line.startswith("!")) for line in lines]


def names(name, nodeid):
    """Whether a line's name is that of a test: its file, its function or class, or itself.

    >>> names("t.py", "t.py::test"), names("t.py::test", "t.py::test[1]"), names("t.py::test", "t.py::test_more")
    (True, True, False)
    """
    return nodeid == name or (nodeid.startswith(name) and nodeid[len(name)] in ":[")


def names_in(item):
    """The global names in a test's own code; a doctest has none."""
    function = getattr(item, "function", None)
    return set(function.__code__.co_names) if function else set()


def is_slow(nodeid, lines):
    """Whether the last line that names the test says so."""
    return next((slow for name, slow in reversed(lines) if names(name, nodeid)), False)
