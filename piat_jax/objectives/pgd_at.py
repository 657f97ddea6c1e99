"""PGD adversarial training (Madry et al., 2018)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from piat_jax import losses
from piat_jax.core.types import Context, PyTree
from piat_jax.objectives.base import AttackedObjective, Outputs, Terms, method


@method(
    "pgd_at",
    summary="Cross-entropy on images perturbed by PGD.",
    paper="Madry et al. (2018), arXiv:1706.06083",
)
class PGDAT(AttackedObjective):
    """PGD-AT: minimise `mean_i CE(z(x'_i), y_i)`.

    Train-mode forwards: x'.

    Attributes:
      label_smoothing: 0 for PGD-AT; 0.3, over the other classes, in ECAS and LAS-AT.
      model, attack, attack_batch_norm, smoothing_over: as in `AttackedObjective`.

    Source: Madry et al. (2018), arXiv:1706.06083; PIAT paper, Eq. 4. Crafting follows SEAT and Generalist, from which
    PIAT derives: uniform start, BatchNorm in evaluation mode. robust_overfitting also forwards the clean batch after
    the optimizer step, for logging, which mixes clean statistics into BatchNorm's. This is not part of the method and
    not done here. In L2, configs craft as advertorch does, which Consistency's and RPAT's code follow.
    """

    attack_options: ClassVar[Mapping[str, Any]] = {"l2_rule": "advertorch"}

    @property
    def forwards(self) -> tuple[str, ...]:
        """Only adversarial images."""
        return ("adversarial",)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """Cross-entropy on the adversarial images."""
        return Terms(losses.cross_entropy(outputs.logits["adversarial"], outputs.target))
