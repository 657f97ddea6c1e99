"""PGD adversarial training (Madry et al., 2018)."""

import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.types import AdversarialBatch, Array, Aux, Context, PyTree
from piat_jax.objectives.base import AttackedObjective, accuracy, objective


@objective
class PGDAT(AttackedObjective):
    """PGD-AT: minimise `mean_i CE(z(x'_i), y_i)`.

    Train-mode forwards: x'. Attributes: those of `AttackedObjective`.

    Source: Madry et al. (2018), arXiv:1706.06083; PIAT paper, Eq. 4. As SEAT and Generalist, PIAT's lineage, craft:
    uniform start, BatchNorm in evaluation mode. robust_overfitting also forwards the clean batch after the optimizer
    step, for logging, which mixes clean statistics into BatchNorm's; that is not part of the method and not done here.
    """

    def loss(
        self, params: PyTree, model_state: PyTree, objective_state: PyTree, batch: AdversarialBatch, context: Context
    ) -> tuple[Array, Aux]:
        """Cross-entropy on the adversarial images."""
        labels = batch.clean.labels
        logits, model_state = self.forward(params, model_state, batch.images)
        loss = jnp.mean(losses.cross_entropy(logits, labels))
        return loss, Aux(model_state, {"loss": loss, "adversarial_accuracy": accuracy(logits, labels)})
