import runpy

import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.registry import Registry


@pytest.fixture
def shapes():
    return Registry("shape")


def test_it_is_filled_by_decorators_and_by_assignment_in_order(shapes):
    @shapes.register("ball", title="Ball", summary="Round.", paper="Euclid")
    def ball():
        return 3

    shapes["unit_cube"] = cube = object()
    assert list(shapes.items()) == [("ball", ball), ("unit_cube", cube)]
    assert ball() == 3
    assert "cone" not in shapes
    assert tuple(shapes.about("ball")) == ("ball", "Ball", "Round.", "Euclid")
    assert tuple(shapes.about("unit_cube")) == ("unit_cube", "UNIT-CUBE", "", "")
    assert repr(shapes) == "<shapes: ball, unit_cube>"


def test_a_name_is_given_once_but_the_same_file_may_run_twice(shapes):
    def define():
        @shapes.register("ball", summary="Round.")
        def ball():
            pass

        shapes["pair"] = (ball, {"sides": 2})
        return ball

    define()
    again = define()
    assert shapes["ball"] is again
    with pytest.raises(InputError, match="shape 'ball' already exists; give another name"):
        shapes.register("ball")(max)
    with pytest.raises(InputError, match="shape 'pair' already exists"):
        shapes["pair"] = (again, {"sides": 3})
    assert shapes["ball"] is again
    assert shapes.about("ball").summary == "Round."


def test_what_is_removed_leaves_no_text(shapes):
    shapes.register("ball", summary="Round.")(min)
    assert shapes.pop("ball") is min
    shapes["ball"] = max
    assert shapes.about("ball").summary == ""


@pytest.mark.parametrize("name", ["", "a+b", "a b", "a.b", 3])
def test_a_name_that_no_config_could_hold_is_refused(shapes, name):
    with pytest.raises(InputError, match=r"is not a name; give letters, digits, _ and -, such as 'my_shape'"):
        shapes[name] = max


def test_nothing_is_said_of_a_name_that_is_not_there(shapes):
    shapes["ball"] = max
    with pytest.raises(InputError, match=r"shape='bal' is unknown; did you mean 'ball'\?"):
        shapes.about("bal")
    with pytest.raises(KeyError):
        shapes["bal"]


def test_a_file_that_is_executed_and_imported_defines_the_same_thing(tmp_path):
    source = "class Ball:\n    def area(self): ...\n\n\ndef ball(): ...\n"
    paths = [tmp_path / "one.py", tmp_path / "other.py"]
    for path in paths:
        path.write_text(source)
    one, again, other = (
        runpy.run_path(str(path), run_name=name) for path, name in zip((paths[0], *paths), ("config", "one", "config"))
    )
    registry = Registry("shape")
    for kind in ("Ball", "ball"):
        registry[kind] = one[kind]
        registry[kind] = again[kind]
        assert registry[kind] is again[kind]
        with pytest.raises(InputError, match=f"shape '{kind}' already exists"):
            registry[kind] = other[kind]
