import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.attacks import fgsm, pgd
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.core.forward import ATTENTION_GATES, make_logits_fn
from piat_jax.core.types import Batch, Context, Variables
from piat_jax.experiment import hooks
from piat_jax.experiment.config import load as read_config
from piat_jax.models import create
from piat_jax.objectives import ARDPRM, PGDAT, TRADES, WRAPPERS
from piat_jax.objectives.ard_prm import Drop, RampProgress, patch_mask, ramp_progress
from piat_jax.training import init_state, train_step
from tests.jaxprs import equations
from tests.models.torch_reference_vit import drawn

KEY = jax.random.key(0)
MODEL = create("vit", num_classes=3, width=8, depth=2, heads=2)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(0.3, 0.7, (3, 8, 8, 3)), jnp.float32)  # four patches
LABELS = jnp.arange(3)
VARIABLES = Variables(drawn(MODEL, IMAGES), {})
STEP, STEPS = 0.02, 3
ATTACK = bind(pgd, eps=0.1, step_size=STEP, steps=STEPS)


def at(step, epoch=0, steps_per_epoch=100, epochs=4):
    """Where a run is in which one epoch is the ramp."""
    return Context(KEY, *map(jnp.int32, (step, epoch, epochs)), steps_per_epoch=jnp.int32(steps_per_epoch))


@functools.cache
def attack(varied):
    @jax.jit
    def run(keep_rate=1.0, masked=0):
        options = {"vary": Drop(KEY, keep_rate, masked, 2, 4)} if varied else {}
        return ATTACK(make_logits_fn(MODEL, VARIABLES), IMAGES, LABELS, key=KEY, **options)

    return run


def test_nothing_dropped_is_the_plain_attack_and_everything_dropped_is_none():
    plain = attack(varied=False)()
    np.testing.assert_array_equal(attack(True)(1.0, 0), plain)
    # No gradient and no perturbation: clean images, to the bit.
    np.testing.assert_array_equal(attack(True)(0.0, 4), IMAGES)
    # Half of either is another attack.
    for dropped in (attack(True)(0.5, 0), attack(True)(1.0, 2)):
        assert np.abs(dropped - plain).max() > STEP


def test_masked_patches_start_again():
    # With all of them masked at each step, only the last step is left, of every pixel.
    moved = np.abs(attack(True)(1.0, 4) - IMAGES)
    np.testing.assert_allclose(moved, np.full(moved.shape, STEP), atol=1e-6)
    # Nothing is masked after the last step: what a patch has is at most its steps since it was masked last.
    moved = np.abs(attack(True)(1.0, 2) - IMAGES).reshape(3, 2, 4, 2, 4, 3).max((0, 2, 4, 5)).ravel()
    last = [patch_mask_at(index) for index in range(STEPS)]
    since = [next((k for k in range(STEPS) if not last[STEPS - 1 - k][patch]), None) for patch in range(4)]
    assert None in since or max(since) > 0
    for farthest, steps in zip(moved, since):
        assert farthest > 0.5 * STEP
        if steps is not None:
            assert farthest <= STEP * (steps + 1) + 1e-6


def patch_mask_at(index, masked=2):
    drop = Drop(KEY, None, masked, 2, 4)
    _, x = drop(None, jnp.zeros((1, 8, 8, 1)), jnp.ones((1, 8, 8, 1)), index)
    return np.reshape(x, (2, 4, 2, 4))[:, 0, :, 0].ravel() > 0


def test_what_is_dropped_is_drawn_for_each_step_and_shared_by_the_batch():
    logits_fn = make_logits_fn(MODEL, VARIABLES)

    @jax.jit
    @jax.vmap
    def draw(index):
        images = jnp.zeros((2, 16, 16, 1))
        varied, x = Drop(KEY, 0.25, 5, 6, 4)(logits_fn, images, images + 1, index)
        return varied.variables.model_state[ATTENTION_GATES]["keep"], x

    keep, masks = map(np.asarray, draw(jnp.arange(400)))
    assert keep.shape == (400, 6)
    assert abs(keep.mean() - 0.25) < 0.04
    assert abs(np.corrcoef(keep[:-1, 0], keep[1:, 0])[0, 1]) < 0.2
    grid = masks.reshape(400, 2, 4, 4, 4, 4)
    assert np.all(grid == grid[:, :1, :, :1, :, :1])  # whole patches, the same for both images
    masked = 1 - grid[:, 0, :, 0, :, 0].reshape(400, 16)
    assert np.all(masked.sum(1) == 5)
    assert np.all(np.abs(masked.mean(0) - 5 / 16) < 0.1)
    assert len({tuple(row) for row in masked}) > 350
    # The size of the batch plays no part.
    varied, x = Drop(KEY, 0.25, 5, 6, 4)(logits_fn, jnp.zeros((5, 16, 16, 1)), jnp.ones((5, 16, 16, 1)), 7)
    np.testing.assert_array_equal(varied.variables.model_state[ATTENTION_GATES]["keep"], keep[7])
    np.testing.assert_array_equal(x, masks[7, [0] * 5])


def test_the_schedule_is_exact_at_every_step():
    steps = np.arange(40 * 782)
    contexts = Context(KEY, steps, steps // 782, np.int32(40), steps_per_epoch=np.int32(782))
    progress = jax.jit(lambda step, epoch: ramp_progress(10 / 40, contexts._replace(step=step, epoch=epoch)))
    done, total = progress(*contexts[1:3])
    masked, share = jax.jit(lambda p: (p.masked(64), p.share))(RampProgress(done, total))
    exact = [max(0, 64 * (1 - Fraction(int(step) + 1, 7820))) for step in steps]
    assert masked.tolist() == [int(value) for value in exact]
    assert (int(masked[0]), int(masked[3909]), int(masked[7697])) == (63, 32, 0)
    np.testing.assert_allclose(share, np.minimum((steps + 1) / 7820, 1), rtol=1e-6)
    # Floating point would be off where N (1 - r) is a whole number, even float64.
    done = np.arange(0, 491, 10)
    np.testing.assert_array_equal(RampProgress(jnp.asarray(done), jnp.int32(490)).masked(49), np.arange(49, -1, -1))
    assert np.any(np.floor(49 * (1 - done / 490)) != np.arange(49, -1, -1))
    # A loop that does not say how many steps an epoch has moves once an epoch; no ramp is over at once.
    assert ramp_progress(0.25, at(1234, epoch=4, steps_per_epoch=1, epochs=40)).share == 0.5
    assert ramp_progress(0.0, at(0)).share == 1


def test_one_compilation_for_the_whole_ramp():
    objective, traces = ARDPRM(PGDAT(model=MODEL, attack=ATTACK)), []
    state = objective.init(VARIABLES, IMAGES[:1], key=KEY)

    @jax.jit
    def craft(context, images, labels):
        traces.append(images.shape)
        batch = Batch(images, labels, jnp.arange(len(labels)))
        return objective.perturb(VARIABLES, state, batch, context).images

    # Keep rates of one and 99 hundredths, and 1.
    early, late, over = (craft(at(step, epoch=step // 100), IMAGES, LABELS) for step in (0, 98, 250))
    assert len(traces) == 1
    assert np.abs(early - IMAGES).max() < np.abs(over - IMAGES).max()
    assert np.any(early != late)


CLEAN = Batch(IMAGES, LABELS, jnp.arange(3))


@pytest.mark.parametrize(
    "method",
    ["trades+ard_prm+piat", "mart+ard_prm", "ard_prm+fat+gairat", "trades+ard_prm+las", "rat+ard_prm+ema"],
)
def test_every_crafting_method_takes_it(method):
    config = read_config(f"configs/cifar10_vit_b.py:{method}", {"attack.steps": "2"})
    if "las" in config.wrappers:
        config = config.with_fields({"las.strategy": "mlp"})
    objective = config.build_objective(MODEL)
    batch = jax.tree.map(lambda x: jnp.concatenate([x] * objective.views), CLEAN)
    optimizer = config.build_recipe(640).optimizer
    start = jax.eval_shape(lambda: hooks.start(config, init_state(objective, optimizer, IMAGES[:1], key=KEY)))

    def step(state):
        return train_step(objective, optimizer, state, batch, key=KEY, epochs=40, steps_per_epoch=10)

    jaxpr, (end, _) = jax.make_jaxpr(step, return_shape=True)(start)
    assert jax.tree.map(jnp.shape, end.params) == jax.tree.map(jnp.shape, start.params)
    # The gates select between each branch and the same without gradient, in both blocks.
    shape = (len(batch.labels), 5, 8)
    selects = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "select_n" and e.outvars[0].aval.shape == shape]
    assert len(selects) >= 2
    assert "ard_prm" in config.method.wrappers


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ARDPRM(PGDAT(model=create("mlp", num_classes=3), attack=ATTACK)),
            "this model has none; give ard=False",
        ),
        (lambda: ARDPRM(PGDAT(model=MODEL, attack=bind(fgsm))), "sets the attack's 'vary'"),
        (lambda: ARDPRM(PGDAT(model=MODEL, attack=ATTACK), ramp=10), "ramp=10 must be a share of the run"),
        (lambda: ARDPRM(PGDAT(model=MODEL, attack=ATTACK), patch_size=0), "patch_size=0 must be at least 1"),
        (
            lambda: ARDPRM(TRADES(model=MODEL, attack=ATTACK), patch_size=3).init(VARIABLES, IMAGES, key=KEY),
            "patch_size=3 does not divide images of 8x8 pixels",
        ),
        (lambda: Drop(KEY, 1.0, None, 2, 4)(lambda x: x, IMAGES, IMAGES, 0), "give the result of make_logits_fn"),
    ],
)
def test_what_does_not_go_together(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_perturbations_alone_are_masked_without_attention():
    config = read_config("configs/cifar10_resnet18.py:ard_prm", {})
    objective = config.build_objective(create("mlp", num_classes=3))
    assert (objective.ard, objective.prm, WRAPPERS["ard_prm"]) == (False, True, type(objective))
    assert patch_mask(KEY, 2, IMAGES, 4).sum() == 2 * 16
