"""Normalized mean square error of logits (PIAT paper)."""

import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.types import Context, PyTree
from piat_jax.objectives.base import AttackedObjective, Outputs, Terms, method, static


@method(
    "nmse",
    summary="PGD-AT plus the normalised mean square error of logits.",
    paper="the PIAT paper, Eq. 11-12",
)
class NMSE(AttackedObjective):
    """NMSE: minimise `mean_i [ CE(z'_i, y_i) + mu (1 - p_y(x_i)) | z_i/|z_i| - z'_i/|z'_i| |^2 ]`.

    Train-mode forwards: x, x' (MART's order; the paper states none). No stop-gradient on either logit vector.

    Attributes:
      mu: 5 in the paper (3 to 6 in its ablation).
      weight_gradient: whether to differentiate the weight `1 - p_y(x)`; the paper does not say, MART does.
      model, attack, attack_batch_norm: as in `AttackedObjective`.

    Source: PIAT paper, Eq. 11 and 12. The paper does not state the reduction over the batch; here it is the mean.
    """

    mu: float = 5.0
    weight_gradient: bool = static(default=True)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """Cross-entropy on the adversarial images plus mu times NMSE."""
        (clean, adversarial), labels = (outputs.logits[k] for k in ("clean", "adversarial")), outputs.batch.clean.target
        nmse = losses.normalized_mse(clean, adversarial, labels, weight_gradient=self.weight_gradient)
        return Terms(losses.cross_entropy(adversarial, outputs.target), self.mu * nmse, {"regularizer": jnp.mean(nmse)})
