"""Inverse adversarial examples (Dong et al., 2023)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.rng import named_key
from piat_jax.core.types import AdversarialBatch, Array, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import Outputs, Terms, Wrapper, wrapper
from piat_jax.objectives.wrapper_checks import check_attack_takes, innermost


@wrapper(
    "uiat",
    title="UIAT",
    summary="Pulls the adversarial prediction towards that of an inverse adversarial image, which has a low loss.",
    paper="Dong et al. (2023), arXiv:2211.00525",
)
class UIAT(Wrapper):
    """UIAT around any method: adds `weight mean_i KL(p'_i || q_i)`, q the prediction for an inverse adversarial image.

    The method's attack crafts that image, with its own start, to minimise `CE(z, y) + KL(p(x) || p) - KL(p(x') || p)`
    in the ball: its prediction is confident in the label, near the clean prediction and far from the adversarial one.
    Gradients flow through p' and q.

    Train-mode forwards: the inverse adversarial images, then those of the inner method.

    Attributes:
      inner: the method, PGD-AT in the code; its attack must take `loss`, as `pgd` does.
      weight: beta, 3.5.

    Source: Dong et al., "The enemy of my enemy is my friend" (CVPR 2023), arXiv:2211.00525. Loss, attack and weight are
    those in the code of DHAT (Zhang et al., 2024), which compares with UIAT. The paper's own text and code were not
    available, so its momentum and its universal perturbation per class are missing here.
    """

    weight: float = 3.5

    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"pgd_at": {"attack_batch_norm": "train"}}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_attack_takes(self, "loss")

    @property
    def forwards(self) -> tuple[str, ...]:
        """The inverse adversarial images, then the inner method's forwards."""
        return ("inverse", *super().forwards)

    def inputs(self, batch: AdversarialBatch) -> dict[str, Array]:
        """The inner method's images and the inverse adversarial images."""
        return {**super().inputs(batch), "inverse": self.handed(batch)}

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Craft as the inner method does; attach the inverse adversarial images."""
        adversarial = super().perturb(variables, objective_state, batch, context)
        method, images = innermost(self), self.inner.inputs(adversarial)
        logits_fn = method.logits_fn(variables)
        clean, attacked = logits_fn(images["clean"]), logits_fn(images["adversarial"])

        def likelihood(logits: Array, labels: Array) -> Array:
            nearer = losses.kl_divergence(clean, logits) - losses.kl_divergence(attacked, logits)
            return -(losses.cross_entropy(logits, labels) + nearer)

        # Counting and added losses of outer wrappers apply only to the inner method's attack.
        options = {name: value for name, value in context.attack.items() if name not in ("patience", "added_loss")}
        context = context._replace(key=named_key(context.key, "uiat"), attack=options, counting=None)
        inverse = method.craft(variables, adversarial.clean, context, loss=likelihood)
        return self.hand(adversarial, inverse.images)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The inner method's terms, plus the divergence from the inverse adversarial prediction."""
        terms = super().terms(outputs, objective_state, context)
        divergence = losses.kl_divergence(outputs.logits["adversarial"], outputs.logits["inverse"])
        metrics = {**terms.metrics, "inverse_divergence": jnp.mean(divergence)}
        return terms._replace(other=terms.other + self.weight * divergence, metrics=metrics)
