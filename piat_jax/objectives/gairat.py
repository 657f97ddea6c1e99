"""Geometry-aware instance-reweighted adversarial training (Zhang et al., 2021)."""

import jax
import jax.numpy as jnp

from piat_jax.attacks import counting
from piat_jax.core.checks import InputError, check_at_least
from piat_jax.core.types import AdversarialBatch, Array, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import Outputs, Terms, Wrapper, reached, signed, wrapper
from piat_jax.objectives.wrapper_checks import attack_options, check_attack_takes, check_one_run, innermost


@wrapper(
    "gairat",
    summary="Weights examples by how many attack steps they withstand.",
    paper="Zhang et al. (2021), arXiv:2010.01736",
)
class GAIRAT(Wrapper):
    """GAIRAT around any method: weights `w_i = (tanh(Lambda + 5 (h - kappa_i) / h) + 1) / 2`, `h = floor(K / 2)`.

    kappa counts how many of the K iterates that the attack steps from are classified correctly. It is small near the
    decision boundary, where the weight is high. Weights have mean 1 over the batch, are constants for the gradient, and
    multiply the adversarial part of the loss.

    Train-mode forwards: those of the inner method.

    Attributes:
      inner: the method; its attack must be `pgd` with K = `steps` of at least 2, one restart and the last iterate. Put
        AWP outside, `AWP(GAIRAT(...))`, so that it perturbs along the gradient of the weighted loss.
      lam: Lambda, -1 in the paper's main experiments; the higher, the more equal the weights.
      start: share of the run's epochs before it begins, with equal weights until then: in epoch 60 (1-based) of 120.

    Source: Zhang et al. (2021), arXiv:2010.01736, and its code, with Lambda fixed from there on.
    """

    lam: float = signed(default=-1.0)
    start: float = 59 / 120

    def __post_init__(self) -> None:
        super().__post_init__()
        check_attack_takes(self, "steps")
        steps = attack_options(self.inner).get("steps")
        if steps is None:
            raise InputError("GAIRAT cannot tell how many steps attack takes; give attack=bind(pgd, steps=10)")
        check_at_least("attack.steps", steps, 2)
        check_one_run(self)
        counting(innermost(self).attack)

    def check_part(self, examples: int) -> None:
        """Refuse parts: the weights have mean 1 over the full batch."""
        raise InputError("microbatches: GAIRAT's weights have mean 1 over the full batch; leave it at 1")

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Craft as the inner method does, counting correct iterates; attach each example's weight."""
        adversarial = super().perturb(variables, objective_state, batch, context._replace(counting=counting))
        if adversarial.iterates is None:
            name = type(innermost(self)).__name__
            raise InputError(f"GAIRAT needs counts of the attack's iterates; let {name}.perturb call self.craft")
        # Other wrappers may have set how many steps each example takes.
        weights = instance_weights(*adversarial.iterates, self.lam)
        weights = jnp.where(reached(self.start, context), weights, 1.0)
        return self.hand(adversarial, weights)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The inner method's terms, with the adversarial part weighted."""
        terms = super().terms(outputs, objective_state, context)
        return terms._replace(adversarial=self.handed(outputs.batch) * terms.adversarial)


def instance_weights(correct_iterates: Array, steps: Array | int, lam: Array | float) -> Array:
    """The weights `[B]`, with mean 1, for counts out of `steps`.

    >>> instance_weights(jnp.array([4, 4]), 10, -1.0).tolist()
    [1.0, 1.0]
    """
    half = jnp.maximum(jnp.asarray(steps) // 2, 1).astype(jnp.float32)
    # This is (tanh(a) + 1) / 2 without the cancellation that would turn small weights into 0.
    weights = jax.nn.sigmoid(2.0 * (lam + 5.0 * (half - correct_iterates.astype(jnp.float32)) / half))
    return weights / jnp.mean(weights)
