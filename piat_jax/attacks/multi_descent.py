"""Gradient ascent that takes, at each step, the best step of several norms (multi steepest descent)."""

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.attacks.ascent import Ascent, select
from piat_jax.attacks.registry import attack
from piat_jax.core.checks import check_choice, check_count, check_images, check_radius
from piat_jax.core.network_checks import check_network
from piat_jax.core.norms import ALL_NORMS, Radius, norm_name
from piat_jax.core.types import Array, LogitsFn, LossFn
from piat_jax.programs.loops import fori_loop


@attack(
    "msd",
    summary="Takes at each step the best of the L-inf, L2 and L1 steps, each within its own ball.",
    paper="Maini et al. (2020), arXiv:1909.04068",
)
def msd(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    key: Array | None = None,
    indices: Array | None = None,
    eps: Radius = 8 / 255,
    step_size: Radius = 2 / 255,
    eps_l2: Radius = 0.5,
    step_size_l2: Radius = 0.05,
    eps_l1: Radius = 12.0,
    step_size_l1: Radius = 1.0,
    steps: int = 10,
    norm: str = "linf",
    sparsity: Array | float = 0.01,
    loss: LossFn = losses.cross_entropy,
) -> Array:
    """MSD: `x <- argmax_p loss(P_p(x + step_size_p u_p))` over p of L-inf, L2 and L1, for each example, `steps` times.

    `u_p` is the steepest ascent direction under p and `P_p` projects onto its ball and the box. The attack starts at
    the image and uses no randomness. Every step costs a gradient and three forwards. Candidates with a NaN loss are
    never chosen.

    Args:
      logits_fn, images, labels, key, indices, loss, sparsity: as in `pgd`.
      eps, step_size: radius and step size in L-inf.
      eps_l2, step_size_l2: in L2.
      eps_l1, step_size_l1: in L1, as sums of all changes.
      steps: number of steps.
      norm: only "linf", the norm of `eps`; the other norms are always included.

    Returns:
      `[B, H, W, C]` in the dtype of the images, inside one of the balls and the box.

    Source: Maini et al. (2020), arXiv:1909.04068. Its code takes 50 steps and draws the sparsity of each L1 step.

    >>> logits_fn = lambda x: jnp.concatenate([x.reshape(1, 1), jnp.zeros((1, 1))], axis=1)
    >>> x = jnp.full((1, 1, 1, 1), 0.75)
    >>> msd(logits_fn, x, jnp.array([0]), eps=0.125, eps_l1=0.5, step_size_l1=0.5).ravel().tolist()
    [0.25]
    """
    del key, indices
    check_network(logits_fn)
    check_images("images", images)
    check_choice("norm", norm_name(norm), ("linf",))
    check_count("steps", steps, 1)
    radii = {"linf": (eps, step_size), "l2": (eps_l2, step_size_l2), "l1": (eps_l1, step_size_l1)}
    for order, (radius, step) in radii.items():
        end = "" if order == "linf" else f"_{order}"
        check_radius(f"eps{end}", radius, order)
        check_radius(f"step_size{end}", step, order)
    ascents = [
        Ascent(logits_fn, images, labels, *radii[order], order, loss, (0.0, 1.0), sparsity=sparsity)
        for order in ALL_NORMS
    ]
    first = ascents[0]

    def step_all(_: Array | int, x: Array) -> Array:
        gradient = first.gradient(x)[0]
        best, highest = x, jnp.full(first.labels.shape, -jnp.inf)
        for ascent in ascents:
            candidate = ascent.move(x, gradient)
            value, _success = ascent.evaluate(ascent.result(candidate))
            better = value > highest
            best, highest = select(better, candidate, best), jnp.where(better, value, highest)
        return best

    return first.result(jax.lax.stop_gradient(fori_loop(0, steps, step_all, first.images)))
