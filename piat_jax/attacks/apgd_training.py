"""Auto-PGD as a training attack: the point of highest loss, whether it is misclassified or not."""

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.attacks.apgd import STARTS, Evaluate, run
from piat_jax.attacks.apgd_l1 import SparseApgdRule
from piat_jax.attacks.apgd_steps import ApgdRule, schedule
from piat_jax.attacks.outcome import Outcome
from piat_jax.attacks.registry import attack
from piat_jax.core.checks import check_choice, check_count, check_images, check_key, check_radius, check_range
from piat_jax.core.network_checks import check_network
from piat_jax.core.norms import Radius, norm_name
from piat_jax.core.rng import example_keys
from piat_jax.core.types import Array, LogitsFn, LossFn
from piat_jax.programs.frozen import frozen


@attack(
    "apgd",
    summary="Auto-PGD's point of highest loss, with steps that shorten when they stall.",
    paper="Croce and Hein (2020), arXiv:2003.01690",
)
def apgd_ascent(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    key: Array,
    indices: Array | None = None,
    eps: Radius = 8 / 255,
    norm: str = "linf",
    steps: int = 10,
    start: str = "random",
    rho: Array | float = 0.75,
    loss: LossFn = losses.cross_entropy,
) -> Array:
    """Run all steps of `apgd` and return the point with the highest loss.

    AutoAttack's member `apgd` stops at the first success, which is enough for an evaluation; training needs the highest
    loss.

    Args:
      logits_fn, images, labels, key, indices, eps, norm: as in `apgd`; labels may be probabilities too.
      steps: at least 1; at least 3 for "l1", which splits them over its phases.
      start: random (in the ball), none.
      rho: share of steps that must increase the loss, else the step size is halved; not used by "l1".
      loss: `(logits, labels) -> [B]`, maximised.

    Returns:
      `[B, H, W, C]` in the dtype of the images; no gradient flows through it. Takes `steps + 1` forwards ("l1": two
      more).

    Source: as for `apgd`; with 10 steps in E-AT, Croce & Hein (2022), arXiv:2105.12508, with 2 in Singh et al. (2023),
    arXiv:2303.01870.

    >>> logits_fn = lambda x: jnp.concatenate([x.reshape(1, 1), jnp.full((1, 1), 0.4)], axis=1)
    >>> x = jnp.full((1, 1, 1, 1), 0.5)
    >>> apgd_ascent(logits_fn, x, jnp.array([0]), key=jax.random.key(0), eps=0.25).ravel().tolist()
    [0.25]
    """
    check_network(logits_fn)
    check_images("images", images)
    check_key(key)
    norm = norm_name(norm)
    check_radius("eps", eps, norm)
    check_count("steps", steps, 3 if norm == "l1" else 1)
    check_choice("start", start, STARTS)
    check_range("rho", rho, 0, 1)
    batch, dtype = images.shape[0], images.dtype
    images = images.astype(jnp.float32)
    radius = jnp.broadcast_to(jnp.asarray(eps, jnp.float32), (batch,))
    keys = example_keys(key, jnp.arange(batch) if indices is None else indices)
    rule = SparseApgdRule(images, radius) if norm == "l1" else ApgdRule(images, radius, norm, rho)
    table = schedule(rule, steps)
    x = images + rule.draw(keys) if start == "random" else images
    nobody = Outcome(images, jnp.full((batch,), False), jnp.zeros((batch,), jnp.int32))
    evaluate = _Ascending(frozen(logits_fn, images), labels, loss, keys)
    best, *_ = run(rule, table, evaluate, rule.inside(x, table.factor[0]), jnp.full((batch,), True), nobody)
    return jax.lax.stop_gradient(best.x).astype(dtype)


class _Ascending(Evaluate):
    """A loss to ascend, with no success that would stop the attack."""

    def __init__(self, logits_fn: LogitsFn, labels: Array, loss: LossFn, keys: Array):
        super().__init__(logits_fn, labels, "ce", labels, 1, keys)
        self.fn = loss

    def value(self, logits: Array) -> Array:
        return self.fn(logits, self.soft_labels)

    def success(self, logits: Array) -> Array:
        return jnp.full(logits.shape[:1], False)
