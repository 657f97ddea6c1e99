"""Helper-based adversarial training (Rade & Moosavi-Dezfooli, 2022)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.types import AdversarialBatch, Array, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import Outputs, Resources, Terms, Wrapper, wrapper
from piat_jax.objectives.distillation import check_teacher


@wrapper(
    "hat",
    title="HAT",
    summary="Adds helper examples beyond the adversarial ones, labelled by a standard network.",
    paper="Rade and Moosavi-Dezfooli (2022), ICLR",
)
class HAT(Wrapper):
    """HAT around any method: adds `weight mean_i CE(z(x_h), y_h)`, `x_h = x + reach (x' - x)`.

    `y_h` is the class that a network trained on clean images predicts for x'. x_h may lie outside the box.

    Train-mode forwards: those of the inner method, then x_h: x, x', x_h around TRADES. The standard network runs in
    evaluation mode and is never differentiated.

    Attributes:
      inner: the method; in the paper TRADES with beta = 2.5, which forwards x once.
      standard: weights and statistics of a network trained on clean images, with the model's architecture.
      weight: gamma, 0.5.
      reach: 2.

    Source: Rade and Moosavi-Dezfooli, "Reducing excessive margin to achieve a better accuracy vs. robustness trade-off"
    (ICLR 2022), and its code: the README's weights for CIFAR-10 (beta is 3.5 with additional data) and the argument
    parser's reach. Its PGD-AT also adds the clean cross-entropy.
    """

    standard: Variables
    weight: float = 0.5
    reach: float = 2.0

    text_fields: ClassVar[Mapping[str, str]] = {"standard": ""}
    teachers: ClassVar[Mapping[str, str]] = {"standard": "standard"}
    default_inner: ClassVar[str] = "trades"
    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"trades": {"beta": 2.5, "clean_forwards": 1}}

    @classmethod
    def from_fields(cls, inner: Any, fields: Mapping[str, Any], resources: Resources) -> Self:
        """As for any wrapper; `standard` is the folder of a run."""
        return cls(inner, **{**fields, "standard": resources.teacher("standard", fields["standard"])})

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> tuple[()]:
        """No state; checks that the standard network fits the model."""
        check_teacher("standard", self.standard, variables)
        return ()

    @property
    def forwards(self) -> tuple[str, ...]:
        """The inner method's forwards, then the helper examples."""
        return (*super().forwards, "helper")

    def inputs(self, batch: AdversarialBatch) -> dict[str, Array]:
        """The inner method's images and the helper examples."""
        inputs = super().inputs(batch)
        clean = inputs["clean"]
        return {**inputs, "helper": clean + self.reach * (inputs["adversarial"] - clean)}

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Craft as the inner method does; attach the labels of the helper examples."""
        adversarial = super().perturb(variables, objective_state, batch, context)
        images = self.inputs(adversarial)["adversarial"]
        return self.hand(adversarial, jnp.argmax(make_logits_fn(self.model, self.standard)(images), axis=-1))

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The inner method's terms, plus the cross-entropy of the helper examples."""
        terms = super().terms(outputs, objective_state, context)
        helper = losses.cross_entropy(outputs.logits["helper"], self.handed(outputs.batch))
        metrics = {**terms.metrics, "helper": jnp.mean(helper)}
        return terms._replace(other=terms.other + self.weight * helper, metrics=metrics)
