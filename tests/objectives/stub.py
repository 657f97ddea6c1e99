"""A linear model small enough to compute by hand, and one batch for it; it logs every forward."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.attacks import pgd
from piat_jax.core.bound import bind
from piat_jax.core.types import AdversarialBatch, Batch, Context, Variables

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.uniform(0.2, 0.4, size=(4, 1, 2, 1)), jnp.float32)
ADVERSARIAL = IMAGES + 0.5
LABELS = jnp.array([0, 1, 2, 0])
CLEAN = Batch(IMAGES, LABELS, jnp.arange(4))
BATCH = AdversarialBatch(CLEAN, ADVERSARIAL)
RATE, DECAY = 0.01, 0.5  # of the optimizer's trial step
CONTEXT = Context(
    jax.random.key(0),
    jnp.int32(0),
    jnp.int32(0),
    jnp.int32(10),
    trial_step=jax.tree_util.Partial(
        lambda gradient, weights, params: jax.tree.map(
            lambda g, at, w: w - RATE * (g + DECAY * at), gradient, weights, params
        )
    ),
)
PARAMS = {"w": jnp.asarray(12 * RNG.normal(size=(2, 3)), jnp.float32), "scale": jnp.array([1.5, 0.7])}
STATE = {"mean": jnp.array([0.1, 0.6])}
LOG = []


@dataclasses.dataclass(frozen=True)
class Stub:
    """A linear model on inputs centred by a running mean; it logs each forward: its mode and the kind of images."""

    def init(self, key, images):
        return Variables(PARAMS, STATE)

    def apply(self, params, model_state, images, *, train, key=None):
        x = images.reshape(len(images), -1)
        # Crafting stays within 0.1 of the clean images, which lie below 0.4; the adversarial ones lie above 0.7.
        tag = jnp.where(jnp.mean(x) > 0.68, ord("a"), jnp.where(jnp.mean(x) > 0.45, ord("m"), ord("c")))
        LOG.append((train, tag))
        mean = x.mean(0) if train else model_state["mean"]
        logits = ((x - mean[None]) * params["scale"][None]) @ params["w"]
        return logits, {"mean": 0.9 * model_state["mean"] + 0.1 * mean} if train else model_state


MODEL = Stub()
ATTACK = bind(pgd, eps=0.1, step_size=0.05, steps=3)


def make(method, **options):
    """A method on the stub; `AWP(make(TRADES))` wraps it."""
    return method(**{"model": MODEL, "attack": ATTACK, **options})


def perturb(objective, params=PARAMS, state=STATE, batch=CLEAN, context=CONTEXT):
    return objective.perturb(Variables(params, state), state_of(objective), batch, context)


def state_of(objective):
    """The method's own state before the first step."""
    return objective.init(Variables(PARAMS, STATE), IMAGES[:1], key=jax.random.key(7))


def value(objective, params=PARAMS, batch=BATCH, state=None, context=CONTEXT):
    return objective.loss(params, STATE, state_of(objective) if state is None else state, batch, context)


def train_forwards(call, *arguments):
    """What kinds of images a call forwards in training mode, in order: "ca" is clean, then adversarial."""
    LOG.clear()
    call(*arguments)
    return "".join(chr(tag) for train, tag in LOG if train)


gradient = jax.jit(jax.grad(value, argnums=1, has_aux=True))


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logits(images):
    x = np.asarray(images, np.float64).reshape(4, -1)
    return (x - x.mean(0)) * np.asarray(PARAMS["scale"]) @ np.asarray(PARAMS["w"], np.float64)


OTHER = jnp.asarray(RNG.uniform(0.7, 0.9, size=(4, 1, 2, 1)), jnp.float32)
Z, ZA = logits(IMAGES), logits(OTHER)
CURVED = AdversarialBatch(CLEAN, OTHER)
P, PA = softmax(Z), softmax(ZA)
ROWS, Y = np.arange(4), np.asarray(LABELS)
CE, CE_CLEAN = -np.log(PA[ROWS, Y]).mean(), -np.log(P[ROWS, Y]).mean()
PAIRING = ((Z - ZA) ** 2).sum(1).mean()
KL = (P * np.log(P / PA)).sum(1).mean()


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


NORMALIZED = ((1 - P[ROWS, Y]) * ((unit(Z) - unit(ZA)) ** 2).sum(1)).mean()
