"""AutoAttack under three norms: linear boundaries, of which all is known."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from piat_jax.core.checks import InputError
from piat_jax.evaluation import AutoAttack, AutoAttackUnion, Finding, UnionRobustness

SHAPE = (2, 3, 1)
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
EPS = {"linf": 0.03, "l2": 0.065, "l1": 0.1}
QUICK = AutoAttack(attacks=("apgd-t",), steps=20, targets=2, restarts=1, block_size=16)
# One boundary needs one pixel, which is near in L1, the other all of them, which is near in L-inf.
NORMALS = np.float32([[1, 0, 0, 0, 0, 0], [1, -1, 1, 1, -1, 1]])


def linear(normals, x):
    margins = (x.reshape(len(x), -1) - 0.5) @ normals.T + 0.1
    return jnp.concatenate([jnp.zeros((len(x), 1)), -margins], axis=1)


def examples(count=90):
    """Images in the middle of the box, their labels, and how far each is from the nearest boundary in each norm."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0.45, 0.65, (count, *SHAPE)).astype(np.float32)
    margins = (images.reshape(count, -1) - 0.5) @ NORMALS.T + 0.1
    labels = np.where((margins > 0).all(axis=1), 0, 1 + margins.argmin(axis=1)).astype(np.int32)
    images, margins = images[labels == 0], margins[labels == 0]
    labels = np.where(np.arange(len(images)) % 9 == 0, 1, 0).astype(np.int32)  # some are wrong when clean
    distances = {norm: (margins / np.linalg.norm(NORMALS, order, axis=1)).min(axis=1) for norm, order in DUAL.items()}
    return Partial(linear, jnp.asarray(NORMALS)), images, labels, distances


def test_robust_is_what_no_norm_reaches(tmp_path):
    network, images, labels, distances = examples()
    union = AutoAttackUnion(eps=tuple(EPS.values()), settings=QUICK)
    found = union.run(network, images, labels, folder=tmp_path)
    clean = np.arange(len(labels)) % 9 != 0
    np.testing.assert_array_equal(found.clean, clean)
    reached = {norm: distances[norm] < EPS[norm] for norm in EPS}
    for norm, part in found.parts.items():
        np.testing.assert_array_equal(part.robust, clean & ~reached[norm], err_msg=norm)
        # What another norm has broken is attacked all the same: the columns are exact.
        np.testing.assert_array_equal(part.attempted[0], clean)
        alone = dataclasses.replace(QUICK, norm=norm, eps=EPS[norm]).run(network, images, labels)
        np.testing.assert_array_equal(part.fooled, alone.fooled)
    every = np.logical_or.reduce(list(reached.values()))
    np.testing.assert_array_equal(found.robust, clean & ~every)
    assert found.accuracy == (clean & ~every).mean()
    assert found.accuracy < min(found.accuracy_under.values())  # no norm says it all, or this shows nothing
    count = np.sum(list(reached.values()), axis=0)
    assert found.broken_only["linf"] > 0 < found.broken_only["l1"]
    assert found.broken_only == {norm: int((clean & reached[norm] & (count == 1)).sum()) for norm in EPS}
    worst = min((found.robust[labels == k].mean(), k) for k in (0, 1))
    assert found.worst_class == (worst[1], pytest.approx(worst[0]))
    # A finding of all parts is there once, and one of a single part too.
    one, two = Finding("one", "of each"), Finding("two", "of the last")
    parts = {norm: dataclasses.replace(part, findings=(one,)) for norm, part in found.parts.items()}
    parts["l1"] = dataclasses.replace(parts["l1"], findings=(one, two))
    assert UnionRobustness(parts).findings == (one, two)
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["clean", "L-inf", "L2", "L1", "union"]
    assert f"{100 * found.accuracy:.2f}%" in lines[-1]
    assert "7.65/255" in lines[3]
    # Finished folders are read.
    again = union.run(network, images, labels, folder=tmp_path)
    assert [part.seconds for part in again.parts.values()] == [part.seconds for part in found.parts.values()]


def test_what_cannot_be_a_union_is_refused():
    with pytest.raises(InputError, match=r"eps=\(0.1, 1.0\) has 2 radii; give one for each of linf, l2, l1"):
        AutoAttackUnion(eps=(0.1, 1.0))
    with pytest.raises(InputError, match=r"eps=8\.0 must be in"):
        AutoAttackUnion(eps=(8, 1.0, 12.0))
    network, images, labels, _ = examples(16)
    one, other = (QUICK.run(network, images[part], labels[part]) for part in (slice(8), slice(8, 16)))
    with pytest.raises(InputError, match="parts are of different examples"):
        UnionRobustness({"linf": one, "l2": other})
    with pytest.raises(InputError, match="one or more results"):
        UnionRobustness({})
