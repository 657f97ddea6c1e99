"""TRADES (Zhang et al., 2019)."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.checks import check_choice
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.types import AdversarialBatch, Array, Aux, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import AttackedObjective, objective, paired_aux, static


@objective
class TRADES(AttackedObjective):
    """TRADES: minimise `mean_i [ CE(z_i, y_i) + beta KL(p_i || p'_i) ]`; the attack maximises the KL term.

    Train-mode forwards: x, x', x (`clean_forwards=2`) or x, x' (1). Gradients flow through both arguments of the KL.

    Attributes:
      beta: 6 in the papers that compare (1/lambda of the original).
      clean_forwards: how often the clean batch updates BatchNorm's running statistics. The original code forwards it
        twice, the second time last; MAIL, ECAS and LAS once. Loss and gradient are the same.
      attack: needs a start off the images, as at x itself the KL has no gradient; the original's is
        `bind(pgd, start="normal")`, and configs take it. It is called with `loss=`, so it must take one, as `pgd` does.
      model, attack_batch_norm: as in `AttackedObjective`.

    Source: Zhang et al. (2019), arXiv:1901.08573.
    """

    beta: float = 6.0
    clean_forwards: int = static(default=2)

    attack_options: ClassVar[dict[str, Any]] = {"start": "normal"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("clean_forwards", self.clean_forwards, (1, 2))

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Maximise `KL(p || p')`; the clean prediction is computed once, which in evaluation mode changes nothing."""
        logits_fn = make_logits_fn(self.model, variables, train=self.attack_batch_norm == "train")
        clean = logits_fn(batch.images)
        return self.craft(variables, batch, context, loss=lambda logits, _: losses.kl_divergence(clean, logits))

    def loss(
        self, params: PyTree, model_state: PyTree, objective_state: PyTree, batch: AdversarialBatch, context: Context
    ) -> tuple[Array, Aux]:
        """Clean cross-entropy plus beta times the divergence."""
        labels = batch.clean.labels
        clean, model_state = self.forward(params, model_state, batch.clean.images)
        adversarial, model_state = self.forward(params, model_state, batch.images)
        if self.clean_forwards == 2:
            # Its logits would equal the first ones, so only its statistics are wanted.
            model_state = self.forward(jax.lax.stop_gradient(params), model_state, batch.clean.images)[1]
        divergence = jnp.mean(losses.kl_divergence(clean, adversarial))
        loss = jnp.mean(losses.cross_entropy(clean, labels)) + self.beta * divergence
        return loss, paired_aux(model_state, loss, divergence, clean, adversarial, labels)
