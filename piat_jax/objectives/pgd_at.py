"""PGD adversarial training (Madry et al., 2018)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from piat_jax import losses
from piat_jax.core.checks import check_range
from piat_jax.core.types import Context, PyTree
from piat_jax.objectives.base import AttackedObjective, Outputs, Terms, method, static


@method(
    "pgd_at",
    summary="Cross-entropy on images perturbed by PGD.",
    paper="Madry et al. (2018), arXiv:1706.06083",
)
class PGDAT(AttackedObjective):
    """PGD-AT: minimise `mean_i CE(z(x'_i), y_i)`.

    Train-mode forwards: x'.

    Attributes:
      label_smoothing: s, the target being `1 - s` on the label and `s / (K - 1)` on every other class; 0 for PGD-AT,
        0.3 in ECAS and LAS-AT.
      model, attack, attack_batch_norm: as in `AttackedObjective`.

    Source: Madry et al. (2018), arXiv:1706.06083; PIAT paper, Eq. 4. As SEAT and Generalist, PIAT's lineage, craft:
    uniform start, BatchNorm in evaluation mode. robust_overfitting also forwards the clean batch after the optimizer
    step, for logging, which mixes clean statistics into BatchNorm's; that is not part of the method and not done here.
    In L2 configs craft as advertorch does, by which Consistency's code, and RPAT's after it, train.
    """

    label_smoothing: float = static(default=0.0)

    attack_options: ClassVar[Mapping[str, Any]] = {"l2_rule": "advertorch"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("label_smoothing", self.label_smoothing, 0, 1)

    @property
    def forwards(self) -> tuple[str, ...]:
        """Adversarial alone."""
        return ("adversarial",)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """Cross-entropy on the adversarial images."""
        labels = outputs.batch.clean.labels
        return Terms(losses.cross_entropy(outputs.logits["adversarial"], labels, smoothing=self.label_smoothing))
