"""Targeted PGD: one target class after the other, or the least likely class."""

import copy
from typing import Any

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.attacks.ascent import Ascent, Best
from piat_jax.attacks.pgd import STARTS, pgd
from piat_jax.attacks.registry import attack
from piat_jax.attacks.targets import lead, ranked_others
from piat_jax.core.checks import check_box, check_choice, check_count, check_images, check_key, check_radius
from piat_jax.core.labels import hard
from piat_jax.core.network_checks import check_network, checked_logits
from piat_jax.core.norms import L2_RULES, NORMS, Box, Radius, norm_name
from piat_jax.core.rng import example_keys, fold_in
from piat_jax.core.types import Array, LogitsFn, LossFn
from piat_jax.programs.loops import fori_loop


@attack(
    "mt",
    title="MT",
    summary="PGD on the logit difference to each other class in turn; keeps the best image of all runs.",
    paper="Gowal et al. (2019), arXiv:1910.09338",
)
def multi_targeted(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    key: Array,
    indices: Array | None = None,
    targets: int | None = None,
    eps: Radius = 8 / 255,
    step_size: Radius = 2 / 255,
    steps: int = 20,
    norm: str = "linf",
    start: str = "uniform",
    restarts: int = 1,
    box: Box = (0.0, 1.0),
    l2_rule: str = "exact",
) -> Array:
    """MultiTargeted: PGD on `z_t - z_y` for one class t after the other; returns the best image of all runs.

    Any wrong class is a success, not only the target. Among the last iterates of all runs, success comes first, then
    the higher `max_{j != y} z_j - z_y`.

    Args:
      logits_fn, images, labels, key, indices, eps, step_size, steps, norm, start, box, l2_rule: as in `pgd`.
      targets: the number of target classes, at least 1, by falling clean logit; at most K - 1 are used. None is all
        other classes.
      restarts: runs per class, at least 1, each from its own start.

    Returns:
      `[B, H, W, C]` in the dtype of the images, inside ball and box; no gradient flows through it.

    Raises:
      InputError: an unknown choice, or an argument out of range.

    Source: Gowal et al. (2019), arXiv:1910.09338.

    >>> logits_fn = lambda x: jnp.concatenate([x.reshape(1, 1), jnp.array([[0.3, 0.4]])], axis=1)
    >>> options = dict(key=jax.random.key(0), eps=0.25, step_size=0.25)
    >>> multi_targeted(logits_fn, jnp.full((1, 1, 1, 1), 0.5), jnp.array([0]), **options).ravel().tolist()
    [0.25]
    """
    check_network(logits_fn)
    check_box(box)
    check_images("images", images, box)
    check_key(key)
    labels = hard(labels)
    norm = norm_name(norm, NORMS)
    check_choice("start", start, STARTS)
    check_choice("l2_rule", l2_rule, L2_RULES)
    for name, radius in (("eps", eps), ("step_size", step_size)):
        check_radius(name, radius, norm, box)
    for name, count in (("steps", steps), ("restarts", restarts), ("targets", 1 if targets is None else targets)):
        check_count(name, count, 1)
    judge = Ascent(logits_fn, images, labels, eps, step_size, norm, lead, box, rule=L2_RULES[l2_rule])
    keys = example_keys(key, jnp.arange(images.shape[0]) if indices is None else indices)
    ranked = ranked_others(checked_logits(judge.logits_fn, images), labels)
    classes = ranked.shape[1] if targets is None else jnp.minimum(targets, ranked.shape[1])

    def once(run: Any, best: Best) -> Best:
        aimed = copy.copy(judge)
        target = jnp.take(ranked, run // restarts, axis=1)
        aimed.loss = lambda logits, labels: losses.targeted_margin(logits, labels, target)
        own = fold_in(keys, run)
        return judge.better(best, aimed.run(aimed.start(own, start), steps, own))

    first: Best = (judge.images, jnp.full(labels.shape, False), jnp.full(labels.shape, -jnp.inf))
    return judge.result(jax.lax.stop_gradient(fori_loop(0, classes * restarts, once, first)[0]))


@attack(
    "pgd_ll",
    title="PGD-LL",
    summary="PGD targeted at the class with the lowest clean logit.",
    paper="Kurakin et al. (2017), arXiv:1607.02533",
)
def pgd_least_likely(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    key: Array,
    indices: Array | None = None,
    eps: Radius = 8 / 255,
    step_size: Radius = 2 / 255,
    steps: int = 20,
    norm: str = "linf",
    start: str = "uniform",
    restarts: int = 1,
    keep: str = "last",
    loss: LossFn = losses.cross_entropy,
    box: Box = (0.0, 1.0),
    l2_rule: str = "exact",
) -> Array:
    """PGD targeted at the least likely class, `argmin_{j != y} z_j(x)`; arguments and results as in `pgd`.

    The attack aims at the hardest target class; an accuracy under it counts every wrong class as success.

    Source: Kurakin et al. (2017), arXiv:1607.02533, the iterative least-likely class method.

    >>> logits_fn = lambda x: jnp.concatenate([jnp.array([[0.6, 0.0]]), x.reshape(1, 1)], axis=1)
    >>> options = dict(key=jax.random.key(0), eps=0.25, step_size=0.25)
    >>> pgd_least_likely(logits_fn, jnp.full((1, 1, 1, 1), 0.5), jnp.array([0]), **options).ravel().tolist()
    [0.25]
    """
    check_network(logits_fn)
    targets = ranked_others(checked_logits(logits_fn, images), hard(labels))[:, -1]
    options = {"eps": eps, "step_size": step_size, "steps": steps, "norm": norm, "start": start, "l2_rule": l2_rule}
    options |= {"restarts": restarts, "keep": keep, "loss": loss, "box": box, "targets": targets}
    return pgd(logits_fn, images, labels, key=key, indices=indices, **options)
