import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from piat_jax.attacks import ATTACKS, takes
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.core.rng import named_key
from piat_jax.core.types import Batch, Variables
from piat_jax.experiment import hooks
from piat_jax.experiment.config import load as read_config
from piat_jax.models import create
from piat_jax.objectives import (
    ALP,
    ARDPRM,
    AWP,
    ECAS,
    LAS,
    MART,
    NMSE,
    PGDAT,
    RAT,
    TRADES,
    Consistency,
    Mix,
    Standard,
)
from piat_jax.objectives.base import Outputs, WrapperState
from piat_jax.objectives.ikl import IKL
from piat_jax.objectives.mixup_cutmix import draw, outside_box, symmetric_beta
from piat_jax.objectives.score import SCORE
from piat_jax.objectives.stat import STAT
from piat_jax.training import init_state, train_step
from tests.objectives.stub import ATTACK, CONTEXT, CURVED, MODEL, PA, ZA, P, Y, Z, make, state_of, unit

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.uniform(0.3, 0.7, (5, 6, 4, 1)), jnp.float32)
LABELS = jnp.array([0, 1, 2, 2, 1])
BATCH = Batch(IMAGES, LABELS, jnp.arange(5))
# Of the stub, for images of 24 pixels.
VARIABLES = Variables(
    {"w": jnp.asarray(3 * RNG.normal(size=(24, 3)), jnp.float32), "scale": jnp.ones(24)}, {"mean": jnp.full(24, 0.5)}
)
KEYS = jax.random.split(jax.random.key(3), 4000)


def at(number):
    return CONTEXT._replace(key=jax.random.key(number))


@jax.jit
def step(objective, context):
    """The adversarial batch, loss and metrics on it, and the gradient by the weights."""
    (params, statistics), state = VARIABLES, state_of(objective)
    adversarial = objective.perturb(VARIABLES, state, BATCH, context)
    evaluate = jax.value_and_grad(objective.loss, has_aux=True)
    (loss, aux), gradient = evaluate(params, statistics, state, adversarial, context)
    return adversarial, loss, aux.metrics, gradient


def own_share(mixed, cut):
    """Of the pixels or of their values, measured on the images."""
    reverse = IMAGES[::-1]
    if cut:
        own = mixed == IMAGES
        assert bool(jnp.all(own | (mixed == reverse)))
        return float(own[:2].mean())
    apart = (IMAGES - reverse)[:2]
    share = float(jnp.sum(apart * (mixed - reverse)[:2]) / jnp.sum(apart**2))
    np.testing.assert_allclose(mixed, share * IMAGES + (1 - share) * reverse, atol=1e-6)
    return share


@pytest.mark.parametrize("cut", [True, False], ids=["cutmix", "mixup"])
def test_attack_loss_and_gradient_are_those_of_soft_labels(cut):
    mix, shares, elsewhere = Mix(make(PGDAT), prob=1.0, switch=float(cut)), [], []
    for number in range(8):
        context = at(number)
        adversarial, loss, metrics, gradient = step(mix, context)
        shares.append(share := own_share(adversarial.clean.images, cut))
        one_hot = np.eye(3, dtype=np.float32)[np.asarray(LABELS)]
        target = jnp.asarray(share * one_hot + (1 - share) * one_hot[::-1])
        crafted, expected, by_weights = _with_soft_labels(adversarial.clean.images, target, context)
        np.testing.assert_allclose(adversarial.images, crafted, atol=1e-6)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(gradient["w"], by_weights["w"], atol=1e-5)
        # Accuracy is that of the label with the larger share.
        assert share == 0.5 or np.array_equal(adversarial.clean.labels, np.argmax(target, 1))
        assert metrics["mixed"] == (share < 1)
        # With one label the attack would go elsewhere.
        one_label = jnp.asarray(one_hot[np.asarray(adversarial.clean.labels)])
        other = _with_soft_labels(adversarial.clean.images, one_label, context)[0]
        elsewhere.append(np.abs(other - crafted).max() > 0.05)
    assert len(set(shares)) > 3
    # On images this small a box is hardly ever more than half.
    assert cut or min(shares) < 0.5 < max(shares)
    assert any(elsewhere)


@jax.jit
def _with_soft_labels(images, target, context):
    def cross_entropy(logits, _=None):
        return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)

    def loss(params, images):
        return jnp.mean(cross_entropy(MODEL.apply(params, VARIABLES.model_state, images, train=True)[0]))

    def logits_fn(x):
        return MODEL.apply(*VARIABLES, x, train=False)[0]

    crafted = ATTACK(logits_fn, images, LABELS, key=named_key(context.key, "attack"), loss=cross_entropy)
    return crafted, *jax.value_and_grad(loss)(VARIABLES.params, crafted)


@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_loss_and_attack_are_told_smoothed_targets(prob):
    mix, context = Mix(make(PGDAT), prob=prob, switch=0.0, label_smoothing=0.3), at(2)
    adversarial, loss, metrics, _ = step(mix, context)
    share = own_share(adversarial.clean.images, cut=False) if prob else 1.0
    one_hot = np.eye(3, dtype=np.float32)[np.asarray(LABELS)]
    target = jnp.asarray(0.7 * (share * one_hot + (1 - share) * one_hot[::-1]) + 0.1)
    np.testing.assert_allclose(adversarial.clean.targets, target, atol=1e-6)
    crafted, expected, _ = _with_soft_labels(adversarial.clean.images, target, context)
    np.testing.assert_allclose(adversarial.images, crafted, atol=1e-6)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics["mixed"] == (share < 1)


def test_batches_that_are_not_mixed_are_the_method_inside():
    plain, mixed = (step(objective, CONTEXT) for objective in (make(PGDAT), Mix(make(PGDAT), prob=0.0)))
    assert mixed[2].pop("mixed") == 0
    crafted = mixed[0]._replace(clean=mixed[0].clean._replace(targets=None), metrics={})
    mixed = (crafted, *mixed[1:])
    jax.tree.map(np.testing.assert_array_equal, plain, mixed)


def test_nothing_compiles_anew():
    step(Mix(make(PGDAT)), at(0))
    compiled = step._cache_size()
    step(Mix(make(PGDAT), prob=0.9, mixup_alpha=0.1, cutmix_alpha=7.0, switch=0.1, label_smoothing=0.2), at(1))
    assert step._cache_size() == compiled


@jax.jit
def drawn(mix):
    return jax.vmap(lambda key: draw(mix, (32, 32), key))(KEYS)


def test_what_is_drawn():
    own, lam = map(np.asarray, drawn(Mix(make(PGDAT))))
    np.testing.assert_allclose(own.mean((1, 2, 3, 4)), lam, atol=1e-6)
    cut = ((own == 0) | (own == 1)).all((1, 2, 3, 4)) & (lam < 1)
    mixup = (lam < 1) & ~cut
    # Boxes of less than two pixels a side are none: (2/32)^2 of them.
    assert abs((cut | mixup).mean() - 0.3) < 0.025
    assert abs(mixup.sum() / (cut | mixup).sum() - 0.5) < 0.05
    assert stats.kstest(lam[mixup], stats.beta(0.8, 0.8).cdf).pvalue > 0.01
    for options in ({"switch": 1.0}, {"switch": 0.0}):
        own, lam = map(np.asarray, drawn(Mix(make(PGDAT), prob=1.0, **options)))
        assert ((own == 0) | (own == 1)).all() == options["switch"]


def test_the_box():
    sizes, draws = (9, 16), 500
    lams = RNG.uniform(size=draws).astype(np.float32)
    lams[:3] = 0, 1, 0.9999
    centres = np.stack([RNG.integers(0, size, draws) for size in sizes], 1)
    found = jax.jit(jax.vmap(functools.partial(outside_box, size=sizes)))(lams, jnp.asarray(centres))
    for lam, centre, outside in zip(lams, centres, np.asarray(found)):
        expected = np.ones(sizes, bool)
        ends = []
        for size, middle in zip(sizes, centre):
            half = int(size * np.sqrt(1 - float(lam))) // 2
            ends.append(slice(max(middle - half, 0), min(middle + half, size)))
        expected[tuple(ends)] = False
        np.testing.assert_array_equal(outside[0, :, :, 0], expected)
    assert found[1].all()


beta = jax.jit(symmetric_beta)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 6.0])
def test_the_beta_distribution(alpha):
    u, v = (np.float32(RNG.uniform(size=5000)) for _ in range(2))
    values = np.asarray(beta(alpha, u, v))
    assert stats.kstest(values, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    grid = np.meshgrid(*[np.float32([0, 0.25, 0.5, 1 - 2**-24])] * 2)
    edges = np.asarray(beta(alpha, *(values.ravel() for values in grid)))
    assert np.all((edges >= 0) & (edges <= 1))


SHARE, SECOND = 0.7, np.array([1, 1, 0, 2])
TARGET = SHARE * np.eye(3)[Y] + (1 - SHARE) * np.eye(3)[SECOND]
KL = (P * np.log(P / PA)).sum(1)
APART = ((unit(Z) - unit(ZA)) ** 2).sum(1)


def mart(labels):
    of = np.arange(4), labels
    others = np.where(np.eye(3, dtype=bool)[labels], -1, PA).max(1)
    return -np.log(PA[of]) - np.log(1 - others) + 5 * (1 - P[of]) * KL


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (make(Standard), -(TARGET * np.log(P)).sum(1)),
        (make(PGDAT, label_smoothing=0.3), -((0.55 * TARGET + 0.15) * np.log(PA)).sum(1)),
        (make(PGDAT, label_smoothing=0.3, smoothing_over="all"), -((0.7 * TARGET + 0.1) * np.log(PA)).sum(1)),
        (make(ALP), -(TARGET * np.log(PA)).sum(1) + 0.5 * ((Z - ZA) ** 2).sum(1)),
        (make(TRADES), -(TARGET * np.log(P)).sum(1) + 6 * KL),
        (make(TRADES, label_smoothing=0.3), -((0.55 * TARGET + 0.15) * np.log(P)).sum(1) + 6 * KL),
        (make(NMSE, mu=5.0), -(TARGET * np.log(PA)).sum(1) + 5 * (1 - (TARGET * P).sum(1)) * APART),
        (make(MART), SHARE * mart(Y) + (1 - SHARE) * mart(SECOND)),
    ],
    ids=["standard", "smoothed", "smoothed over all", "alp", "trades", "trades smoothed", "nmse", "mart"],
)
def test_losses_take_probabilities(method, expected):
    batch = CURVED._replace(clean=CURVED.clean._replace(targets=jnp.asarray(TARGET, jnp.float32)))
    terms = method.terms(
        Outputs(
            {"clean": jnp.asarray(Z, jnp.float32), "adversarial": jnp.asarray(ZA, jnp.float32)},
            batch,
            VARIABLES,
            method.target_of(batch.clean, 3),
        ),
        (),
        CONTEXT,
    )
    np.testing.assert_allclose(terms.adversarial + terms.other, expected, rtol=2e-3 if type(method) is MART else 1e-4)


@jax.jit
def weights_after(objective, state):
    adversarial = objective.perturb(VARIABLES, state, BATCH, CONTEXT)
    return objective.perturb_weights(*VARIABLES, state, adversarial, CONTEXT)["w"]


def test_what_changes_the_loss_may_be_inside_or_outside():
    state = WrapperState((), WrapperState((), ()))
    inside, outside = Mix(AWP(make(PGDAT), start=0.0), prob=1.0), AWP(Mix(make(PGDAT), prob=1.0), start=0.0)
    np.testing.assert_array_equal(weights_after(inside, state), weights_after(outside, state))
    assert np.abs(weights_after(inside, state) - VARIABLES.params["w"]).max() > 1e-3


def unattacked(logits_fn, images, labels, *, key, indices=None, loss=None):
    return images


def test_two_views_are_mixed_alike():
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), BATCH)
    objective = Consistency(Mix(make(PGDAT, attack=unattacked), prob=1.0))
    perturb = jax.jit(
        lambda context: objective.perturb(VARIABLES, WrapperState((), WrapperState((), ())), twice, context)
    )
    mixed = []
    for number in range(6):
        adversarial = perturb(at(number))
        for values in (*adversarial.clean[:2], adversarial.clean.targets):
            np.testing.assert_array_equal(values[5:], values[:5])
        mixed.append(np.any(adversarial.clean.images != twice.images))
    assert sum(mixed) > 1


def test_an_odd_batch_leaves_its_middle_alone():
    adversarial = step(Mix(make(PGDAT), prob=1.0), at(0))[0]
    np.testing.assert_allclose(adversarial.clean.images[2], IMAGES[2], atol=1e-7)
    assert adversarial.clean.labels[2] == LABELS[2]
    np.testing.assert_allclose(adversarial.clean.targets[2], np.eye(3)[LABELS[2]], atol=1e-7)


@pytest.mark.parametrize("outside", [True, False])
def test_the_attack_is_given_what_others_set_too(outside):
    seen = {}

    def attack(logits_fn, images, labels, *, key, indices=None, vary=None):
        seen.update(labels=labels, vary=vary)
        return images

    method, options = make(PGDAT, attack=attack), {"ard": False, "patch_size": 2}
    objective = ARDPRM(Mix(method), **options) if outside else Mix(ARDPRM(method, **options))
    jax.eval_shape(lambda: objective.perturb(VARIABLES, WrapperState((), WrapperState((), ())), BATCH, CONTEXT))
    assert seen["labels"].shape == (5, 3)
    assert seen["vary"].patch_size == 2


VIT = create("vit", num_classes=3, width=8, depth=1, heads=2)


@pytest.mark.parametrize(
    ("method", "classes"),
    [
        ("pgd_at+mix+ard_prm+piat", (ARDPRM, Mix, PGDAT)),
        ("nmse+ecas+mix+consistency+awp", (AWP, Consistency, Mix, ECAS, NMSE)),
    ],
)
def test_from_the_config_line(method, classes):
    config = read_config(f"configs/cifar10_vit_b.py:{method}", {"attack.steps": "1"})
    assert (
        config.wrappers["mix"].prob,
        config.wrappers["mix"].mixup_alpha,
        config.wrappers["mix"].cutmix_alpha,
        config.wrappers["mix"].switch,
    ) == (0.3, 0.8, 1, 0.5)
    objective = layer = config.build_objective(VIT)
    for cls in classes:
        assert type(layer) is cls
        layer = getattr(layer, "inner", None)
    images = jnp.zeros((4, 8, 8, 3))
    batch = Batch(images, jnp.arange(4) % 3, jnp.arange(4))
    optimizer = config.build_recipe(640).optimizer

    def two_steps():
        state = hooks.start(config, init_state(objective, optimizer, images[:1], key=KEYS[0]))
        end, metrics = train_step(objective, optimizer, state, batch, key=KEYS[0], epochs=40)
        return state, end, metrics

    start, end, metrics = jax.eval_shape(two_steps)
    assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, end)
    assert "mixed" in metrics


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Mix(LAS(make(PGDAT), strategy=MODEL)), "Mix cannot go around LAS; leave out one of them"),
        (lambda: Mix(Mix(make(PGDAT))), "Mix cannot go around Mix; leave out one of them"),
        (lambda: RAT(Mix(make(TRADES))), "Mix scales the cross-entropy, of which RAT takes a share"),
        (lambda: Mix(RAT(make(TRADES))), "Mix cannot go around RAT; leave out one of them"),
        (
            lambda: LAS(AWP(Mix(make(PGDAT))), strategy=MODEL),
            "LAS chooses by images that Mix then changes; leave out LAS or Mix",
        ),
        (lambda: Mix(make(PGDAT), prob=30.0), "prob=30.0 must be in [0, 1]"),
        (lambda: Mix(make(PGDAT), switch=-1.0), "switch=-1.0 must be"),
        (lambda: Mix(make(PGDAT), mixup_alpha=0.0), "mixup_alpha=0.0 must be in (0, inf]"),
    ],
)
def test_what_does_not_go_together(call, message):
    with pytest.raises(InputError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_every_attack_is_told_mixed_targets(name):
    takes_steps = "steps" in takes(name)
    attack = bind(ATTACKS[name], eps=0.1, **({"steps": 2} if takes_steps else {}))
    mix = Mix(make(PGDAT, attack=attack), prob=1.0)
    crafted = jax.jit(lambda: mix.perturb(VARIABLES, state_of(mix), BATCH, at(1)))()
    assert crafted.images.shape == IMAGES.shape
    assert bool(jnp.all(jnp.isfinite(crafted.images)))
    assert float(jnp.abs(crafted.images - crafted.clean.images).max()) > 0.05


@pytest.mark.parametrize("method", [TRADES, SCORE, IKL, STAT])
def test_an_attack_without_a_loss_of_the_methods_is_refused_where_it_is_built(method):
    with pytest.raises(InputError, match=re.escape(f"{method.__name__} sets the attack's 'loss'")):
        make(method, attack=bind(ATTACKS["mt"], eps=0.1))
