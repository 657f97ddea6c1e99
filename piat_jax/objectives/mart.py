"""Misclassification-aware adversarial training (Wang et al., 2020)."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.labels import of_label
from piat_jax.core.types import Array, Context, PyTree
from piat_jax.objectives.base import AttackedObjective, Outputs, Terms, method


@method(
    "mart",
    summary="Boosted cross-entropy plus a divergence that weights misclassified examples more.",
    paper="Wang et al. (2020), ICLR",
)
class MART(AttackedObjective):
    """MART: minimise `mean_i [ BCE(z'_i, y_i) + beta (1 - p_y(x_i)) KL(p_i || p'_i) ]`.

    `BCE(z, y) = -log p_y - log(1 - max_{k != y} p_k)`. Train-mode forwards: x, x'. Nothing is detached: gradients flow
    through both arguments of the KL and through the weight `1 - p_y(x)`. The attack maximises cross-entropy.

    Attributes:
      beta: 5 for ResNet-18, 6 for wide ResNets in MART's code; 6 in Consistency-AT and RPAT.
      attack: the original's is `bind(pgd, start="normal")`, the configs' default (in L2 with `l2_rule="trades"`, as in
        RPAT's code).
      model, attack_batch_norm: as in `AttackedObjective`.

    Source: Wang et al. (2020), ICLR, "Improving adversarial robustness requires revisiting misclassified examples". As
    in its code, small constants avoid logarithms of 0: `1.0001 - p + 1e-12` inside BCE's second logarithm, `p' + 1e-12`
    inside the KL's, and the weight is `1.0000001 - p_y`.
    """

    beta: float = 5.0

    attack_options: ClassVar[dict[str, Any]] = {"start": "normal", "l2_rule": "trades"}

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """Boosted cross-entropy on the adversarial images, plus beta times the weighted divergence."""
        (clean, adversarial) = (outputs.logits[k] for k in ("clean", "adversarial"))
        divergence = weighted_divergence(clean, adversarial, outputs.batch.clean.target)
        boosted = losses.boosted_cross_entropy(adversarial, outputs.target)
        return Terms(boosted, self.beta * divergence, {"regularizer": jnp.mean(divergence)})


def weighted_divergence(logits: Array, adversarial_logits: Array, labels: Array) -> Array:
    """`(1.0000001 - p_y) sum_c p_c (log p_c - log(p'_c + 1e-12))`, one value per example.

    >>> round(weighted_divergence(jnp.zeros((1, 2)), jnp.array([[0.0, -99.0]]), jnp.array([0])).item(), 2)
    6.56
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    p, log_q = jnp.exp(log_p), jnp.log(jax.nn.softmax(adversarial_logits.astype(jnp.float32)) + 1e-12)
    weight = 1.0000001 - of_label(p, labels)
    return weight * jnp.sum(p * (log_p - log_q), axis=-1)
