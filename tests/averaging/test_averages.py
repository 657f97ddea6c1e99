"""The averages by name: what each builds, and which fields configs have of it."""

import pytest

from piat_jax.averaging import AVERAGES, EQUAL_WEIGHT, FAWA, Average, WarmupDecay, average, average_fields
from piat_jax.core.checks import InputError


def test_each_builds_its_average():
    built = {name: build(epochs=40) for name, build in AVERAGES.items()}
    assert built == {
        "ema": Average(WarmupDecay(0.999), every="step", epochs=40),
        "seat": Average(WarmupDecay(0.999), every="step", epochs=40),
        "swa": Average(EQUAL_WEIGHT, start=55 / 200, epochs=40, batch_stats="recompute"),
        "fawa": FAWA(0.88, epochs=40, threshold=0.2),
    }
    assert AVERAGES["ema"](epochs=40, decay=0.9, warmup=False) == Average(0.9, every="step", epochs=40)
    for name in ("ema", "seat", "fawa"):
        assert AVERAGES[name](epochs=40, start=0.5).start == 0.5
    assert AVERAGES["fawa"](epochs=40, threshold=0.0).threshold == 0.0


def test_their_fields_are_those_of_the_functions():
    assert {name: average_fields(name) for name in AVERAGES} == {
        "ema": {"decay": 0.999, "start": 0.0, "warmup": True, "batch_stats": "interpolate"},
        "seat": {"decay": 0.999, "start": 0.0},
        "swa": {"start": 55 / 200},
        "fawa": {"decay": 0.88, "start": 0.0, "threshold": 0.2},
    }


def test_one_of_your_own():
    @average("mine", summary="Mine.")
    def mine(*, epochs, decay):
        return Average(decay)

    try:
        with pytest.raises(InputError, match="average 'mine' has no default for 'decay'; give it one"):
            average_fields("mine")
        assert AVERAGES["mine"](epochs=1, decay=0.5) == Average(0.5)
    finally:
        del AVERAGES["mine"]


def test_a_threshold_is_an_accuracy():
    with pytest.raises(InputError, match=r"threshold=20 must be in \[0, 1\]"):
        FAWA(0.88, threshold=20)
