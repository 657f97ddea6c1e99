"""Training without an attack."""

from piat_jax import losses
from piat_jax.core.types import AdversarialBatch, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import AttackedObjective, Outputs, Terms, objective


@objective
class Standard(AttackedObjective):
    """Ordinary training: minimise `mean_i CE(z(x_i), y_i)`; what robustness costs is measured against it.

    Train-mode forwards: x. The "adversarial" images are the clean ones, so wrappers that need an attack are pointless
    around it. It makes the standard teacher of `Distillation`.
    """

    @property
    def forwards(self) -> tuple[str, ...]:
        """Clean, under the name that wrappers know."""
        return ("adversarial",)

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Nothing is perturbed."""
        return AdversarialBatch(batch, batch.images)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """Cross-entropy."""
        return Terms(losses.cross_entropy(outputs.logits["adversarial"], outputs.batch.clean.labels))
