"""Minimum norms as they are reported: a linear network, of which all is known, and attacks that break their word."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from piat_jax.attacks import Nearest, bind, fmn, pgd
from piat_jax.core.checks import InputError
from piat_jax.core.sharding import data_mesh
from piat_jax.evaluation.minimum_norm import minimum_norms

KEY = jax.random.key(0)
WEIGHTS = np.float32([1.0, -2.0, 0.5, 1.5])


def linear(weights, x):
    score = (x.reshape(len(x), -1) - 0.5) @ weights
    return jnp.stack([score, -score], axis=1)


NETWORK = Partial(linear, jnp.asarray(WEIGHTS))


def examples(count=21):
    rng = np.random.default_rng(0)
    images = rng.uniform(0.35, 0.65, (count, 2, 2, 1)).astype(np.float32)
    score = (images.reshape(count, -1).astype(np.float64) - 0.5) @ WEIGHTS
    labels = (score < 0).astype(np.int32)
    labels[::5] = 1 - labels[::5]
    return images, labels, np.where(np.arange(count) % 5 == 0, 0.0, np.abs(score) / np.linalg.norm(WEIGHTS))


def test_the_median_and_the_curve_are_those_of_the_distances():
    images, labels, exact = examples()
    found = minimum_norms(NETWORK, images, labels, bind(fmn, norm="l2"), key=KEY, batch_size=8)
    np.testing.assert_array_equal(found.clean, np.arange(21) % 5 != 0)
    np.testing.assert_array_equal(found.distances == 0, ~found.clean)
    np.testing.assert_allclose(found.distances, exact, rtol=2e-3)
    assert found.median == np.median(found.distances[found.clean])
    assert found.found == 1.0
    for eps in (0.0, 0.05, 0.2):
        np.testing.assert_array_equal(found.robust_at(eps), exact > eps)
    radii, accuracy = found.curve()
    assert (radii[0], radii[-1]) == (0.0, found.distances.max())
    np.testing.assert_allclose(accuracy, [(found.distances > eps).mean() for eps in radii])
    # From one radius to the next goes no more than one of these 16 examples: all steps are seen.
    assert set(radii[1:]) == set(found.distances[found.clean])
    assert np.all(np.diff(radii) >= 0)
    assert accuracy[0] == found.clean.mean()
    assert accuracy[-1] == 0
    kept = json.loads(json.dumps(found.summary()))
    assert (kept["norm"], kept["found"]) == ("l2", 1.0)
    assert kept["median"] == found.median
    np.testing.assert_allclose(kept["curve"]["accuracy"], accuracy, rtol=1e-5)
    lines = found.to_csv().splitlines()
    assert lines[0] == "eps,accuracy"
    assert [float(text) for text in lines[51].split(",")] == [kept["curve"][name][50] for name in ("eps", "accuracy")]
    assert str(found) == f"median l2 norm {found.median:.6g} over 16 examples, 100.00% found"


def test_blocks_and_devices_leave_no_trace():
    images, labels, _ = examples()
    attack = bind(fmn, norm="linf", steps=20)
    one = minimum_norms(NETWORK, images, labels, attack, key=KEY)
    for size, mesh in ((5, None), (8, data_mesh(4))):
        other = minimum_norms(NETWORK, images, labels, attack, key=KEY, batch_size=size, mesh=mesh)
        np.testing.assert_allclose(other.distances, one.distances, rtol=1e-4)
    pixels = np.round(255 * images).astype(np.uint8)
    coarse = minimum_norms(NETWORK, pixels, labels, attack, key=KEY)
    fine = minimum_norms(NETWORK, pixels / np.float32(255), labels, attack, key=KEY)
    np.testing.assert_array_equal(coarse.distances, fine.distances)


def claims(logits_fn, images, labels, *, key, indices=None, active=None, norm="l2", kind="short"):
    """Says that all are fooled at distance 0; what it hands over are the exact boundary's images, moved a little."""
    weights = jnp.asarray(WEIGHTS)
    score = (images.reshape(len(images), -1) - 0.5) @ weights
    step = (-score / (weights @ weights))[:, None] * weights[None]
    if kind == "short":  # by half a thousandth, so that the judge takes it for correct
        nearest = images + 0.9995 * step.reshape(images.shape)
    elif kind == "very short":
        nearest = images + 0.9 * step.reshape(images.shape)
    else:
        nearest = {"nan": images * jnp.nan, "box": images - 3.0 * jnp.sign(score)[:, None, None, None]}[kind]
    zero = jnp.zeros(len(images))
    return Nearest(nearest, zero, zero.astype(int))


def test_what_an_attack_says_does_not_matter():
    images, labels, exact = examples()
    found = minimum_norms(NETWORK, images, labels, bind(claims), key=KEY)
    # Stretched by a thousandth it crosses the boundary, and that is how long it is.
    np.testing.assert_allclose(found.distances, exact * 0.9995 * 1.001, rtol=1e-4)
    for kind in ("very short", "nan", "box"):
        findings = []
        found = minimum_norms(
            NETWORK, images, labels, bind(claims, kind=kind), key=KEY, on_finding=findings.append, batch_size=6
        )
        assert np.isinf(found.distances[found.clean]).all()
        assert (found.found, found.median) == (0.0, np.inf)
        assert found.summary()["median"] is None
        assert "median l2 norm none" in str(found)
        np.testing.assert_array_equal(found.robust_at(0.5), found.clean)
        assert [finding.name for finding in findings] == ([] if kind == "very short" else ["invalid_images"])


def test_outputs_that_are_probabilities_are_told():
    images, labels, _ = examples()
    findings = []
    for network in (NETWORK, lambda x: jax.nn.softmax(NETWORK(x))):
        minimum_norms(network, images, labels, bind(claims), key=KEY, on_finding=findings.append, batch_size=6)
    assert [finding.name for finding in findings] == ["probabilities"]


def test_where_nothing_is_correct_there_is_no_median():
    images, _, _ = examples()
    wrong = np.asarray(jnp.argmin(NETWORK(images), axis=1))
    found = minimum_norms(NETWORK, images, wrong, bind(fmn, steps=2), key=KEY)
    assert not found.clean.any()
    assert (found.median, found.found) == (0.0, 1.0)
    assert found.curve()[1].max() == 0.0


def test_other_attacks_are_refused():
    images, labels, _ = examples()
    with pytest.raises(InputError, match="is not a minimum-norm attack; give one, such as bind"):
        minimum_norms(NETWORK, images, labels, fmn, key=KEY)
    with pytest.raises(InputError, match="batch_size=0 must be at least 1"):
        minimum_norms(NETWORK, images, labels, bind(fmn), key=KEY, batch_size=0)
    with pytest.raises(TypeError):
        minimum_norms(NETWORK, images, labels, bind(pgd), key=KEY)
