"""interpolate_params where optax, Flax or JAX's precision puts something around it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from piat_jax.averaging import (
    EQUAL_WEIGHT,
    PIAT,
    Average,
    RationalWeight,
    WarmupDecay,
    eval_params,
    interpolate,
    interpolate_params,
    interpolated,
)
from piat_jax.core.checks import InputError
from piat_jax.core.types import TrainState


def descend(optimizer, gradients, **extra):
    """The parameter 0 after steps of rate 1 along these gradients."""
    x = jnp.array(0.0)
    state, seen = optimizer.init(x), []
    for gradient in gradients:
        updates, state = optimizer.update(jnp.array(gradient), state, x, **extra)
        x = optax.apply_updates(x, updates)
        seen.append(float(x))
    return seen


def around_sgd(period, weight=None):
    return interpolated(optax.sgd(1.0), period, weight=weight)


@pytest.mark.parametrize("make", [around_sgd, interpolate_params])
def test_the_default_schedule_counts_interpolations_under_injected_hyper_parameters(make):
    """Not updates, which is what optax counts."""

    def factory(period):
        return make(period=period)

    expected = descend(make(period=3), [1.0] * 7)
    inject = optax.inject_hyperparams(make)
    assert descend(inject(period=3), [1.0] * 7) == pytest.approx(expected, rel=1e-6)
    assert descend(optax.inject_hyperparams(factory)(period=3), [1.0] * 7) == pytest.approx(expected, rel=1e-6)


def test_the_paper_s_schedule_by_hand_under_injected_hyper_parameters():
    # lambda_1 = 2/11 of 0, and the rest of -3; then lambda_2 = 3/12 of that, and the rest of where it is.
    inject = optax.inject_hyperparams(interpolated)
    first = -3 * 9 / 11
    second = 0.25 * first + 0.75 * (first - 3)
    found = descend(inject(optax.sgd(1.0), period=3), [1.0] * 6)
    assert (found[2], found[5]) == (pytest.approx(first, rel=1e-6), pytest.approx(second, rel=1e-6))


def test_weights_are_as_precise_as_what_they_multiply():
    with jax.enable_x64(True):
        one, zero = jnp.float64(1.0), jnp.float64(0.0)
        assert float(interpolate(one, zero, 0.3)) == pytest.approx(0.3, rel=1e-15)
        state = TrainState(
            step=jnp.int32(0),
            epoch=jnp.int32(0),
            params={"w": one},
            model_state={},
            opt_state=(),
            objective_state=(),
        )
        for weight, at_2 in ((0.3, 0.3), (RationalWeight(), 3 / 12), (RationalWeight(b=2.0, d=7.0), 4 / 9)):
            started = PIAT(weight=weight).init(state)
            moved = jax.tree.map(lambda leaf: leaf, started)
            moved.params["w"] = zero
            assert float(PIAT(weight=weight)(moved, 2).params["w"]) == pytest.approx(at_2, rel=1e-15)
        for weight, share in ((0.3, 0.3), (WarmupDecay(0.999), 2 / 11), (WarmupDecay(0.15), 0.15), (EQUAL_WEIGHT, 0.5)):
            average = Average(weight)
            state_1 = average(average.init(state), 1)
            moved = jax.tree.map(lambda leaf: leaf, state_1)
            moved.params["w"] = zero
            kept = average(moved, 2).average.variables.params["w"]
            assert float(kept) == pytest.approx(share, rel=1e-15)
        optimizer = interpolate_params(1, weight=0.3)
        updates, _ = optimizer.update(-one, optimizer.init(one), one)
        assert float(one + updates) == pytest.approx(0.3, rel=1e-15)
        assert interpolate(jnp.float32(1.0), jnp.float32(0.0), 0.3).dtype == jnp.float32


def test_apply_if_finite_inside_keeps_the_interpolation_of_a_bad_step():
    """Around it, the step is undone with its interpolation: the docstring says which way round."""
    bad = [1.0, 1.0, float("nan"), 1.0]
    inside = interpolated(optax.apply_if_finite(optax.sgd(1.0), 9), 3, weight=0.5)
    assert descend(inside, bad) == [-1.0, -2.0, -1.0, -2.0]
    around = optax.apply_if_finite(interpolated(optax.sgd(1.0), 3, weight=0.5), 9)
    assert descend(around, bad) == [-1.0, -2.0, -2.0, -1.5]  # on the third update that counts
    asked = optax.apply_if_finite(interpolated(optax.sgd(1.0), weight=0.5), 9)
    assert descend(asked, [1.0, float("nan")], interpolate=True) == [-0.5, -0.5]
    asked = interpolated(optax.apply_if_finite(optax.sgd(1.0), 9), weight=0.5)
    assert descend(asked, [1.0, float("nan")], interpolate=True) == [-0.5, -0.5]
    assert "apply_if_finite" in (interpolate_params.__doc__ or "")


def test_a_multi_steps_object_is_told_its_transformation():
    steps = optax.MultiSteps(optax.sgd(0.1), 2)
    with pytest.raises(InputError, match=r"inner is an optax.MultiSteps.*give inner.gradient_transformation\(\)"):
        interpolated(steps)
    assert descend(interpolated(steps.gradient_transformation(), 2, weight=0.5), [1.0, 1.0])[-1] == pytest.approx(-0.05)


class Net(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.norm(self.dense(x))


def test_eval_params_gives_back_the_containers_of_an_nnx_optimizer():
    net = Net()
    optimizer = nnx.Optimizer(net, interpolated(optax.sgd(0.1), 1, weight=0.5), wrt=nnx.Param)
    optimizer.update(net, nnx.grad(lambda net: jnp.sum(net(jnp.array([[1.0, 2.0], [0.0, 1.0]])) ** 3))(net))
    written = jax.tree.map(jnp.copy, nnx.state(net, nnx.Param))
    nnx.update(net, jax.tree.map(lambda leaf: leaf + 1.0, written))  # training goes on
    params = nnx.state(net, nnx.Param)
    for like in (params, nnx.to_pure_dict(params)):
        found = eval_params(optimizer.opt_state, like)
        assert jax.tree.structure(found) == jax.tree.structure(like)
        for leaf, kept, now in zip(*map(jax.tree.leaves, (found, written, like)), strict=True):
            np.testing.assert_allclose(leaf, kept, rtol=1e-6)
            assert np.all(np.asarray(leaf) != np.asarray(now))
    nnx.update(net, eval_params(optimizer.opt_state, params))
    wrong = nnx.to_pure_dict(params)
    wrong["dense"]["kernel"] = jnp.ones((2, 4))
    with pytest.raises(InputError, match=r"differ at .*kernel"):
        eval_params(optimizer.opt_state, wrong)
    with pytest.raises(InputError, match=r"only the anchor in opt_state has .*norm"):
        eval_params(optimizer.opt_state, {"dense": nnx.to_pure_dict(params)["dense"]})


def test_eval_params_of_other_containers_with_the_same_leaves():
    params = {"layers": [jnp.ones(2), jnp.zeros(3)], "head": {"w": jnp.ones(1)}}
    state = interpolated(optax.sgd(0.1), 1).init(params)
    other = {"layers": (jnp.zeros(2), jnp.zeros(3)), "head": {"w": jnp.zeros(1)}}
    found = eval_params(state, other)
    assert jax.tree.structure(found) == jax.tree.structure(other)
    assert [leaf.sum().item() for leaf in jax.tree.leaves(found)] == [1.0, 2.0, 0.0]
