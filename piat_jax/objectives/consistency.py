"""Consistency regularization between two augmentations (Tack et al., 2022)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.checks import InputError, check_range
from piat_jax.core.types import Context, PyTree
from piat_jax.objectives.base import Outputs, Terms, Wrapper, wrapper


@wrapper(
    "consistency",
    title="Consistency",
    summary="Makes the adversarial predictions for two augmentations of each image agree.",
    paper="Tack et al. (2022), arXiv:2103.04623",
)
class Consistency(Wrapper):
    """Consistency around any method: its loss on 2B examples, plus `weight mean_i JS_T(z'_i, z'_{i+B})`.

    Examples i and i + B are two augmentations of one image, attacked separately in one batch. `JS_T` is the
    Jensen-Shannon divergence of the predictions at temperature T, with gradients through both and no factor T^2.

    Train-mode forwards: those of the inner method, on the 2B images.

    Attributes:
      inner: the method.
      weight: 1, the code's default.
      temperature: T; values below 1 sharpen the predictions.

    Source: Tack et al. (2022), arXiv:2103.04623, and its code. Around TRADES it forwards the clean batch once; around
    MART beta is 6. Configure its augmentation (AutoAugment and Cutout) in the data set.
    """

    weight: float = 1.0
    temperature: float = 0.5

    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"trades": {"clean_forwards": 1}, "mart": {"beta": 6.0}}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("temperature", self.temperature, 0, float("inf"), open_low=True)

    @property
    def views(self) -> int:
        """Two augmentations of each example."""
        return 2

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The inner method's terms, plus the divergence between the halves of the adversarial logits."""
        terms = super().terms(outputs, objective_state, context)
        adversarial = outputs.logits["adversarial"]
        if adversarial.shape[0] % 2:
            raise InputError(
                f"a batch of {adversarial.shape[0]} does not hold two views; give [2 * B], one view after the other"
            )
        divergence = losses.jensen_shannon(*jnp.split(adversarial, 2), temperature=self.temperature)
        # Both views of an example get its divergence, so that the mean over 2B is the mean over B.
        other = terms.other + self.weight * jnp.tile(divergence, 2)
        return terms._replace(other=other, metrics={**terms.metrics, "consistency": jnp.mean(divergence)})
