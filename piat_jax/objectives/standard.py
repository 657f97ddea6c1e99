"""Training without an attack."""

from typing import ClassVar

from piat_jax import losses
from piat_jax.core.types import AdversarialBatch, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import AttackedObjective, Outputs, Terms, method


@method(
    "standard",
    title="Standard",
    summary="Ordinary training on clean images, the reference for the cost of robustness.",
    paper="none",
)
class Standard(AttackedObjective):
    """Ordinary training: minimise `mean_i CE(z(x_i), y_i)`; the reference for the cost of robustness.

    Train-mode forwards: x. The attack is not used, and wrappers that need adversarial images refuse this method. Use it
    to train the standard teacher of `Distillation`.
    """

    attacks: ClassVar[bool] = False

    @property
    def forwards(self) -> tuple[str, ...]:
        """Only clean images."""
        return ("clean",)

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Nothing is perturbed."""
        return AdversarialBatch(batch, batch.images)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """Cross-entropy."""
        return Terms(losses.cross_entropy(outputs.logits["clean"], outputs.target))
