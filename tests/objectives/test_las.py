import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from piat_jax.attacks import fgsm, pgd
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.core.rng import example_keys, named_key
from piat_jax.core.types import Aux, Batch, Variables
from piat_jax.objectives import PGDAT, TRADES
from piat_jax.objectives.awp import AWP
from piat_jax.objectives.las import LAS, Drawn, sample
from piat_jax.training.step import init_state, train_step
from tests.objectives.stub import (
    CE_CLEAN,
    CLEAN,
    CONTEXT,
    CURVED,
    DECAY,
    IMAGES,
    LABELS,
    OTHER,
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
AUX = Aux(STATE, {})
STAYS = jax.tree_util.Partial(lambda gradient, weights, params: params)  # a trial step that does nothing
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
    return objective.hand(CURVED, Drawn(actions, **extra))


def chosen(batch):
    """The actions `[B, heads]` that a batch was attacked under."""
    return np.asarray(las().handed(batch).actions)


def test_one_choice_of_each_is_the_method_inside():
    inner = make(PGDAT)
    ours = las(inner, eps_levels=(8.0,), step_counts=(3,), step_levels=(4.0,))
    np.testing.assert_allclose(run(ours).images, run(inner).images, atol=1e-6)
    np.testing.assert_allclose(value(ours)[0], value(inner)[0])


def test_each_example_is_attacked_as_drawn():
    batch = run(las())
    actions = chosen(batch)
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
    shuffled = chosen(run(las(), batch=Batch(IMAGES[order], LABELS[order], order)))
    np.testing.assert_array_equal(shuffled, chosen(run(las()))[order])
    keys = [chosen(run(las(), context=CONTEXT._replace(key=jax.random.key(s)))) for s in (0, 1)]
    assert np.any(keys[0] != keys[1])


def test_beta_multiplies_the_adversarial_part():
    trades, betas = make(TRADES, beta=1.0, clean_forwards=1), np.array([5.0, 7.0, 9.0, 5.0])
    ours = las(trades, betas=(5.0, 7.0, 9.0))
    expected = CE_CLEAN + (betas * (P * np.log(P / PA)).sum(1)).mean()
    np.testing.assert_allclose(value(ours, batch=drawn(ours, beta=jnp.asarray(betas)))[0], expected, rtol=1e-4)
    batch = run(ours)
    np.testing.assert_array_equal(ours.handed(batch).beta, np.array([5.0, 7.0, 9.0])[chosen(batch)[:, 3]])
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


def cross_entropy(logits, labels=LABELS):
    return -np.log(softmax(logits)[np.arange(4), np.asarray(labels)])


def linear(images, mean, params=PARAMS):
    x = np.asarray(images, np.float64).reshape(4, -1) - np.asarray(mean)
    return x * np.asarray(params["scale"]) @ np.asarray(params["w"], np.float64)


def rewarded(objective, **extra):
    context = CONTEXT._replace(trial_step=STAYS)
    return jax.jit(objective.reward)(VARIABLES, state_of(objective), drawn(objective, **extra), context)


def test_reward():
    # R1 is the plain loss of the adversarial images in evaluation mode, whatever the method smooths.
    plain = cross_entropy(linear(OTHER, STATE["mean"])).mean()
    smooth = make(PGDAT, label_smoothing=0.3)
    none = {"robust_reward": 0.0, "clean_reward": 0.0}
    reward, statistics = rewarded(las(smooth, loss_limit=50.0, **none))
    np.testing.assert_allclose(reward, plain, rtol=1e-5)
    np.testing.assert_array_equal(statistics["mean"], STATE["mean"])
    assert plain > 1.5
    np.testing.assert_allclose(rewarded(las(loss_limit=1.5, **none))[0], 1.5)
    # The rest is of the copy, whose statistics have seen the adversarial images, in evaluation mode.
    mean = 0.9 * np.asarray(STATE["mean"]) + 0.1 * np.asarray(OTHER).reshape(4, -1).mean(0)
    clean = np.mean(linear(IMAGES, mean).argmax(1) == np.asarray(LABELS))
    assert 0 < clean < 1

    def rest(**options):
        return rewarded(las(loss_limit=0.0, **options))[0]

    np.testing.assert_allclose(rest(robust_reward=0.0, clean_reward=3.0), 3 * clean, rtol=1e-6)
    # No room to attack in, and more room than any of these examples withstands.
    np.testing.assert_allclose(rest(eps=0.0, robust_reward=2.0, clean_reward=0.0), 2 * clean, rtol=1e-6)
    np.testing.assert_allclose(rest(eps=1.0, robust_reward=2.0, clean_reward=0.0), 0.0)


def test_reward_of_trades_has_its_loss_in_training_mode_and_leaves_its_statistics():
    betas = np.array([5.0, 7.0, 9.0, 5.0])
    trades = make(TRADES, beta=1.0, clean_forwards=1)
    objective = las(trades, betas=(5.0, 7.0, 9.0), loss_limit=500.0, robust_reward=0.0, clean_reward=0.0)
    reward, statistics = rewarded(objective, beta=jnp.asarray(betas))
    np.testing.assert_allclose(reward, CE_CLEAN + (betas * (P * np.log(P / PA)).sum(1)).mean(), rtol=1e-4)
    mean = np.asarray(STATE["mean"])
    for images in (IMAGES, OTHER):
        mean = 0.9 * mean + 0.1 * np.asarray(images).reshape(4, -1).mean(0)
    np.testing.assert_allclose(statistics["mean"], mean, rtol=1e-5)
    # They go on from there: the model's own forwards follow in the loss.
    learns, waits = (run(dataclasses.replace(objective, interval=n)).model_state for n in (1, 2))
    np.testing.assert_array_equal(waits["mean"], STATE["mean"])
    assert np.all(np.abs(learns["mean"] - waits["mean"]) > 1e-3)


def ascended(x, params, mean, eps, size, steps):
    """PGD without a random start, an example at a time, on the stub in evaluation mode."""
    w, scale = (np.asarray(params[name], np.float64) for name in ("w", "scale"))
    found = np.array(x)
    for i, label in enumerate(np.asarray(LABELS)):
        for _ in range(steps[i]):
            p = softmax(((found[i] - mean) * scale @ w)[None])[0]
            found[i] += size[i] * np.sign(scale * (w @ (p - np.eye(3)[label])))
            found[i] = np.clip(np.clip(found[i], x[i] - eps[i], x[i] + eps[i]), 0, 1)
    return found


def test_the_strategys_step_by_hand():
    """In the order of the code, in NumPy but for the draws and the attack on the copy."""
    attack = bind(make(PGDAT).attack, start="none")
    objective = las(
        make(PGDAT, label_smoothing=0.3, attack=attack),
        **{"interval": 3, "momentum": 0.9, "weight_decay": 0.1, "learning_rate": 5.0, "max_norm": 0.3},
    )
    state = state_of(objective)
    before = np.random.default_rng(5).normal(size=state.own.params["w"].shape)
    # Far from those of this batch, so that it shows which statistics are used.
    own = state.own._replace(momentum={"w": jnp.asarray(before, jnp.float32)}, model_state={"mean": jnp.full(2, 3.0)})
    rate = 1.0  # at which the step changes what the copy classifies
    step = jax.tree_util.Partial(
        lambda gradient, weights, params: jax.tree.map(
            lambda g, at, w: w - rate * (g + DECAY * at), gradient, weights, params
        )
    )
    centre = np.asarray(IMAGES).reshape(4, -1).mean(0)  # so that it tells these images apart
    variables = Variables(PARAMS, {"mean": jnp.asarray(centre)})
    context = CONTEXT._replace(step=jnp.int32(2), trial_step=step)
    perturb_once = jax.jit(objective.perturb)
    batch = perturb_once(variables, state._replace(own=own), CLEAN, context)

    # It draws anew, in training mode.
    x = np.asarray(IMAGES, np.float64).reshape(4, -1)
    policy = np.asarray(own.params["w"], np.float64)
    centred = x - x.mean(0)
    heads = np.split(centred @ policy, [3, 6], axis=1)
    key = named_key(context.key, "las policy")
    drawn_heads = [jnp.asarray(head, jnp.float32) for head in heads]
    actions = np.asarray(sample(drawn_heads, example_keys(named_key(key, "las"), CLEAN.indices)))
    eps, steps, size = (np.asarray(HEADS[name])[actions[:, i]] for i, name in enumerate(HEADS))
    adversarial = ascended(x, PARAMS, np.asarray(centre), eps * 0.1 / 8, size * 0.1 / 8, steps)
    loss = cross_entropy(linear(adversarial, centre)).mean()

    # A step of the smoothed loss, in training mode, without momentum.
    w, scale = (np.asarray(PARAMS[name], np.float64) for name in ("w", "scale"))
    seen = adversarial - adversarial.mean(0)
    target = np.full((4, 3), 0.15)
    target[np.arange(4), np.asarray(LABELS)] = 0.7
    wrong = (softmax(seen * scale @ w) - target) / 4
    copy = {
        "w": w - rate * ((seen * scale).T @ wrong + DECAY * w),
        "scale": scale - rate * ((seen * (wrong @ w.T)).sum(0) + DECAY * scale),
    }
    mean = 0.9 * np.asarray(centre) + 0.1 * adversarial.mean(0)

    # Attacked in training mode, judged in evaluation mode.
    def training_mode(images):
        rows = images.reshape(len(images), -1)
        return (rows - rows.mean(0)[None]) * jnp.asarray(copy["scale"])[None] @ jnp.asarray(copy["w"], jnp.float32)

    options = {"eps": 0.1, "step_size": 0.05, "restarts": 2, "indices": CLEAN.indices}
    broken = pgd(training_mode, IMAGES, LABELS, key=named_key(key, "las reward"), **options)
    robust, clean = (np.mean(linear(z, mean, copy).argmax(1) == np.asarray(LABELS)) for z in (broken, IMAGES))
    reward = min(loss, 10.0) + 4 * robust + 2 * clean
    assert clean != np.mean(linear(IMAGES, mean).argmax(1) == np.asarray(LABELS))  # as it would be without the step

    gradient, begin = np.zeros_like(policy), 0
    for head, n in enumerate((3, 3, 2)):
        p = softmax(heads[head])
        gradient[:, begin : begin + n] = reward * centred.T @ (p - np.eye(n)[actions[:, head]]) / 4
        begin += n
    gradient *= min(1.0, 0.3 / (np.linalg.norm(gradient) + 1e-6))
    momentum = 0.9 * before + gradient + 0.1 * policy
    new = objective.handed(batch).own
    np.testing.assert_allclose(new.momentum["w"], momentum, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(new.params["w"], policy - 5.0 * momentum, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(new.model_state["mean"], 0.5 * 3.0 + 0.5 * x.mean(0), rtol=1e-5)

    # It chooses for the model only then, in evaluation mode; afterwards it is kept.
    heads = np.split((x - np.asarray(new.model_state["mean"])) @ np.asarray(new.params["w"]), [3, 6], axis=1)
    keys = example_keys(named_key(context.key, "las"), CLEAN.indices)
    np.testing.assert_array_equal(chosen(batch), sample([jnp.asarray(head) for head in heads], keys))
    unlearned = np.split((x - np.asarray(new.model_state["mean"])) @ policy, [3, 6], axis=1)
    assert np.any(sample([jnp.asarray(head) for head in unlearned], keys) != chosen(batch))
    kept = objective.after_step(variables, state._replace(own=own), batch, AUX, context).own
    jax.tree.map(np.testing.assert_array_equal, kept, new)


def test_the_reward_scales_the_strategys_gradient():
    """Unclipped, so that R is seen."""
    objective = las(max_norm=1e6)
    own, batch = state_of(objective).own, drawn(objective)
    one, three = (jax.grad(objective.policy_loss, has_aux=True)(own.params, own, batch, r)[0]["w"] for r in (1.0, 3.0))
    np.testing.assert_allclose(three, 3 * one, rtol=1e-5)


def test_it_learns_on_the_last_of_each_interval_only_and_leaves_the_model_alone():
    objective = las()  # an interval of 20
    state, traces = state_of(objective), []

    @jax.jit
    def strategy(step):
        traces.append(step)
        batch = objective.perturb(VARIABLES, state, CLEAN, CONTEXT._replace(step=step))
        return objective.handed(batch).own.params["w"]

    moved = [not np.array_equal(strategy(jnp.int32(s)), state.own.params["w"]) for s in (0, 18, 19, 20, 39)]
    assert moved == [False, False, True, False, True]  # steps 20 and 40, counted from 1
    assert len(traces) == 1
    batch = run(objective)
    with jax.disable_jit():
        assert train_forwards(perturb, objective) == ""
    assert batch.model_state is None
    assert train_forwards(objective.after_step, VARIABLES, state, batch, AUX, CONTEXT) == ""


def test_without_an_optimizer_there_is_no_reward():
    with pytest.raises(InputError, match=r"set context.trial_step, as train_step does"):
        perturb(las(), context=CONTEXT._replace(trial_step=None))


def test_training_steps_around_weight_perturbation():
    objective, optimizer = las(AWP(make(PGDAT)), clip=True, interval=1, learning_rate=0.1), optax.sgd(0.01)
    state = init_state(objective, optimizer, IMAGES, key=jax.random.key(0))
    step = jax.jit(lambda state: train_step(objective, optimizer, state, CLEAN, key=jax.random.key(1), epochs=3)[0])
    new = step(step(state))
    before, after = (np.asarray(s.objective_state.own.params["w"]) for s in (state, new))
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
