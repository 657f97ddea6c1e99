import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.attacks import fgsm
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.core.types import Batch
from piat_jax.objectives import PGDAT, TRADES
from piat_jax.objectives.awp import AWP
from piat_jax.objectives.ecas import ECAS, prediction_entropy
from tests.objectives.stub import (
    ATTACK,
    BATCH,
    CLEAN,
    CONTEXT,
    IMAGES,
    PARAMS,
    STATE,
    P,
    Z,
    make,
    perturb,
    train_forwards,
    value,
)

# Not `jit(perturb)`: its cache would be shared with other tests, which look at what is traced.
run = jax.jit(lambda *arguments, **options: perturb(*arguments, **options))
SEEN = {}


def spy(logits_fn, images, labels, *, key, indices=None, eps=None, step_size=None, start_eps=None):
    SEEN.update(eps=eps, step_size=step_size, start_eps=start_eps)
    return images


def seen(context=CONTEXT, batch=CLEAN, inner=None, **options):
    """What the attack is called with."""
    perturb(ECAS(make(PGDAT, attack=spy) if inner is None else inner, **options), batch=batch, context=context)
    return {name: None if v is None else np.asarray(v) for name, v in SEEN.items()}


def at(epoch=0, epochs=110, step=0):
    return CONTEXT._replace(epoch=jnp.int32(epoch), epochs=jnp.int32(epochs), step=jnp.int32(step))


def test_schedulers():
    def radius(context, **options):
        eps = seen(context, entropy=False, **options)["eps"] * 255
        assert np.ptp(eps) == 0
        return eps[0]

    levels = [*range(3, 13), 3, 4]
    np.testing.assert_allclose([radius(at(epoch)) for epoch in range(12)], levels, rtol=1e-5)
    steps = [radius(at(step=step), scheduler="cyclic_batch") for step in range(12)]
    np.testing.assert_allclose(steps, levels, rtol=1e-5)
    linear = [radius(at(epoch, 10), scheduler="linear") for epoch in range(10)]
    np.testing.assert_allclose(linear, range(3, 13), rtol=1e-5)
    np.testing.assert_allclose(radius(at(3), scheduler="fixed"), 8, rtol=1e-5)
    np.testing.assert_allclose(radius(at(1), levels=(9.0, 5.0, 7.0), eps=16 / 255), 14, rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class Direct:
    """The images are the logits."""

    def apply(self, params, model_state, images, *, train, key=None):
        return images.reshape(len(images), -1), model_state


def of_entropy(target):
    """Ten logits, of one class t and 0 elsewhere, whose softmax has this entropy in nats."""
    low, high = 0.0, 20.0
    for _ in range(60):
        t = (low + high) / 2
        p = np.append(np.exp(t), np.ones(9)) / (np.exp(t) + 9)
        low, high = (t, high) if -(p * np.log(p)).sum() > target else (low, t)
    return np.append(t, np.zeros(9))


def test_entropy_decides_at_the_papers_thresholds():
    logits = np.stack([of_entropy(h) for h in (2.29, 2.26, 1.31, 1.29, 1.0)])
    np.testing.assert_allclose(prediction_entropy(jnp.asarray(logits)), [2.29, 2.26, 1.31, 1.29, 1.0], rtol=1e-4)
    batch = Batch(jnp.asarray(logits, jnp.float32).reshape(5, 1, 1, 10), jnp.zeros(5, jnp.int32), jnp.arange(5))
    inner, big = make(PGDAT, attack=spy, model=Direct()), set()
    for seed in range(12):
        context = at(epoch=4)._replace(key=jax.random.key(seed))
        call = seen(context, batch, inner)
        eps = call["eps"] * 255
        np.testing.assert_allclose(eps[:3], [3, 7, 7], rtol=1e-5)
        assert eps[3] == eps[4]  # one draw for the batch
        big.add(round(float(eps[3])))
        np.testing.assert_allclose(call["step_size"] * 255, 2 * 7 / 10, rtol=1e-5)  # of the cyclic radius, for all
    assert big == {10, 11, 12}
    assert seen(inner=inner, batch=batch, num_big=1)["eps"][4] * 255 == pytest.approx(12)
    # A certain prediction is no NaN.
    np.testing.assert_array_equal(prediction_entropy(jnp.array([[1e4, 0.0, 0.0]])), 0.0)


def test_a_radius_from_outside_is_the_nominal_one():
    own = jnp.array([8.0, 16.0, 8.0, 4.0]) / 255
    call = seen(CONTEXT._replace(attack={"eps": own}), entropy=False, levels=(6.0,), num_big=1)
    np.testing.assert_allclose(call["eps"] * 255, [6, 12, 6, 3], rtol=1e-5)
    np.testing.assert_allclose(call["step_size"] * 255, np.array([6, 12, 6, 3]) / 5, rtol=1e-5)


def test_only_one_wrapper_chooses_the_attack():
    with pytest.raises(InputError, match="ECAS and ECAS both choose radius and step size"):
        ECAS(AWP(ECAS(make(PGDAT))))


def test_entropy_forward():
    objective = ECAS(make(PGDAT))
    assert train_forwards(perturb, objective) == "c"
    batch = run(objective)
    assert train_forwards(value, objective, PARAMS, batch._replace(images=BATCH.images)) == "a"
    mean = 0.9 * STATE["mean"] + 0.1 * IMAGES.reshape(4, -1).mean(0)
    np.testing.assert_allclose(batch.model_state["mean"], mean, rtol=1e-5)
    # The loss goes on from there, under a wrapper inside as well.
    mean = 0.9 * mean + 0.1 * batch.images.reshape(4, -1).mean(0)
    for each in (objective, ECAS(AWP(make(PGDAT)))):
        np.testing.assert_allclose(value(each, batch=batch)[1].model_state["mean"], mean, rtol=1e-5)
    # So does the attack: it equals that of the method inside at those statistics and radii.
    context = CONTEXT._replace(attack={"eps": batch.extra["ECAS"], "step_size": 2 / 3 * 3 / 255})
    expected = run(make(PGDAT), state=batch.model_state, context=context).images
    np.testing.assert_allclose(batch.images, expected, atol=1e-6)
    for options in ({"entropy": False}, {"entropy_batch_norm": "eval"}):
        assert train_forwards(perturb, ECAS(make(PGDAT), **options)) == ""
        assert run(ECAS(make(PGDAT), **options)).model_state is None


def test_entropy_is_of_the_clean_prediction():
    entropy = -(P * np.log(np.maximum(P, 1e-300))).sum(1)
    np.testing.assert_allclose(prediction_entropy(jnp.asarray(Z)), entropy, rtol=1e-4, atol=1e-6)
    low, middle, high = np.sort(entropy)[[0, 2, 3]]
    options = {"entropy_low": (low + middle) / 2, "entropy_high": (middle + high) / 2, "num_big": 1}
    eps = seen(at(epoch=5), **options)["eps"] * 255
    expected = np.where(entropy > options["entropy_high"], 3, np.where(entropy < options["entropy_low"], 12, 8))
    np.testing.assert_allclose(eps, expected, rtol=1e-5)
    objective = ECAS(make(PGDAT), **{**options, "num_big": 3})
    metrics = value(objective, batch=run(objective, context=at(epoch=5)))[1].metrics
    raised = [metrics[f"radius_raised_{number}"] for number in (1, 2, 3)]
    # One big level for the whole batch.
    assert sorted(raised) == [0, 0, np.mean(expected == 12)]
    assert metrics["radius_lowered"] == np.mean(expected == 3)


@pytest.mark.parametrize("method", [PGDAT, TRADES])
def test_one_level_without_entropy_is_the_method_inside(method):
    inner = make(method, attack=bind(ATTACK, eps=0.1, step_size=0.2 / 3))
    for scheduler in ("fixed", "cyclic"):
        ours = run(ECAS(inner, eps=0.1, levels=(8.0,), num_big=1, scheduler=scheduler, entropy=False))
        np.testing.assert_allclose(ours.images, run(inner).images, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_clipping_trains_on_the_projection(norm):
    options = {"eps": 0.04, "levels": (15.0,), "num_big": 1, "entropy": False, "reach": 1.5}
    inner = make(PGDAT, attack=bind(ATTACK, norm=norm))
    x = np.asarray(run(ECAS(inner, clip=True, **options)).images)
    context = CONTEXT._replace(attack={"eps": 0.075, "step_size": 0.0375, "start_eps": 0.04})
    delta = np.asarray(run(inner, context=context).images) - np.asarray(IMAGES)
    if norm == "linf":
        assert np.abs(delta).max() > 0.05
        expected = np.clip(delta, -0.04, 0.04)
    else:
        length = np.sqrt((delta**2).sum((1, 2, 3), keepdims=True))
        assert length.max() > 0.045
        expected = delta * np.minimum(1, 0.04 / length)
    np.testing.assert_allclose(x - np.asarray(IMAGES), expected, atol=1e-6)
    assert seen(clip=True, **options)["start_eps"] == pytest.approx(0.04)
    assert seen(**options)["start_eps"] is None


def test_every_example_stays_in_its_ball():
    options = {"entropy_low": 0.5, "entropy_high": 0.6, "eps": 0.1}
    batch = run(ECAS(make(PGDAT), **options), context=at(epoch=5))
    radii = np.asarray(batch.extra["ECAS"])
    assert len(set(radii)) > 1
    assert np.all(np.abs(batch.images - IMAGES).max((1, 2, 3)) <= radii + 1e-6)


def test_epochs_do_not_recompile():
    traces = []

    @jax.jit
    def step(objective, context):
        traces.append(context)
        return perturb(objective, PARAMS, context=context).images

    for epoch in (0, 3, 9):
        step(ECAS(make(PGDAT), entropy_low=0.1 * epoch), at(epoch))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": ()}, "levels=() is empty"),
        ({"levels": (3.0, -1.0)}, "levels=-1.0 must be at least 0"),
        ({"num_big": 11}, "num_big=11 must be in [1, 10]"),
        ({"scheduler": "cycle"}, "scheduler='cycle' is unknown; did you mean 'cyclic'?"),
        ({"entropy_batch_norm": "batch"}, "entropy_batch_norm='batch' is unknown"),
        ({"entropy_low": -1.0}, "entropy_low=-1.0 must be at least 0"),
        ({"inner": make(PGDAT, attack=bind(fgsm))}, "ECAS sets the attack's 'step_size', which this attack"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    options = dict(options)
    with pytest.raises(InputError, match=re.escape(message)):
        ECAS(options.pop("inner", make(PGDAT)), **options)
