"""Adversarial weight perturbation (Wu et al., 2020)."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from piat_jax.core.types import AdversarialBatch, Array, Context, PyTree
from piat_jax.objectives.base import Wrapper, reached, wrapper
from piat_jax.objectives.parts import loss_gradient

TOKENS = ("cls_token", "pos_embed")
"""Parameters of a Vision Transformer that are not kernels, although they have two or more axes."""


@wrapper(
    "awp",
    summary="Trains at adversarially perturbed weights.",
    paper="Wu et al. (2020), arXiv:2004.05884",
)
class AWP(Wrapper):
    """AWP around any method: gradient and optimizer update are computed at the perturbed weights `w + v`.

    `v_l = gamma |w_l| g_l / |g_l|` for each convolution and dense kernel l, where g is the gradient of the loss of
    `inner` at w on the same adversarial batch. Biases, BatchNorm's parameters, tokens and position embeddings are not
    perturbed. The step goes from w to `w + update`, so v never stays in the weights. Weight decay sees w + v, as in the
    original.

    Train-mode forwards: those of the inner method, at w + v. The forwards at w for g do not update running statistics.

    Attributes:
      inner: the method.
      gamma: relative size of the perturbation: 0.01 for PGD-AT, 0.005 for TRADES.
      start: share of the run's epochs before it begins: 0 for PGD-AT; 9/200 for TRADES, which is epoch 10
        (1-based) of 200. The code for SVHN waits 5 epochs.

    Source: Wu et al. (2020), arXiv:2004.05884, Eq. 8-10, and its proxy-based code. PGD-AT's code also forwards the
    clean batch after the optimizer step, for logging; this is not done here. TRADES' code forwards x', x, x; here the
    order is TRADES' own x, x', x.
    """

    gamma: float = 0.01
    start: float = 0.0

    needs_attack: ClassVar[bool] = False
    attack_options: ClassVar[dict[str, Any]] = {"l2_rule": "awp"}  # its L2 attack adds 1e-10 to |g|
    inner_options: ClassVar[dict[str, Any]] = {"pgd_at": {"attack_batch_norm": "train"}}
    variants: ClassVar[dict[str, Any]] = {"trades": {"gamma": 0.005, "start": 9 / 200}}

    def perturb_weights(
        self, params: PyTree, model_state: PyTree, objective_state: PyTree, batch: AdversarialBatch, context: Context
    ) -> PyTree:
        """`w + v`, from the epoch `start` on."""
        params = super().perturb_weights(params, model_state, objective_state, batch, context)

        def perturbed(params: PyTree) -> PyTree:
            gradient = loss_gradient(self, params, model_state, objective_state, batch, context)[0]
            return perturb_kernels(params, gradient, self.gamma)

        return jax.lax.cond(reached(self.start, context), perturbed, lambda params: params, params)


def perturb_kernels(params: PyTree, gradient: PyTree, gamma: Array | float) -> PyTree:
    """The weights, with its `weight_perturbation` added to each kernel."""

    def moved(path: tuple[Any, ...], weight: Array, gradient: Array) -> Array:
        is_token = jax.tree_util.keystr(path[-1:], simple=True) in TOKENS
        return weight if is_token else weight + weight_perturbation(weight, gradient, gamma)

    return jax.tree_util.tree_map_with_path(moved, params, gradient)


def weight_perturbation(weight: Array, gradient: Array, gamma: Array | float) -> Array:
    """`gamma |w| g / |g|` (Frobenius norms) for a kernel, 0 for a vector or a scalar, and where g is 0.

    >>> weight_perturbation(jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 2.0]]), 0.1).tolist()
    [[0.0, 0.5]]
    """
    if weight.ndim < 2:
        return jnp.zeros_like(weight)
    length = jnp.linalg.norm(gradient)
    return gamma * jnp.linalg.norm(weight) * gradient / jnp.where(length > 0, length, 1.0)
