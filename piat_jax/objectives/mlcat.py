"""Minimum loss constrained adversarial training (Yu et al., 2022)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from piat_jax.core.checks import check_choice, check_count
from piat_jax.core.types import AdversarialBatch, Array, Context, PyTree
from piat_jax.objectives.awp import TOKENS
from piat_jax.objectives.base import Outputs, Terms, Wrapper, objective, reached, static, wrapper
from piat_jax.objectives.parts import loss_gradient


@wrapper(
    "mlcat",
    title="MLCAT",
    summary="Prevents fitting adversarial examples with small loss, by weight perturbation or loss scaling.",
    paper="Yu et al. (2022), arXiv:2206.08675",
)
class MLCAT(Wrapper):
    """MLCAT around any method: it does not learn to make an example's adversarial part l_i smaller than `minimum`.

    `variant="wp"`, weight perturbation: gradient and optimizer update are computed at the weights `w + v`, as in AWP. v
    comes from `steps` ascent steps on the batch mean of `l_i [l_i < minimum]`:

        G <- G + g(w + v),  v = gamma |w| G / |G|   with norms over all kernels together; v = 0 at first

    Only kernels of convolutions and dense layers move. Where no example's l_i is below `minimum`, v is 0.

    `variant="ls"`, loss scaling: l_i is multiplied by `max(minimum / l_i, 1)`. The code differentiates this factor too,
    so an example with a small loss has the loss `minimum` and no gradient. With `scale_gradient=False` the factor is a
    constant.

    Train-mode forwards: those of the inner method, at w + v. The forwards for v do not update running statistics.

    Attributes:
      inner: the method, PGD-AT in the paper.
      variant: "wp" or "ls".
      minimum: the loss below which an example counts as small, 1.5 for CIFAR-10.
      gamma: relative size of the weight perturbation, 0.01.
      steps: ascent steps of "wp", 10.
      scale_gradient: whether to differentiate the factor of "ls".
      start: share of the run's epochs before it begins.

    Source: Yu et al. (2022), arXiv:2206.08675, and its code, from which the constants are. The learning rate of its
    ascent has no effect, because G is normalised.
    """

    variant: str = static(default="wp")
    minimum: float = 1.5
    gamma: float = 0.01
    steps: int = static(default=10)
    scale_gradient: bool = static(default=True)
    start: float = 0.0

    attack_options: ClassVar[Mapping[str, Any]] = {"l2_rule": "awp"}  # its L2 attack adds 1e-10 to |g|
    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"pgd_at": {"attack_batch_norm": "train"}}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("variant", self.variant, ("wp", "ls"))
        check_count("steps", self.steps, 1)

    def perturb_weights(
        self, params: PyTree, model_state: PyTree, objective_state: PyTree, batch: AdversarialBatch, context: Context
    ) -> PyTree:
        """`w + v` in the variant "wp", from `start` on."""
        params = super().perturb_weights(params, model_state, objective_state, batch, context)
        if self.variant == "ls":
            return params
        small = SmallLosses(self.inner, minimum=self.minimum)

        def ascend(_: Any, total: PyTree) -> PyTree:
            at = moved(params, total, self.gamma)
            gradient = loss_gradient(small, at, model_state, objective_state, batch, context)[0]
            return jax.tree.map(jnp.add, total, gradient)

        def perturbed(params: PyTree) -> PyTree:
            total = jax.lax.fori_loop(0, self.steps, ascend, jax.tree.map(jnp.zeros_like, params))
            return moved(params, total, self.gamma)

        return jax.lax.cond(reached(self.start, context), perturbed, lambda params: params, params)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The inner method's terms, scaled in the variant "ls"."""
        terms = super().terms(outputs, objective_state, context)
        loss = terms.adversarial
        metrics = {**terms.metrics, "small_loss": jnp.mean((loss < self.minimum).astype(jnp.float32))}
        if self.variant == "wp":
            return terms._replace(metrics=metrics)
        if self.scale_gradient:
            scaled = jnp.maximum(loss, self.minimum)
        else:
            # The loss may be exactly 0, where its gradient is 0 too.
            scaled = loss * jax.lax.stop_gradient(jnp.maximum(self.minimum / jnp.maximum(loss, 1e-12), 1.0))
        return terms._replace(adversarial=jnp.where(reached(self.start, context), scaled, loss), metrics=metrics)


@objective
class SmallLosses(Wrapper):
    """The objective that "wp" maximises: the inner adversarial part, where it is smaller than `minimum`."""

    minimum: float = 1.5

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The adversarial part where it is small, 0 elsewhere."""
        loss = super().terms(outputs, objective_state, context).adversarial
        return Terms(jnp.where(loss < self.minimum, loss, 0.0))


def moved(params: PyTree, direction: PyTree, gamma: Array | float) -> PyTree:
    """The weights plus `gamma |w| d / |d|`, norms over all kernels together; only kernels move, and none if d is 0.

    >>> moved({"k": jnp.array([[3.0, 4.0]])}, {"k": jnp.array([[0.0, 2.0]])}, 0.1)["k"].tolist()
    [[3.0, 4.5]]
    """

    def only_kernels(path: tuple[Any, ...], weight: Array, value: Array) -> Array:
        is_token = jax.tree_util.keystr(path[-1:], simple=True) in TOKENS
        return jnp.zeros_like(value) if weight.ndim < 2 or is_token else value

    weights, steps = (jax.tree_util.tree_map_with_path(only_kernels, params, tree) for tree in (params, direction))
    length = norm(steps)
    scale = gamma * norm(weights) / jnp.where(length > 0, length, 1.0)
    return jax.tree.map(lambda weight, step: weight + (scale * step).astype(weight.dtype), params, steps)


def norm(tree: PyTree) -> Array:
    """The L2 norm of all leaves together."""
    return jnp.sqrt(sum((jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(tree)), jnp.float32(0.0)))
