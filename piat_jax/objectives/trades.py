"""TRADES (Zhang et al., 2019)."""

from typing import Any, ClassVar

import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.checks import check_choice
from piat_jax.core.types import AdversarialBatch, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import AttackedObjective, Outputs, Terms, method, static
from piat_jax.objectives.wrapper_checks import check_attack_takes


@method(
    "trades",
    summary="Clean cross-entropy plus the divergence of adversarial predictions from clean ones, which the attack "
    "maximises.",
    paper="Zhang et al. (2019), arXiv:1901.08573",
)
class TRADES(AttackedObjective):
    """TRADES: minimise `mean_i [ CE(z_i, y_i) + beta KL(p_i || p'_i) ]`; the attack maximises the KL term.

    Train-mode forwards: x, x', x (`clean_forwards=2`) or x, x' (1). Gradients flow through both arguments of the KL.

    Attributes:
      beta: 6 in the papers that compare (1/lambda of the original).
      clean_forwards: how many times the clean batch updates BatchNorm's running statistics. The original code forwards
        it twice, the second time after the adversarial batch; MAIL, ECAS and LAS once. Loss and gradient are the same.
      attack_loss: the loss that the attack maximises, "kl" or "cross_entropy" (ECAS on CIFAR-10).
      attack: must not start at the clean images, where the KL has no gradient. The original's is
        `bind(pgd, start="normal")`, the configs' default, in L2 with `l2_rule="trades"` as in RPAT's code. The attack
        must take `loss`, as `pgd` does.
      model, attack_batch_norm: as in `AttackedObjective`.

    Source: Zhang et al. (2019), arXiv:1901.08573.
    """

    beta: float = 6.0
    clean_forwards: int = static(default=2)
    attack_loss: str = static(default="kl")

    attack_options: ClassVar[dict[str, Any]] = {"start": "normal", "l2_rule": "trades"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("clean_forwards", self.clean_forwards, (1, 2))
        check_choice("attack_loss", self.attack_loss, ("kl", "cross_entropy"))
        if self.attack_loss == "kl":
            check_attack_takes(self, "loss")

    @property
    def forwards(self) -> tuple[str, ...]:
        """Clean, adversarial, and clean again if `clean_forwards` is 2."""
        return ("clean", "adversarial", "clean")[: self.clean_forwards + 1]

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Maximise `KL(p || p')`; the clean prediction is computed once, which changes nothing in evaluation mode."""
        if self.attack_loss == "cross_entropy":
            return self.craft(variables, batch, context)
        clean = self.logits_fn(variables)(batch.images)
        return self.craft(variables, batch, context, loss=lambda logits, _: losses.kl_divergence(clean, logits))

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """Beta times the divergence, plus the clean cross-entropy."""
        clean, adversarial = outputs.logits["clean"], outputs.logits["adversarial"]
        divergence = losses.kl_divergence(clean, adversarial)
        cross_entropy = losses.cross_entropy(clean, outputs.target)
        return Terms(self.beta * divergence, cross_entropy, {"regularizer": jnp.mean(divergence)})
