"""The numbers that are made of accuracies under common corruptions."""

import json

import numpy as np
import pytest

from piat_jax.data.corruptions import CORRUPTIONS
from piat_jax.evaluation.corruptions import ALEXNET, CorruptionAccuracy


def random_accuracies(extra=()):
    rng = np.random.default_rng(0)
    return {name: tuple(rng.uniform(0.2, 0.9, 5)) for name in (*CORRUPTIONS, *extra)}


def test_the_mean_is_that_of_the_fifteen_and_the_extra_ones_stand_apart():
    accuracy = random_accuracies(("saturate", "spatter"))
    found = CorruptionAccuracy(0.95, accuracy, 10, 100)
    fifteen = np.array([accuracy[name] for name in CORRUPTIONS])
    assert found.mean == pytest.approx(fifteen.mean())
    assert found.extra == pytest.approx(np.mean([accuracy["saturate"], accuracy["spatter"]]))
    np.testing.assert_allclose(found.by_severity, fifteen.mean(axis=0))
    assert found.of["fog"] == pytest.approx(np.mean(accuracy["fog"]))
    # Not ImageNet: the mean error, and it says so.
    assert not found.is_normalised
    assert found.mce == pytest.approx(1 - found.mean)
    kept = json.loads(json.dumps(found.summary()))
    assert (kept["mce_is"], kept["mean"]) == ("the mean error, not normalised", found.mean)
    assert kept["accuracy"]["fog"] == list(accuracy["fog"])


def test_the_mean_corruption_error_divides_by_alexnet_s():
    assert tuple(ALEXNET) == CORRUPTIONS
    accuracy = random_accuracies()
    found = CorruptionAccuracy(0.76, accuracy, 1000, 50000)
    errors = [100 * (1 - np.mean(accuracy[name])) / ALEXNET[name] for name in CORRUPTIONS]
    assert 100 * found.mce == pytest.approx(np.mean(errors))
    assert found.summary()["mce_is"] == "relative to AlexNet's error"
    assert found.summary()["extra"] is None
    itself = {name: (1 - error,) * 5 for name, error in ALEXNET.items()}
    assert CorruptionAccuracy(0.56, itself, 1000, 50000).mce == pytest.approx(1.0)


def test_the_table_has_every_corruption_and_severity():
    accuracy = random_accuracies(("saturate",))
    lines = CorruptionAccuracy(0.9, accuracy, 10, 7).to_markdown().splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines[:-2]]
    assert cells[0] == ["Corruption", "1", "2", "3", "4", "5", "Mean"]
    assert [row[0] for row in cells[2:]] == [*CORRUPTIONS, "mean of the above", "saturate"]
    for row in cells[2:]:
        if row[0] in accuracy:
            values = accuracy[row[0]]
            assert row[1:] == [f"{100 * value:.2f}" for value in (*values, np.mean(values))]
    assert "on 7 images at each severity. Clean 90.00" in lines[-1]
    assert "not normalised" in lines[-1]
    missing = {name: values for name, values in accuracy.items() if name != "fog"}
    assert np.isnan(CorruptionAccuracy(0.9, missing, 10, 7).mean)
