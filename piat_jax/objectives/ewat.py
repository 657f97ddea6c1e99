"""Entropy-weighted adversarial training (Kim et al., 2021)."""

import jax
import jax.numpy as jnp

from piat_jax.core.types import Array, Context, PyTree
from piat_jax.objectives.base import Outputs, Terms, Wrapper, wrapper
from piat_jax.objectives.ecas import prediction_entropy


@wrapper(
    "ewat",
    title="EWAT",
    summary="Weights examples by the entropy of their adversarial prediction.",
    paper="Kim et al. (2021), ICML workshop on adversarial machine learning",
)
class EWAT(Wrapper):
    """EWAT around any method: multiplies its adversarial part by `w_i = offset + H(p'_i)`, the entropy in nats.

    The weights come from the adversarial logits of the training forward and are constants for the gradient. As with the
    other instance weights (MAIL, GAIRAT), clean terms and regularizers are not weighted.

    Train-mode forwards: those of the inner method.

    Attributes:
      inner: the method, PGD-AT in the paper.
      offset: added to every weight, 0; 1 gives the sum of cross-entropy and entropy-weighted cross-entropy.

    Source: Kim et al. (2021), "Entropy weighted adversarial training", ICML workshop. Only its abstract was available,
    and no code is released: "weighs the loss for each adversarial training example proportionally to the entropy of
    its predicted distribution". The factor 1, the offset 0 and the constant weights are our reading of that sentence.
    """

    offset: float = 0.0

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The inner method's terms, with the adversarial part weighted."""
        terms = super().terms(outputs, objective_state, context)
        weights = self.weights(outputs.logits["adversarial"])
        metrics = {**terms.metrics, "instance_weight": jnp.mean(weights)}
        return terms._replace(adversarial=weights * terms.adversarial, metrics=metrics)

    def weights(self, logits: Array) -> Array:
        """One weight per example, `[B]`, constant for the gradient."""
        return self.offset + prediction_entropy(jax.lax.stop_gradient(logits))
