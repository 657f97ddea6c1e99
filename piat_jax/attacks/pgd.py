"""Projected gradient ascent and its relatives: FGSM, PGD, MI-FGSM and the margin-loss attack the field calls CW.

Each attack is a pure function of `(logits_fn, images, labels)` and a key, in pixel space; `bind` (core/bound.py) fixes
its hyper-parameters. Jit the function that calls the attack. `eps` and `step_size` may be traced, scalars or one value
per example, so a sweep over them compiles once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.attacks.ascent import Ascent, Best, Vary
from piat_jax.attacks.registry import attack
from piat_jax.core.bound import Bound, bind
from piat_jax.core.checks import (
    InputError,
    check_at_least,
    check_box,
    check_choice,
    check_count,
    check_images,
    check_key,
    check_radius,
    check_range,
)
from piat_jax.core.network_checks import check_network
from piat_jax.core.norms import L2_RULES, Box, Radius, cap_radius, divide, finite_entries, norm_name
from piat_jax.core.norms import norm as length
from piat_jax.core.renamed import warn
from piat_jax.core.rng import example_keys, fold_in
from piat_jax.core.types import Array, Attack, LogitsFn, LossFn
from piat_jax.programs.loops import fori_loop

STARTS = ("uniform", "normal", "none")
KEEPS = ("last", "best")


class Counted(NamedTuple):
    """The result of `pgd_counted`."""

    images: Array  # [B, H, W, C], as `pgd` returns them
    correct: Array  # [B] int32, the number of iterates, before a step, that were not a success
    iterates: Array  # [B] int32, the total number of these iterates


@attack(
    "fgsm",
    summary="One step of the full radius along the sign of the gradient.",
    paper="Goodfellow et al. (2015), arXiv:1412.6572",
)
def fgsm(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    key: Array | None = None,
    indices: Array | None = None,
    targets: Array | None = None,
    eps: Radius = 8 / 255,
    norm: str = "linf",
    loss: LossFn = losses.cross_entropy,
    box: Box = (0.0, 1.0),
) -> Array:
    """FGSM: `x + eps * sign(grad loss)`, one full step from `x`; arguments as in `pgd`, no randomness.

    Source: Goodfellow et al. (2015), arXiv:1412.6572; PIAT paper, Eq. 1.

    >>> logits_fn = lambda x: jnp.concatenate([x.reshape(1, 1), jnp.zeros((1, 1))], axis=1)
    >>> fgsm(logits_fn, jnp.full((1, 1, 1, 1), 0.5), jnp.array([0]), eps=0.25).ravel().tolist()
    [0.25]
    """
    del key, indices  # part of every attack's signature, but FGSM draws nothing
    norm = _check(logits_fn, images, eps, eps, 1, norm, "none", 1, "last", box)
    ascent = Ascent(logits_fn, images, labels, eps, eps, norm, loss, box, targets=targets)
    return ascent.result(jax.lax.stop_gradient(ascent.run(ascent.images, 1)))


@attack(
    "pgd",
    summary="Steps along the sign of the gradient, each projected onto ball and box, from a random start.",
    paper="Madry et al. (2018), arXiv:1706.06083",
)
def pgd(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    key: Array,
    indices: Array | None = None,
    targets: Array | None = None,
    eps: Radius = 8 / 255,
    step_size: Radius = 2 / 255,
    steps: int = 10,
    norm: str = "linf",
    start: str = "uniform",
    restarts: int = 1,
    keep: str = "last",
    loss: LossFn = losses.cross_entropy,
    box: Box = (0.0, 1.0),
    start_eps: Radius | None = None,
    step_budget: Array | int | None = None,
    noise: Array | float = 0.0,
    patience: Array | int | None = None,
    count_correct: bool = False,
    vary: Vary | None = None,
    l2_rule: str = "exact",
    sparsity: Array | float = 0.01,
) -> Array:
    """PGD: `x <- box(ball(x + step_size * u))`, `u` the steepest ascent direction of the loss, `steps` times.

    `u = sign(g)` under "linf" and `g / |g|_2` under "l2", with projection onto the ball first, then the box. Under "l1"
    u has the signs of the largest entries only (SLIDE), and the projection is onto the intersection of ball and box.

    Args:
      logits_fn: images to logits `[B, K]`; closes over weights, normalisation and BatchNorm mode.
      images: `[B, H, W, C]` floats in the box. The attack computes in float32, or in float64 for float64 images.
      labels: `[B]` integers, or `[B, K]` probabilities for losses that take these; the second argument of `loss`.
        Success means a class other than the (most probable) label.
      key: typed key; example i draws from `fold_in(key, indices[i])`, independent of the rest of the batch.
      indices: `[B]` each example's index in its data set; default `0..B-1`.
      targets: `[B]` target classes. Success then means the target class, for `keep`, `restarts` and `patience` too. The
        attack maximises `-loss(logits, targets)`, or `losses.margin_to_target` for `losses.margin`, and does not use
        `labels`. Default: untargeted.
      eps: radius in the pixels' unit (8/255 for pixels in [0, 1]), a scalar or `[B]`. A ball that holds the whole box
        is no constraint.
      step_size: in the same unit, a scalar or `[B]`.
      steps: gradient steps, at least 1.
      norm: "linf", "l2", or "l1", whose radius is the sum of all changes and which needs the box (0, 1).
      start: "uniform" in the ball, then clipped to the box (Madry et al.); "normal", `x + 0.001 N(0, 1)`, neither
        scaled by eps nor clipped (TRADES, MART: the KL has no gradient at `x`); "none", `x` (the PIAT paper's
        Algorithm 1 as printed).
      restarts: independent runs, of which the best is returned, by the rule of `keep="best"`.
      keep: "last" returns the last iterate, "best" the best one: success comes first, then the higher loss. "best"
        costs one more forward per run.
      loss: `(logits, labels) -> [B]`, maximised.
      box: bounds of valid pixels, or None.
      start_eps: radius of the "uniform" start if it differs from `eps` (LAS-AT, ECAS-AWP); the first step projects onto
        the ball of `eps`. The other starts have no radius.
      step_budget: how many steps each example takes, 1 to `steps`, `[B]` or a scalar (LAS-AT).
      noise: omega, a scalar or `[B]`: each step adds `omega N(0, 1)` before projecting (FAT). With the plain number 0
        nothing is drawn.
      patience: FAT's early stop, tau, a scalar or `[B]`. Each misclassified iterate uses up one of tau and steps on; if
        tau is used up, the iterate is the result. Correct iterates step on at no cost. The start is projected onto ball
        and box, because it may be the result. With `steps` or more nothing stops early. Needs `restarts=1`,
        `keep="last"`.
      count_correct: deprecated, works for one more release: returns the result of `pgd_counted`.
      vary: `(logits_fn, images, x, index) -> (logits_fn, x)`, called before step `index`, 0-based. It returns the model
        for the step's gradient, and the point at which the gradient is computed and the step starts, which must be in
        the ball (A&P). Examples that take no step do not move.
      l2_rule: how to take L2 steps, one of `L2_RULES` (core/norms.py). "exact" is `g / |g|`, the ball before the box,
        and a start of uniform length in the ball. "trades" and "awp" add 1e-8 and 1e-10 to `|g|`. "advertorch" takes
        `|g|` as at least 1e-6 and the box before the ball; its uniform start is a uniform image in the box, projected
        onto the ball. Each training method defaults to its code's rule. No effect under "linf".
      sparsity: share of the pixels (times channels) that an L1 step changes, in (0, 1]: SLIDE's, 0.01 in its code.

    Returns:
      `[B, H, W, C]` in the dtype of the images, inside ball and box; no gradient flows through it.

    NaN entries of a gradient count as 0. Logits that are not finite do not count as success.

    Raises:
      InputError: an unknown choice, an argument out of range, or two that exclude each other.

    Source: Madry et al. (2018), arXiv:1706.06083; PIAT paper, Eq. 3 and Section V-A (K = 10, 8/255, 2/255). Early stop
    and noise: FAT, Zhang et al. (2020), arXiv:2002.11242; step budgets: LAS-AT, Jia et al. (2022), arXiv:2203.06616.
    L1: SLIDE, Tramer & Boneh (2019), arXiv:1904.13000, with Croce & Hein's (2021, arXiv:2103.01208) exact projection.

    >>> weights = jnp.array([1.0, -2.0])
    >>> logits_fn = lambda x: jnp.stack([x.reshape(-1, 2) @ weights, jnp.zeros(x.shape[0])], axis=1)
    >>> x = jnp.full((1, 1, 2, 1), 0.5)
    >>> pgd(logits_fn, x, jnp.array([0]), key=jax.random.key(0), eps=0.25, step_size=0.25).ravel().tolist()
    [0.25, 0.75]
    """
    options: dict[str, Any] = {"targets": targets, "eps": eps, "step_size": step_size, "steps": steps, "norm": norm}
    options |= {"start": start, "loss": loss, "box": box, "start_eps": start_eps, "step_budget": step_budget}
    options |= {"noise": noise, "vary": vary, "l2_rule": l2_rule, "sparsity": sparsity}
    if patience is not None or count_correct:
        if restarts > 1 or keep != "last":
            name = "count_correct" if patience is None else "patience"
            raise InputError(f"{name} follows one run to its end: restarts={restarts}, keep={keep!r} must be 1, 'last'")
        counted = pgd_counted(logits_fn, images, labels, key=key, indices=indices, patience=patience, **options)
        if count_correct:
            warn("pgd(count_correct=True)", "pgd_counted")
            return tuple(counted)  # type: ignore[return-value]
        return counted.images
    ascent, keys = _prepared(logits_fn, images, labels, key, indices, restarts=restarts, keep=keep, **options)
    if restarts == 1 and keep == "last":
        return ascent.result(jax.lax.stop_gradient(ascent.run(ascent.start(keys, start), steps, keys)))

    def restart(run: Any, best: Best) -> Best:
        # The first run equals that of `restarts=1`, so that more restarts are never worse.
        own = jnp.where(run == 0, keys, fold_in(keys, run))
        x = ascent.start(own, start)
        if keep == "best":
            return ascent.run_keeping_best(x, steps, own, best)
        return ascent.better(best, ascent.run(x, steps, own))

    shape = ascent.labels.shape
    first: Best = (ascent.images, jnp.full(shape, False), jnp.full(shape, -jnp.inf))
    return ascent.result(jax.lax.stop_gradient(fori_loop(0, restarts, restart, first)[0]))


def pgd_counted(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    key: Array,
    indices: Array | None = None,
    targets: Array | None = None,
    eps: Radius = 8 / 255,
    step_size: Radius = 2 / 255,
    steps: int = 10,
    norm: str = "linf",
    start: str = "uniform",
    loss: LossFn = losses.cross_entropy,
    box: Box = (0.0, 1.0),
    start_eps: Radius | None = None,
    step_budget: Array | int | None = None,
    noise: Array | float = 0.0,
    patience: Array | int | None = None,
    vary: Vary | None = None,
    l2_rule: str = "exact",
    sparsity: Array | float = 0.01,
) -> Counted:
    """`pgd`'s images, and the number of iterates, before a step, that were classified correctly.

    Args as in `pgd`, without restarts. Source: GAIRAT, Zhang et al. (2021), arXiv:2010.01736, whose kappa this counts.

    >>> logits_fn = lambda x: jnp.stack([x.reshape(-1), jnp.full(x.shape[0], 0.5)], axis=1)
    >>> x = jnp.array([0.875, 0.5625]).reshape(2, 1, 1, 1)
    >>> options = dict(eps=0.25, step_size=0.125, steps=2, start="none")
    >>> found = pgd_counted(logits_fn, x, jnp.array([0, 0]), key=jax.random.key(0), **options)
    >>> found.images.ravel().tolist(), found.correct.tolist(), found.iterates.tolist()
    ([0.625, 0.3125], [2, 1], [2, 2])
    """
    options: dict[str, Any] = {"targets": targets, "eps": eps, "step_size": step_size, "steps": steps, "norm": norm}
    options |= {"start": start, "loss": loss, "box": box, "start_eps": start_eps, "step_budget": step_budget}
    options |= {"noise": noise, "vary": vary, "l2_rule": l2_rule, "sparsity": sparsity}
    ascent, keys = _prepared(logits_fn, images, labels, key, indices, **options)
    x = ascent.start(keys, start)
    if patience is None:
        x, correct = ascent.run_watched(x, steps, keys, patience=steps)
    else:
        check_at_least("patience", patience, 0)
        x, correct = ascent.run_watched(ascent.inside(x), steps, keys, patience)
    taken = jnp.asarray(steps if step_budget is None else step_budget, jnp.int32)
    x = ascent.result(jax.lax.stop_gradient(x))
    return Counted(x, correct, jnp.broadcast_to(taken, ascent.labels.shape))


def counting(of: Attack) -> Bound:
    """`pgd_counted` with the options of a bound `pgd`.

    Raises:
      InputError: the attack is not `pgd`, or has several runs.

    >>> counting(bind(pgd, eps=0.1, restarts=1))
    pgd_counted(eps=0.1)
    """
    if not isinstance(of, Bound) or of.fn is not pgd:
        name = of.fn.__name__ if isinstance(of, Bound) else type(of).__name__
        raise InputError(f"attack {name} does not count iterates; give bind(pgd, ...)")
    bound = {**dict(of.static), **of.traced}
    runs = {"restarts": bound.pop("restarts", 1), "keep": bound.pop("keep", "last")}
    if runs != {"restarts": 1, "keep": "last"}:
        raise InputError(f"iterates are counted for one run to its end, but attack has {runs}; leave these out")
    return bind(pgd_counted, **bound)


@attack(
    "mi_fgsm",
    summary="Steps along the sign of an accumulated gradient, from the image itself.",
    paper="Dong et al. (2018), arXiv:1710.06081",
)
def mi_fgsm(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    key: Array | None = None,
    indices: Array | None = None,
    targets: Array | None = None,
    eps: Radius = 8 / 255,
    step_size: Radius | None = None,
    steps: int = 10,
    decay: float = 1.0,
    norm: str = "linf",
    loss: LossFn = losses.cross_entropy,
    box: Box = (0.0, 1.0),
) -> Array:
    """MI-FGSM: `m <- decay * m + g / |g|_1`, then a step of PGD along `m`; starts at `x`, no randomness.

    Args as in `pgd`; `decay` is the paper's mu and `step_size` defaults to `eps / steps`.

    Source: Dong et al. (2018), arXiv:1710.06081; PIAT paper, Eq. 2.

    >>> logits_fn = lambda x: jnp.concatenate([x.reshape(1, 1), jnp.zeros((1, 1))], axis=1)
    >>> mi_fgsm(logits_fn, jnp.full((1, 1, 1, 1), 0.5), jnp.array([0]), eps=0.25, steps=2).ravel().tolist()
    [0.25]
    """
    del key, indices
    norm = _check(logits_fn, images, eps, 0.0 if step_size is None else step_size, steps, norm, "none", 1, "last", box)
    check_at_least("decay", decay, 0)
    step_size = cap_radius(eps, images.shape[1:], norm, box) / steps if step_size is None else step_size
    ascent = Ascent(logits_fn, images, labels, eps, step_size, norm, loss, box, targets=targets)

    def move(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x, momentum = carry
        gradient = finite_entries(ascent.gradient(x)[0])
        momentum = decay * momentum + divide(gradient, length(gradient, "l1"))
        return ascent.move(x, momentum), momentum

    x, _ = fori_loop(0, steps, move, (ascent.images, jnp.zeros_like(ascent.images)))
    return ascent.result(jax.lax.stop_gradient(x))


cw = attack(
    "cw",
    summary="PGD on the margin between the label's logit and the highest other one.",
    paper="Carlini and Wagner (2017), arXiv:1608.04644, the loss only",
)(bind(pgd, loss=bind(losses.margin, kappa=50.0), steps=20))
"""CW as adversarial training evaluates it: 20 steps of `pgd` on `-max(z_y - max_{j != y} z_j + kappa, 0)`, kappa = 50.

Takes every option of `pgd`. It is not the optimiser of Carlini & Wagner (2017). MAIL, RAT, SEAT and the methods that
PIAT derives from call this attack CW.
"""


def _indices(images: Array, indices: Array | None) -> Array:
    return jnp.arange(images.shape[0]) if indices is None else indices


def _prepared(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    key: Array,
    indices: Array | None,
    *,
    eps: Radius,
    step_size: Radius,
    steps: int,
    norm: str,
    start: str,
    restarts: int = 1,
    keep: str = "last",
    loss: LossFn,
    box: Box,
    start_eps: Radius | None,
    l2_rule: str,
    **options: Any,
) -> tuple[Ascent, Array]:
    """Check the shared arguments; returns PGD's problem and a key for each example."""
    norm = _check(logits_fn, images, eps, step_size, steps, norm, start, restarts, keep, box)
    check_key(key)
    check_radius("start_eps", eps if start_eps is None else start_eps, norm, box)
    check_choice("l2_rule", l2_rule, L2_RULES)
    check_at_least("noise", options["noise"], 0)
    check_range("sparsity", options["sparsity"], 0, 1, open_low=True)
    if options["step_budget"] is not None:
        check_range("step_budget", options["step_budget"], 1, steps)
    options |= {"start_eps": start_eps, "rule": L2_RULES[l2_rule]}
    ascent = Ascent(logits_fn, images, labels, eps, step_size, norm, loss, box, **options)
    return ascent, example_keys(key, _indices(images, indices))


def _check(
    logits_fn: object,
    images: Array,
    eps: Radius,
    step_size: Radius,
    steps: int,
    order: str,
    start: str,
    restarts: int,
    keep: str,
    box: Box,
) -> str:
    """Check all arguments; returns the canonical name of the norm."""
    check_network(logits_fn)
    check_box(box)
    check_images("images", images, box)
    order = norm_name(order)
    if order == "l1" and box != (0.0, 1.0):
        raise InputError(f"box={box} is not supported with norm='l1'; give box=(0, 1)")
    check_choice("start", start, STARTS)
    check_choice("keep", keep, KEEPS)
    check_radius("eps", eps, order, box)
    check_radius("step_size", step_size, order, box)
    check_count("steps", steps, 1)
    check_count("restarts", restarts, 1)
    return order
