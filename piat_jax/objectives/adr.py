"""Annealing self-distillation rectification, ADR (Wu et al., 2024)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from piat_jax.averaging.interpolation import interpolate
from piat_jax.core.checks import InputError, check_range
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.labels import of_label, probabilities
from piat_jax.core.trees import copied
from piat_jax.core.types import AdversarialBatch, Array, Aux, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import Wrapper, WrapperState, static, wrapper


@wrapper(
    "adr",
    title="ADR",
    summary="Rectifies labels with the annealed prediction of a moving average of the weights.",
    paper="Wu et al. (2024), arXiv:2305.12118",
)
class ADR(Wrapper):
    """ADR around any method: attack and loss use `r_i = l_i p_wa + (1 - l_i) y_i` in place of the label y_i.

    p_wa is the prediction of the weight average for the clean image, in evaluation mode and at a temperature, and
    `l_i = clip(l - (max_k p_wa_k - p_wa_y), 0, 1)`: the label keeps more where the average is wrong. Over the run's
    steps, temperature and l move from their first to their last value along half a cosine. After each step
    `wa <- decay wa + (1 - decay) w`, for BatchNorm's running statistics too.

    Train-mode forwards: those of the inner method.

    Attributes:
      inner: the method; its label smoothing is applied to the rectified labels.
      temperatures: first and last value: 2.5 and 2 for CIFAR-10, 1.5 and 1 for CIFAR-100, 2 and 1.5 for TinyImageNet.
      shares: first and last l: 0.7 and 0.95 for CIFAR-10, 0.5 and 0.9 for the other two.
      decay: 0.995.
      average: whether to evaluate the average, the paper's ADR+WA.

    Source: Wu et al. (2024), arXiv:2305.12118, and its code. The formulas are the code's, the numbers the paper's: the
    code's settings were not available. Its TRADES forwards x and x' as one batch.
    """

    temperatures: tuple[float, ...] = (2.5, 2.0)
    shares: tuple[float, ...] = (0.7, 0.95)
    decay: float = 0.995
    average: bool = static(default=False)

    needs_attack: ClassVar[bool] = False
    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"trades": {"clean_forwards": 1}}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("decay", self.decay, 0, 1)
        for name, low_is_open, high in (("temperatures", True, float("inf")), ("shares", False, 1)):
            values = getattr(self, name)
            if len(values) != 2:
                raise InputError(f"{name}={values} must be two numbers, the first and last value of the run")
            for value in values:
                check_range(name, value, 0, high, open_low=low_is_open)

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> Variables:
        """A copy of the weights and statistics."""
        return Variables(*copied(variables))

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Craft as the inner method does, with rectified labels."""
        logits = make_logits_fn(self.model, objective_state.own)(batch.images)
        temperature, share = annealed(self.temperatures, context), annealed(self.shares, context)
        target = jax.lax.stop_gradient(rectified(logits, batch.target, temperature, share))
        adversarial = super().perturb(variables, objective_state, batch._replace(targets=target), context)
        kept = jnp.mean(of_label(target, batch.target))
        return adversarial._replace(metrics={**adversarial.metrics, "rectified_label": kept})

    def after_step(
        self, variables: Variables, objective_state: PyTree, batch: AdversarialBatch, aux: Aux, context: Context
    ) -> WrapperState:
        """Update the average."""
        state = super().after_step(variables, objective_state, batch, aux, context)
        return state._replace(own=interpolate(state.own, variables, self.decay))

    def eval_variables(self, variables: Variables, objective_state: PyTree) -> Variables:
        """The average if `average` is set, else the inner method's variables."""
        return objective_state.own if self.average else super().eval_variables(variables, objective_state)


def annealed(ends: tuple[Array | float, ...], context: Context) -> Array:
    """`last + (first - last) (1 + cos(pi s)) / 2`, where s is the share of the run's steps that are done.

    >>> context = Context(jax.random.key(0), jnp.int32(5), jnp.int32(5), jnp.int32(10))
    >>> round(annealed((2.5, 2.0), context).item(), 4)
    2.25
    """
    first, last = ends
    steps = jnp.asarray(context.epochs, jnp.float32) * jnp.asarray(context.steps_per_epoch, jnp.float32)
    done = jnp.clip(context.step.astype(jnp.float32) / jnp.maximum(steps, 1.0), 0.0, 1.0)
    return last + (first - last) * (1.0 + jnp.cos(jnp.pi * done)) / 2.0


def rectified(logits: Array, labels: Array, temperature: Array | float, share: Array | float) -> Array:
    """`l p + (1 - l) y`, `[B, K]`, with `p = softmax(logits / temperature)`, `l = clip(share - max_k p_k + p_y, 0, 1)`.

    >>> rectified(jnp.zeros((1, 2)), jnp.array([0]), 1.0, 0.5).tolist()
    [[0.75, 0.25]]
    """
    p = jax.nn.softmax(logits.astype(jnp.float32) / temperature)
    own_share = jnp.clip(share - (jnp.max(p, axis=-1) - of_label(p, labels)), 0.0, 1.0)[:, None]
    return own_share * p + (1.0 - own_share) * probabilities(labels, p.shape[-1])
