import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from piat_jax.attacks import fgsm
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.core.rng import example_keys
from piat_jax.core.types import Aux, Batch, Variables
from piat_jax.objectives import PGDAT, TRADES
from piat_jax.objectives.awp import AWP
from piat_jax.objectives.las import LAS, sample
from piat_jax.training.step import init_state, train_step
from tests.objectives.stub import (
    CE_CLEAN,
    CLEAN,
    CONTEXT,
    CURVED,
    IMAGES,
    LABELS,
    PA,
    PARAMS,
    STATE,
    P,
    make,
    perturb,
    softmax,
    state_of,
    train_forwards,
    value,
)

VARIABLES = Variables(PARAMS, STATE)
HEADS = {"eps_levels": (4.0, 8.0, 12.0), "step_counts": (1, 2, 3), "step_levels": (2.0, 4.0)}
ACTIONS = jnp.array([[0, 1, 0], [2, 2, 1], [1, 0, 0], [0, 0, 1]], jnp.int32)
AUX = Aux(STATE, {"loss": jnp.float32(1.5)})
# Not `jit(perturb)`: its cache would be shared with other tests, which look at what is traced.
run = jax.jit(lambda *arguments, **options: perturb(*arguments, **options))


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A linear policy with a running mean."""

    actions: int

    def init(self, key, images):
        size = (images[0].size, self.actions)
        return Variables({"w": jax.random.normal(key, size)}, {"mean": jnp.full(size[0], 0.25)})

    def apply(self, params, model_state, images, *, train, key=None):
        x = images.reshape(len(images), -1)
        mean = x.mean(0) if train else model_state["mean"]
        return (x - mean[None]) @ params["w"], {"mean": 0.5 * model_state["mean"] + 0.5 * mean}


def las(inner=None, **options):
    options = {**HEADS, "eps": 0.1, **options}
    strategy = options.pop("strategy", Strategy(LAS.num_actions(**options)))
    return LAS(make(PGDAT) if inner is None else inner, strategy=strategy, **options)


def drawn(objective, actions=ACTIONS, **extra):
    """A batch under these actions."""
    return CURVED._replace(extra={"las": {"actions": actions, **extra}})


def test_one_choice_of_each_is_the_method_inside():
    inner = make(PGDAT)
    ours = las(inner, eps_levels=(8.0,), step_counts=(3,), step_levels=(4.0,))
    np.testing.assert_allclose(run(ours).images, run(inner).images, atol=1e-6)
    np.testing.assert_allclose(value(ours)[0], value(inner)[0])


def test_each_example_is_attacked_as_drawn():
    batch = run(las())
    actions = np.asarray(batch.extra["las"]["actions"])
    assert len({tuple(row) for row in actions}) > 1
    eps, steps, sizes = (np.asarray(HEADS[name])[actions[:, i]] for i, name in enumerate(HEADS))
    # A method of its own for each example, with an attack of that many steps.
    for i in range(4):
        attack = {"eps": eps[i] * 0.1 / 8, "step_size": sizes[i] * 0.1 / 8, "start_eps": 0.1, "steps": int(steps[i])}
        expected = perturb(make(PGDAT), context=CONTEXT._replace(attack=attack)).images
        np.testing.assert_allclose(batch.images[i], expected[i], atol=1e-5)
    assert np.all(np.abs(batch.images - IMAGES).max((1, 2, 3)) <= eps * 0.1 / 8 + 1e-6)


def test_a_wide_start_ends_in_the_small_ball():
    x = run(las(eps_levels=(3.0,), step_counts=(3,), step_levels=(1.0,))).images
    assert np.abs(x - IMAGES).max() <= 0.1 * 3 / 8 + 1e-6


def test_actions_are_drawn_from_the_softmax_by_index():
    n = 4000
    heads = [jnp.broadcast_to(jnp.array(z), (n, len(z))) for z in ([0.0, 1.0, -1.0], [2.0, 0.0])]
    actions = np.asarray(jax.jit(sample)(heads, example_keys(jax.random.key(3), jnp.arange(n))))
    for i, head in enumerate(heads):
        frequencies = np.bincount(actions[:, i], minlength=head.shape[1]) / n
        np.testing.assert_allclose(frequencies, softmax(np.asarray(head[:1], np.float64))[0], atol=0.03)
    assert abs(np.corrcoef(actions.T)[0, 1]) < 0.05
    order = jnp.array([2, 0, 3, 1])
    shuffled = run(las(), batch=Batch(IMAGES[order], LABELS[order], order)).extra["las"]["actions"]
    np.testing.assert_array_equal(shuffled, run(las()).extra["las"]["actions"][order])
    keys = [run(las(), context=CONTEXT._replace(key=jax.random.key(s))).extra["las"]["actions"] for s in (0, 1)]
    assert np.any(keys[0] != keys[1])


def test_beta_multiplies_the_adversarial_part():
    trades, betas = make(TRADES, beta=1.0, clean_forwards=1), np.array([5.0, 7.0, 9.0, 5.0])
    ours = las(trades, betas=(5.0, 7.0, 9.0))
    expected = CE_CLEAN + (betas * (P * np.log(P / PA)).sum(1)).mean()
    np.testing.assert_allclose(value(ours, batch=drawn(ours, beta=jnp.asarray(betas)))[0], expected, rtol=1e-4)
    batch = run(ours)
    chosen = np.array([5.0, 7.0, 9.0])[np.asarray(batch.extra["las"]["actions"])[:, 3]]
    np.testing.assert_array_equal(batch.extra["las"]["beta"], chosen)
    assert train_forwards(value, ours, PARAMS, drawn(ours, beta=jnp.asarray(betas))) == "ca"


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_clipping_trains_on_the_projection(norm):
    attack = bind(make(PGDAT).attack, norm=norm)
    options = {"eps_levels": (16.0,), "step_counts": (3,), "step_levels": (8.0,), "eps": 0.05}
    free, held = (run(las(make(PGDAT, attack=attack), clip=clip, **options)).images for clip in (False, True))
    lengths = [
        np.linalg.norm(np.asarray(x - IMAGES).reshape(4, -1), np.inf if norm == "linf" else 2, 1) for x in (free, held)
    ]
    assert lengths[0].max() > 0.06
    np.testing.assert_allclose(lengths[1], np.minimum(lengths[0], 0.05), atol=1e-6)


def test_reward():
    def reward(loss=1.5, **options):
        aux = Aux(STATE, {"loss": jnp.float32(loss)})
        return jax.jit(las(**options).reward)(VARIABLES, CURVED, aux, CONTEXT)

    # In evaluation mode, at the variables after the step.
    x = np.asarray(IMAGES, np.float64).reshape(4, -1) - np.asarray(STATE["mean"])
    clean = np.mean((x * np.asarray(PARAMS["scale"]) @ np.asarray(PARAMS["w"])).argmax(1) == np.asarray(LABELS))
    assert 0 < clean < 1
    np.testing.assert_allclose(reward(robust_reward=0.0, clean_reward=3.0), 1.5 + 3 * clean, rtol=1e-6)
    np.testing.assert_allclose(reward(50.0, robust_reward=0.0, clean_reward=0.0), 10.0)
    # No room to attack in, and more room than any of these examples withstands.
    np.testing.assert_allclose(reward(eps=0.0, robust_reward=2.0, clean_reward=0.0), 1.5 + 2 * clean, rtol=1e-6)
    np.testing.assert_allclose(reward(eps=1.0, robust_reward=2.0, clean_reward=0.0), 1.5)


def test_policy_loss_and_its_step():
    objective = las(
        momentum=0.9, weight_decay=0.1, learning_rate=0.5, max_norm=0.3, robust_reward=0.0, clean_reward=0.0
    )
    state = state_of(objective)
    own, batch = state["own"], drawn(objective)
    x = np.asarray(IMAGES, np.float64).reshape(4, -1)
    x = x - x.mean(0)  # learns in training mode
    w = np.asarray(own["params"]["w"], np.float64)
    gradient, total, begin = np.zeros_like(w), 0.0, 0
    for head, n in enumerate((3, 3, 2)):
        p, a = softmax(x @ w[:, begin : begin + n]), np.asarray(ACTIONS)[:, head]
        total -= np.log(p[np.arange(4), a]).mean()
        gradient[:, begin : begin + n] = x.T @ (p - np.eye(n)[a]) / 4
        begin += n
    loss, model_state = objective.policy_loss(own["params"], own, batch, 1.5)
    np.testing.assert_allclose(loss, 1.5 * total, rtol=1e-4)
    gradient *= 1.5
    own = {**own, "momentum": {"w": jnp.full(w.shape, 0.2)}}
    step = jax.jit(objective.after_step)
    new = step(VARIABLES, {**state, "own": own}, batch, AUX, CONTEXT)["own"]
    gradient *= min(1.0, 0.3 / (np.linalg.norm(gradient) + 1e-6))
    momentum = 0.9 * 0.2 + gradient + 0.1 * w
    np.testing.assert_allclose(new["momentum"]["w"], momentum, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(new["params"]["w"], w - 0.5 * momentum, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(new["model_state"]["mean"], model_state["mean"], rtol=1e-6)
    assert np.any(new["model_state"]["mean"] != own["model_state"]["mean"])


def test_it_learns_every_interval_only_and_leaves_the_model_alone():
    objective, batch = las(interval=20), drawn(None)
    state, traces = state_of(objective), []

    @jax.jit
    def after(step):
        traces.append(step)
        return objective.after_step(VARIABLES, state, batch, AUX, CONTEXT._replace(step=step))

    moved = [
        not np.array_equal(after(jnp.int32(s))["own"]["params"]["w"], state["own"]["params"]["w"])
        for s in (0, 1, 19, 20)
    ]
    assert moved == [True, False, False, True]
    assert len(traces) == 1
    assert train_forwards(objective.after_step, VARIABLES, state, batch, AUX, CONTEXT) == ""
    assert train_forwards(perturb, objective) == ""


def test_training_steps_around_weight_perturbation():
    objective, optimizer = las(AWP(make(PGDAT)), clip=True, interval=1, learning_rate=0.1), optax.sgd(0.01)
    state = init_state(objective, optimizer, IMAGES, key=jax.random.key(0))
    step = jax.jit(lambda state: train_step(objective, optimizer, state, CLEAN, key=jax.random.key(1), epochs=3)[0])
    new = step(step(state))
    before, after = (np.asarray(s.objective_state["own"]["params"]["w"]) for s in (state, new))
    assert np.all(np.isfinite(after))
    assert np.abs(after - before).max() > 1e-4


def test_outputs_needed():
    assert LAS.num_actions(**LAS.variants["awp"]) == 9 + 9 + 4
    with pytest.raises(InputError, match=re.escape("strategy has 7 outputs; give it num_classes=8")):
        state_of(las(strategy=Strategy(7)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps_levels": ()}, "eps_levels=() is empty"),
        ({"step_counts": (0, 1)}, "step_counts=0 must be at least 1"),
        ({"step_counts": (3.0,)}, "step_counts=(3.0,) must be whole numbers"),
        ({"step_levels": (-1.0,)}, "step_levels=-1.0 must be at least 0"),
        ({"interval": 0}, "interval=0 must be at least 1"),
        ({"momentum": -0.9}, "momentum=-0.9 must be at least 0"),
        ({"inner": make(PGDAT, attack=bind(fgsm))}, "LAS sets the attack's 'step_size', which this attack"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        las(**options)
