"""Adversarial logit pairing (Kannan et al., 2018)."""

import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.types import Context, PyTree
from piat_jax.objectives.base import AttackedObjective, Outputs, Terms, method


@method(
    "alp",
    summary="PGD-AT that pulls clean and adversarial logits together.",
    paper="Kannan et al. (2018), arXiv:1803.06373",
)
class ALP(AttackedObjective):
    """ALP: minimise `mean_i [ CE(z'_i, y_i) + clean_weight CE(z_i, y_i) + weight |z_i - z'_i|^2 ]`.

    Train-mode forwards: x, x'. No stop-gradient on either side.

    Attributes:
      weight: of the pairing term, a sum over classes (PIAT paper, Eq. 8). The PIAT paper does not state the weight;
        0.5 is the original paper's. Public ports take the mean over classes: divide their weight by K to compare.
      clean_weight: of the clean cross-entropy. The PIAT paper has no such term; the ports use 1.
      model, attack, attack_batch_norm: as in `AttackedObjective`.

    Source: Kannan et al. (2018), arXiv:1803.06373; PIAT paper, Eq. 8.
    """

    weight: float = 0.5
    clean_weight: float = 0.0

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """Cross-entropy on the adversarial images plus the pairing of logits."""
        target, (clean, adversarial) = outputs.target, (outputs.logits[k] for k in ("clean", "adversarial"))
        pairing = losses.squared_distance(clean, adversarial)
        other = self.weight * pairing + self.clean_weight * losses.cross_entropy(clean, target)
        return Terms(losses.cross_entropy(adversarial, target), other, {"regularizer": jnp.mean(pairing)})
