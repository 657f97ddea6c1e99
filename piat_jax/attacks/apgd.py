"""Auto-PGD, AutoAttack's white-box attack: adaptive step sizes, on cross-entropy, DLR or targeted DLR."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.attacks.apgd_l1 import SparseApgdRule
from piat_jax.attacks.apgd_steps import ApgdRule, HighestLoss, ScheduleEntry, schedule
from piat_jax.attacks.ascent import select
from piat_jax.attacks.outcome import Outcome
from piat_jax.attacks.targets import check_targets, ranked_others
from piat_jax.core.checks import (
    InputError,
    check_choice,
    check_count,
    check_images,
    check_key,
    check_labels,
    check_radius,
    check_range,
)
from piat_jax.core.labels import hard
from piat_jax.core.network_checks import check_network, check_takes_keys, checked_logits
from piat_jax.core.norms import Radius, finite_entries, norm_name
from piat_jax.core.rng import example_keys, fold_in
from piat_jax.core.types import Array
from piat_jax.programs.frozen import frozen
from piat_jax.programs.loops import fori_loop, while_loop

LOSSES = ("ce", "dlr", "targeted")
STARTS = ("random", "none")


def apgd(
    logits_fn: Callable[..., Array],
    images: Array,
    labels: Array,
    *,
    key: Array,
    indices: Array | None = None,
    active: Array | None = None,
    eps: Radius = 8 / 255,
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    loss: str = "ce",
    targets: Array | int | None = None,
    eot: int = 1,
    rho: Array | float = 0.75,
    start: str | Array = "random",
) -> Outcome:
    """APGD: `x_{i+1} = P(x_i + .75 (P(x_i + s u) - x_i) + .25 (x_i - x_{i-1}))`; the step size `s` halves if it stalls.

    `P` projects onto ball and box, `u = sign(g)` under "linf" and `g / |g|_2` under "l2". s starts at 2 eps. The
    distances between checkpoints shrink from .22 to .06 of `steps`. At a checkpoint, an example halves s and returns to
    its point of highest loss in two cases: if at most a share `rho` of the steps since the last checkpoint increased
    the loss, or if the highest loss has not increased since then and s was not halved there. For "l1", see
    `apgd_l1.SparseApgdRule`.

    Args:
      logits_fn: images to logits `[B, K]`, K at least 2. With `eot` above 1 it is called as `logits_fn(images, keys)`
        with one typed key per example, from which it draws.
      images: `[B, H, W, C]` floats in [0, 1].
      labels: `[B]` integers; for "ce" also `[B, K]` probabilities, of which the other losses use the most probable
        class.
      key: typed threefry key; example i draws from `fold_in(key, indices[i])`, independent of the rest of the batch.
      indices: `[B]` each example's index in its data set; default `0..B-1`.
      active: `[B]` bool, the examples to attack; the loop does not wait for the others. Default all.
      eps: radius in pixel units (1 = the whole range; for "l1" the sum of all changes), a scalar or `[B]`.
      norm: "linf", "l2" or "l1".
      steps: iterations of a run, at least 1; at least 3 for "l1", which splits them over its phases.
      restarts: runs from new starts, per target with `loss="targeted"`; fooled examples do not run again.
      loss: "ce"; "dlr", which is the margin if K = 2; or "targeted", the targeted DLR loss for one target after the
        other, which is `z_t - z_y` if K <= 3. Any wrong class counts as success, not only the target.
      targets: with `loss="targeted"` the number of targets, default 9, at most K - 1: the classes with the highest
        clean logits except the label, in falling order. Or `[B]` integers, one target class per example. With "ce" or
        "dlr" `[B]` goal classes: the loss for the goal is minimised, and only the goal counts as success.
      eot: number of forward and backward passes a gradient is averaged over, for randomised networks. As in the
        reference code, loss and verdict at a point come from the last pass.
      rho: in [0, 1]; not used by "l1".
      start: "random", from eps times `u / max |u|` with u uniform in the cube ("linf"), from the sphere ("l2"), or
        from normal noise projected onto the ball ("l1"); "none", from the image; or images `[B, H, W, C]`, which are
        projected first.

    Returns:
      An Outcome, in float32; no gradient flows through it. A run costs `steps + 1` queries ("l1": `steps + 3`), times
      `eot`; finding the targets costs one more query in total.

    Raises:
      InputError: an unknown choice, an argument out of range, or two that exclude each other.

    Source: Croce & Hein (2020), arXiv:2003.01690; "l1": Croce & Hein (2021), arXiv:2103.01208. Where the reference code
    differs from the paper, this follows the code: checkpoints by floor (57 where the paper has 58), `<=` in the test of
    `rho`, no second test at the first checkpoint, and a first comparison of losses with 0. Unlike the code, it returns
    the first misclassified point, not the last, and a block stops once all examples are fooled; the verdicts are the
    same. Logits that are not finite never count as success. NaN entries of a gradient count as 0, infinite ones as the
    largest finite entry.

    >>> logits_fn = lambda x: jnp.concatenate([x.reshape(1, 1), jnp.full((1, 1), 0.4)], axis=1)
    >>> out = apgd(logits_fn, jnp.full((1, 1, 1, 1), 0.5), jnp.array([0]), key=jax.random.key(0), eps=0.25, steps=5)
    >>> bool(out.fooled[0]), bool(0.25 <= out.images[0, 0, 0, 0] < 0.4)
    (True, True)
    """
    norm = _check(logits_fn, images, key, eps, norm, steps, restarts, loss, targets, eot, rho, start)
    batch = images.shape[0]
    images = images.astype(jnp.float32)
    logits_fn = logits_fn if eot > 1 else frozen(logits_fn, images)
    radius = jnp.broadcast_to(jnp.asarray(eps, jnp.float32), (batch,))
    active = jnp.full((batch,), True) if active is None else active
    keys = example_keys(key, jnp.arange(batch) if indices is None else indices)
    rule = SparseApgdRule(images, radius) if norm == "l1" else ApgdRule(images, radius, norm, rho)
    table = schedule(rule, steps)

    # Task 0 is the clean forward; the runs follow.
    ranked, tasks, queries = hard(labels)[:, None], restarts, jnp.zeros((batch,), jnp.int32)
    goals = None if loss == "targeted" or targets is None else jnp.asarray(targets)
    if loss == "targeted":
        targets = jnp.asarray(9 if targets is None else targets)
        if targets.ndim:
            ranked = targets[:, None]
        else:
            logits = checked_logits(logits_fn, images, *([fold_in(keys, 0)] if eot > 1 else []))
            ranked, queries = ranked_others(logits, hard(labels)), queries + active.astype(jnp.int32)
            tasks = restarts * jnp.minimum(targets, ranked.shape[1])

    def attack(carry: tuple[Array, Outcome]) -> tuple[Array, Outcome]:
        task, outcome = carry
        own, target = fold_in(keys, task + 1), jnp.take(ranked, task // restarts, axis=1)
        x = images if isinstance(start, str) else start.astype(jnp.float32)
        if isinstance(start, str) and start == "random":
            x = images + rule.draw(fold_in(own, 0))
        evaluate = Evaluate(logits_fn, labels, loss, target, eot, fold_in(own, 1), goals)
        *_, outcome = run(rule, table, evaluate, rule.inside(x, table.factor[0]), active, outcome)
        return task + 1, outcome

    def unfinished(carry: tuple[Array, Outcome]) -> Array:
        return (carry[0] < tasks) & jnp.any(active & ~carry[1].fooled)

    clean = Outcome(images, jnp.full((batch,), False), queries)
    _, outcome = while_loop(unfinished, attack, (jnp.int32(0), clean))
    return jax.lax.stop_gradient(outcome)


class Evaluate:
    """Runs the network for an attack: loss, gradient and verdict at a point."""

    def __init__(
        self,
        logits_fn: Callable[..., Array],
        labels: Array,
        loss: str,
        target: Array,
        eot: int,
        keys: Array,
        goals: Array | None = None,
    ):
        self.logits_fn, self.loss, self.target = logits_fn, loss, target
        self.labels, self.soft_labels = hard(labels), labels
        self.eot, self.keys, self.goals = eot, keys, goals

    def value(self, logits: Array) -> Array:
        """The loss to ascend, `[B]`."""
        if self.loss == "targeted":
            fn = losses.targeted_margin if logits.shape[-1] <= 3 else losses.targeted_dlr
            return fn(logits, self.labels, self.target)
        if self.goals is None:
            return self._loss(logits, self.soft_labels if self.loss == "ce" else self.labels)
        check_labels("targets", self.goals, logits)
        return -self._loss(logits, self.goals)

    def _loss(self, logits: Array, labels: Array) -> Array:
        if self.loss == "ce":
            return losses.cross_entropy(logits, labels)
        if logits.shape[-1] == 2:
            return losses.targeted_margin(logits, labels, 1 - labels)
        return losses.dlr(logits, labels)

    def success(self, logits: Array) -> Array:
        """Whether misclassified or, if goals are given, classified as the goal, `[B]`."""
        if self.goals is None:
            return losses.misclassified(logits, self.labels)
        return losses.correct(logits, self.goals)

    def __call__(self, x: Array, iteration: Array | int) -> tuple[Array, Array, Array]:
        """Loss `[B]`, its gradient, and whether the point is a success."""

        def total(x: Array, *keys: Array) -> tuple[Array, tuple[Array, Array]]:
            logits = checked_logits(self.logits_fn, x, *keys).astype(jnp.float32)
            value = self.value(logits)
            # The sum, so that gradients do not shrink with the batch size.
            return jnp.sum(value), (value, self.success(logits))

        def once(*keys: Array) -> tuple[Array, Array, Array]:
            gradient, (value, wrong) = jax.grad(total, has_aux=True)(x, *keys)
            # A NaN loss counts as the worst, and NaN entries of the gradient must not spread.
            return jnp.where(jnp.isnan(value), -jnp.inf, value), finite_entries(gradient), wrong

        if self.eot == 1:
            return once()

        def again(number: Array | int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            value, gradient, wrong = once(fold_in(self.keys, iteration, number))
            return value, carry[1] + gradient / self.eot, wrong

        nothing = jnp.zeros(self.labels.shape, jnp.float32)
        return fori_loop(0, self.eot, again, (nothing, jnp.zeros_like(x), nothing.astype(bool)))


def run(
    rule: Any, table: ScheduleEntry, evaluate: Evaluate, x: Array, active: Array, outcome: Outcome
) -> tuple[HighestLoss, Any, Outcome]:
    """One run from `x`: the highest loss of its last phase, the rule's memory, and the new outcome."""

    def unfinished(carry: tuple[Array, Array, HighestLoss, Any, Outcome]) -> Array:
        return (carry[0] < table.first.shape[0]) & jnp.any(active & ~carry[-1].fooled)

    def iterate(
        carry: tuple[Array, Array, HighestLoss, Any, Outcome],
    ) -> tuple[Array, Array, HighestLoss, Any, Outcome]:
        number, x, best, memory, outcome = carry
        row = ScheduleEntry(*[column[number] for column in table])
        value, gradient, wrong = evaluate(x, number)
        higher = row.first | (value > best.loss)
        best = HighestLoss(
            select(higher, x, best.x), select(higher, gradient, best.gradient), jnp.where(higher, value, best.loss)
        )
        alive = active & ~outcome.fooled
        hit = alive & wrong & row.counts
        outcome = Outcome(
            select(hit, x, outcome.images),
            outcome.fooled | hit,
            outcome.queries + evaluate.eot * alive.astype(jnp.int32),
        )
        x, memory = rule.next(row, x, gradient, value, best, memory)
        return number + 1, x, best, memory, outcome

    nowhere = HighestLoss(x, jnp.zeros_like(x), jnp.full(active.shape, -jnp.inf))
    carry = while_loop(unfinished, iterate, (jnp.int32(0), x, nowhere, rule.memory(), outcome))
    return carry[2:]


def _check(
    logits_fn: object,
    images: Array,
    key: Array,
    eps: Radius,
    norm: str,
    steps: int,
    restarts: int,
    loss: str,
    targets: Array | int | None,
    eot: int,
    rho: Array | float,
    start: str | Array,
) -> str:
    """Check all arguments; returns the canonical name of the norm."""
    check_network(logits_fn)
    check_images("images", images)
    check_key(key)
    norm = norm_name(norm)
    check_choice("loss", loss, LOSSES)
    check_radius("eps", eps, norm)
    check_count("steps", steps, 3 if norm == "l1" else 1)
    check_count("restarts", restarts, 1)
    check_count("eot", eot, 1)
    check_range("rho", rho, 0, 1)
    if targets is not None:
        check_targets(targets, images.shape[0])
        if loss != "targeted" and jnp.ndim(targets) == 0:
            raise InputError(f"targets={targets} needs loss='targeted'; with loss={loss!r} give one class per example")
    if isinstance(start, str):
        check_choice("start", start, STARTS)
    elif start.shape != images.shape:
        raise InputError(f"start has shape {start.shape}; give images of shape {images.shape}, 'random' or 'none'")
    if restarts > 1 and eot == 1 and not (isinstance(start, str) and start == "random"):
        raise InputError(f"restarts={restarts} from the same start give the same result; give restarts=1")
    if eot > 1:
        check_takes_keys(logits_fn, f"eot={eot}")
    return norm
