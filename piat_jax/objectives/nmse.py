"""Normalized mean square error of logits (PIAT paper)."""

import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.types import AdversarialBatch, Array, Aux, Context, PyTree
from piat_jax.objectives.base import AttackedObjective, objective, paired_aux, static


@objective
class NMSE(AttackedObjective):
    """NMSE: minimise `mean_i [ CE(z'_i, y_i) + mu (1 - p_y(x_i)) | z_i/|z_i| - z'_i/|z'_i| |^2 ]`.

    Train-mode forwards: x, x' (the order is free, this is MART's). No stop-gradient on either logit vector.

    Attributes:
      mu: 5 in the paper (3 to 6 in its ablation).
      weight_gradient: whether the weight `1 - p_y(x)` is differentiated; the paper does not say, MART's is.
      model, attack, attack_batch_norm: as in `AttackedObjective`.

    Source: PIAT paper, Eq. 11 and 12. The reduction over the batch is not stated there; it is the mean.
    """

    mu: float = 5.0
    weight_gradient: bool = static(default=True)

    def loss(
        self, params: PyTree, model_state: PyTree, objective_state: PyTree, batch: AdversarialBatch, context: Context
    ) -> tuple[Array, Aux]:
        """Cross-entropy on the adversarial images plus mu times NMSE."""
        labels = batch.clean.labels
        clean, model_state = self.forward(params, model_state, batch.clean.images)
        adversarial, model_state = self.forward(params, model_state, batch.images)
        regularizer = jnp.mean(losses.normalized_mse(clean, adversarial, labels, weight_gradient=self.weight_gradient))
        loss = jnp.mean(losses.cross_entropy(adversarial, labels)) + self.mu * regularizer
        return loss, paired_aux(model_state, loss, regularizer, clean, adversarial, labels)
