"""What has a name: that each says what it is, and that files of one's own add to it."""

import re

import pytest

from piat_jax.averaging import AVERAGES, INTERPOLATIONS
from piat_jax.objectives import METHODS, WRAPPERS

WITH_PAPERS = (METHODS, WRAPPERS, AVERAGES, INTERPOLATIONS)


@pytest.mark.parametrize(
    ("registry", "name"), [pytest.param(registry, name, id=name) for registry in WITH_PAPERS for name in registry]
)
def test_everything_has_a_title_and_one_sentence(registry, name):
    about = registry.about(name)
    assert about.name == name
    assert re.fullmatch(r"[A-Z]\S.*", about.title)
    assert re.fullmatch(r"[A-Z].*[^.][.]", about.summary)
    assert not re.search(r"[.!?] [A-Z]", about.summary)
    if registry in WITH_PAPERS:
        assert re.fullmatch(r".* \(\d{4}\), .*|none|.*the \w+ paper.*|Polyak and Juditsky \(1992\)", about.paper)


def test_they_are_listed_in_the_order_in_which_they_are_read():
    assert " ".join(METHODS) == "standard pgd_at alp trades mart nmse"
    assert " ".join(WRAPPERS) == ("mail gairat fat cfa rat consistency awp rpat rebat rpatpp kd ecas las ard_prm mix")
    assert " ".join([*AVERAGES, *INTERPOLATIONS]) == "ema seat swa fawa piat"
