"""The list of slow tests names tests that are there, and they are marked."""

from tests import slow

LINES = slow.read(slow.LIST.read_text())


def test_it_names_what_is_there(request):
    assert request.config.stash.get(slow.STALE, []) == []


def test_each_line_changes_something():
    for place, (name, is_slow) in enumerate(LINES):
        assert slow.is_slow(name, LINES[:place]) != is_slow


def test_what_it_names_is_marked(request):
    """Of the tests that were collected beside this one."""
    for item in request.session.items:
        assert (item.get_closest_marker("slow") is not None) == slow.is_slow(item.nodeid, LINES)
        exact = {"same_bits", "OLDER_EMITTER"} & slow.names_in(item)
        assert (item.get_closest_marker("rounding") is not None) == bool(exact)


def test_names_are_those_of_a_test_s_own_code(request):
    assert {"slow", "request"} & slow.names_in(request.node) == {"slow"}


def test_the_last_line_that_names_a_test_decides():
    lines = slow.read("# slow\na.py\n\n!a.py::test[1]\nb.py::Test::test\n")
    assert lines == [("a.py", True), ("a.py::test[1]", False), ("b.py::Test::test", True)]
    decided = {
        "a.py::test": True,
        "a.py::test[1]": False,
        "a.py::test[10]": True,
        "b.py::Test::test[x]": True,
        "b.py::Test::test_other": False,
        "c.py::test": False,
    }
    assert {nodeid: slow.is_slow(nodeid, lines) for nodeid in decided} == decided
