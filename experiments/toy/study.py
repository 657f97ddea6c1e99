"""The toy study's training, over all seeds at once, and what is measured of its curves."""

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from piat_jax import losses
from piat_jax.attacks import pgd
from piat_jax.averaging.interpolation import PAPER_WEIGHT, interpolate
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError, check_at_least, check_range
from piat_jax.core.cores import count_cores
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.rng import example_keys, named_key
from piat_jax.core.types import Array, Batch, Model, Objective, PyTree, TrainState, Variables
from piat_jax.data.batching import check_batch_size, epoch_permutation, steps_per_epoch, take_batch
from piat_jax.data.circles import Circles
from piat_jax.models import create
from piat_jax.objectives import ALP, NMSE, PGDAT
from piat_jax.training import init_state, sgd, train_step

METHODS = {"pgd_at": "PGD-AT", "piat": "PIAT", "alp": "ALP", "nmse": "NMSE"}
EXTENT = 1.75  # half the side of the square that boundaries are compared on; more than 99.99 % of the points lie in it


def option(default: Any, text: str) -> Any:
    """A field of Settings with what its flag's help says: where the default comes from."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every constant of the study; each one's help names its source, or the reason where the paper is silent."""

    seeds: int = option(20, "Seeds; each has its own data, weights and order, shared by the four methods.")
    epochs: int = option(50, "The paper's.")
    warmup: int = option(10, "Epochs that oscillation leaves out; not stated, by then every method has learnt.")
    train_points: int = option(
        1000, "Of both classes; not stated, so that the paper's 2-D plot is neither bare nor full."
    )
    test_points: int = option(1000, "Not stated; as many as there are to train on.")
    batch_size: int = option(128, "Not stated for the toy; that of the paper's lineage on images.")
    hidden: int = option(100, "Units of the one hidden layer; the width is not stated, this is scikit-learn's.")
    lr: float = option(0.5, "The paper's, constant.")
    momentum: float = option(0.9, "The paper's.")
    weight_decay: float = option(0.0, "Not stated.")
    eps: float = option(0.1, "The paper's radius, L-inf, in the units of the data.")
    step_size: float = option(0.05, "The paper's.")
    steps: int = option(5, "The paper's, in training.")
    test_step_size: float = option(0.025, "Not stated; a quarter of eps, as 2/255 of 8/255 in the paper's Section V.")
    test_steps: int = option(20, "Not stated for the toy; PGD-20 as in the paper's Section V.")
    alp_weight: float = option(0.5, "Of ALP's pairing; not stated, the original's.")
    mu: float = option(5.0, "Of NMSE; that of the paper's Section V.")
    inner: float = option(0.35, "The paper's radius of class 1.")
    outer: float = option(1.0, "The paper's radius of class 2.")
    sigma: float = option(0.2, "The paper's noise, read as a standard deviation.")
    low: float = option(0.80, "The paper's lower end of x3.")
    high: float = option(0.85, "The paper's upper end of x3.")

    def __post_init__(self) -> None:
        for name, least in (("seeds", 2), ("epochs", 3), ("warmup", 0), ("hidden", 1), ("steps", 1), ("test_steps", 1)):
            check_at_least(name, getattr(self, name), least)
        for name in ("lr", "momentum", "weight_decay", "step_size", "test_step_size", "alp_weight", "mu"):
            check_at_least(name, getattr(self, name), 0)
        check_range("eps", self.eps, 0, 1, open_low=True)
        if self.warmup > self.epochs - 3:
            raise InputError(f"warmup={self.warmup} leaves fewer than 3 of epochs={self.epochs}; give a smaller warmup")
        for name in ("train_points", "test_points"):
            points = getattr(self, name)
            if points < 2 or points % 2:
                raise InputError(f"{name}={points} must be even and at least 2: half belong to each class")
        check_batch_size(self.batch_size, self.train_points)
        self.circles  # noqa: B018, refuses what it cannot draw

    @property
    def circles(self) -> Circles:
        """Where the points come from."""
        return Circles(self.inner, self.outer, self.sigma, self.low, self.high)

    @property
    def model(self) -> Model:
        """One hidden layer with ReLU, two logits."""
        return create("mlp", num_classes=2, hidden=(self.hidden,))

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """SGD with a constant learning rate."""
        return sgd(self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def objective(self, method: str) -> Objective:
        """The method's loss; PIAT trains with that of PGD-AT."""
        attack = bind(pgd, eps=self.eps, step_size=self.step_size, steps=self.steps, box=None)
        if method == "alp":
            return ALP(model=self.model, attack=attack, weight=self.alp_weight)
        if method == "nmse":
            return NMSE(model=self.model, attack=attack, mu=self.mu)
        return PGDAT(model=self.model, attack=attack)

    @property
    def passes(self) -> int:
        """How many points go through a network, in all methods and seeds; an attack's gradient counts as one."""
        steps = self.train_points // self.batch_size
        train = steps * self.batch_size * (4 * self.steps + 6)  # ALP and NMSE forward the clean batch too
        test = (self.train_points + self.test_points) * 4 * (self.test_steps + 2)
        return self.seeds * self.epochs * (train + test)


class Scores(NamedTuple):
    """After an epoch: shares in [0, 1]."""

    train_clean: Any
    train_robust: Any
    test_clean: Any
    test_robust: Any
    boundary_change: Any  # of the square's area whose class the epoch changed


class History(NamedTuple):
    """One method's runs: leading axes are seed and epoch."""

    scores: Scores  # [S, E] each
    params: PyTree  # [S, E + 1, ...], from the initial weights on


class Start(NamedTuple):
    """What all methods share for a seed."""

    train: tuple[Array, Array]  # points [N, 1, 1, 3] and labels [N]
    test: tuple[Array, Array]
    orders: Array  # [E, N] int32, the order of the training points in each epoch
    state: TrainState


def train_method(method: str, settings: Settings) -> History:
    """All seeds of a method; equal seeds have equal data, initial weights and order of batches in every method.

    One compiled run a seed, as many at once as there are cores: on two of them 2.7 times as fast as one program with
    `jax.vmap` over seeds, and 1.8 times as fast as with `jax.lax.map`.
    """
    objective, piat = settings.objective(method), jnp.asarray(method == "piat")

    def run(seed: int) -> History:
        key = jax.random.key(seed)
        start = prepare(key, settings=settings)
        params = train(key, start, objective, piat, settings=settings)
        return jax.device_get(History(evaluate(key, start, params, settings=settings), params))

    with ThreadPoolExecutor(count_cores()) as pool:
        first = run(0)  # first, so that nothing is compiled twice
        runs = [first, *pool.map(run, range(1, settings.seeds))]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *runs)


@functools.partial(jax.jit, static_argnames="settings")
def prepare(key: Array, *, settings: Settings) -> Start:
    """The start of the seed of this key."""
    train = settings.circles.draw(named_key(key, "train"), settings.train_points)
    test = settings.circles.draw(named_key(key, "test"), settings.test_points)
    keys = example_keys(named_key(key, "shuffle"), jnp.arange(1, settings.epochs + 1))
    orders = jax.vmap(lambda own: epoch_permutation(own, settings.train_points))(keys)
    # No method has its own state, so all start from this.
    state = init_state(settings.objective("pgd_at"), settings.optimizer, train[0][:1], key=key)
    return Start(train, test, orders, state)


@functools.partial(jax.jit, static_argnames="settings")
def train(key: Array, start: Start, objective: Objective, piat: Array, *, settings: Settings) -> PyTree:
    """The weights before the first epoch and after each, `[E + 1, ...]`; with `piat` they are interpolated.

    Where it is false, the past weighs 0, which leaves the weights as they are to the last bit: both are one program.
    """
    steps = steps_per_epoch(settings.train_points, settings.batch_size)

    def epoch(state: TrainState, order: Array) -> tuple[TrainState, PyTree]:
        def step(state: TrainState, index: Array) -> tuple[TrainState, None]:
            batch = Batch(*take_batch(*start.train, order, index, settings.batch_size))
            return train_step(objective, settings.optimizer, state, batch, key=key, epochs=settings.epochs)[0], None

        previous = state.params
        state, _ = jax.lax.scan(step, state, jnp.arange(steps))
        number = state.epoch + 1
        params = interpolate(previous, state.params, jnp.where(piat, PAPER_WEIGHT(number), 0.0))
        return dataclasses.replace(state, epoch=number, params=params), params

    _, params = jax.lax.scan(epoch, start.state, start.orders)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start.state.params, params)


@functools.partial(jax.jit, static_argnames="settings")
def evaluate(key: Array, start: Start, params: PyTree, *, settings: Settings) -> Scores:
    """What the weights `[E + 1, ...]` of `train` score after each epoch, `[E]` each."""
    points, labels = (jnp.concatenate(both) for both in zip(start.train, start.test))
    attack = bind(pgd, eps=settings.eps, step_size=settings.test_step_size, steps=settings.test_steps, box=None)

    def score(params: PyTree) -> tuple[Array, Array, Array]:
        logits_fn = make_logits_fn(settings.model, Variables(params, {}))
        # The same starts after every epoch, so that only the network changes.
        moved = attack(logits_fn, points, labels, key=named_key(key, "test_attack"))
        clean, robust = (losses.correct(logits_fn(x), labels) for x in (points, moved))
        return clean, robust, margins(settings, params, 71) > 0

    clean, robust, classes = jax.lax.map(score, params)
    change = jnp.mean(classes[1:] != classes[:-1], axis=(1, 2))
    parts = (slice(settings.train_points), slice(settings.train_points, None))
    shares = [jnp.mean(right[1:, part], axis=1) for part in parts for right in (clean, robust)]
    return Scores(*shares, boundary_change=change)


def margins(settings: Settings, params: PyTree, side: int) -> Array:
    """Class 1's logit minus class 0's on the square, `[side, side]`, y before x, at the middle of x3's range."""
    x = jnp.linspace(-EXTENT, EXTENT, side)
    plane = jnp.stack([*jnp.meshgrid(x, x), jnp.full((side, side), (settings.low + settings.high) / 2)], axis=-1)
    logits, _ = settings.model.apply(params, {}, plane.reshape(-1, 1, 1, 3), train=False)
    return (logits[:, 1] - logits[:, 0]).reshape(side, side)


class Measures(NamedTuple):
    """The measures of a run, per seed, in percent or percentage points."""

    deviation: np.ndarray  # sample standard deviation of the robust accuracy over the epochs after warm-up
    drop: np.ndarray  # the largest loss of robust accuracy from one of these epochs to the next, at least 0
    final_robust: np.ndarray
    best_robust: np.ndarray
    mean_robust: np.ndarray  # over the epochs after warm-up
    final_clean: np.ndarray
    mean_clean: np.ndarray
    change_at_drop: np.ndarray  # boundary_change of the epoch with the largest drop
    mean_change: np.ndarray  # boundary_change over the epochs after warm-up


def measure(scores: Scores, warmup: int) -> Measures:
    """The measures of curves `[S, E]`; epoch n stands in column n - 1.

    >>> robust = np.array([[0.1, 0.8, 0.6, 0.7]])
    >>> curves = Scores(*[robust] * 4, boundary_change=np.array([[0.5, 0.4, 0.3, 0.1]]))
    >>> result = measure(curves, warmup=1)
    >>> [round(value.item(), 3) for value in (result.deviation, result.drop, result.change_at_drop)]
    [10.0, 20.0, 30.0]
    """
    robust, clean, change = (
        100 * np.asarray(x) for x in (scores.test_robust, scores.test_clean, scores.boundary_change)
    )
    late, late_clean, late_change = robust[:, warmup:], clean[:, warmup:], change[:, warmup:]
    at = drop_epochs(scores, warmup) - 1
    rows = np.arange(len(robust))
    return Measures(
        deviation=late.std(axis=1, ddof=1),
        drop=np.maximum(robust[rows, at - 1] - robust[rows, at], 0),
        final_robust=robust[:, -1],
        best_robust=robust.max(axis=1),
        mean_robust=late.mean(axis=1),
        final_clean=clean[:, -1],
        mean_clean=late_clean.mean(axis=1),
        change_at_drop=change[rows, at],
        mean_change=late_change.mean(axis=1),
    )


def drop_epochs(scores: Scores, warmup: int) -> np.ndarray:
    """The epoch (1-based) of each seed after which robust accuracy had fallen most, both ends after warm-up."""
    return np.argmin(np.diff(np.asarray(scores.test_robust)[:, warmup:], axis=1), axis=1) + warmup + 2
