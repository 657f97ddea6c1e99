"""Robust perception adversarial training (Wang & Liu, 2025)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.checks import check_choice, check_range
from piat_jax.core.rng import named_key, symmetric_beta
from piat_jax.core.types import AdversarialBatch, Array, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import Outputs, Terms, Wrapper, reached, static, wrapper

DISTANCES = {
    "mse": lambda first, second: jnp.mean((first - second) ** 2, axis=-1),
    "kl": losses.kl_divergence,
    "js": losses.jensen_shannon,
    "cosine": losses.cosine_distance,
}


@wrapper(
    "rpat",
    summary="Makes logits change evenly along the perturbation, by a penalty at its mid-point.",
    paper="Wang and Liu (2025), arXiv:2508.02186, the RPAT paper, Eq. 3",
)
class RPAT(Wrapper):
    """RPAT around any method: adds `weight mean_i D( (z~_i - z_i) / alpha, (z'_i - z~_i) / (1 - alpha) )`.

    `z~` are the logits at `x~ = x + alpha (x' - x)`. The term is 0 if the logits are linear between x and x'.
    Gradients flow through all three logit vectors.

    Train-mode forwards: those of the inner method, then x~, then x unless the inner method forwards x: x', x~, x around
    PGD-AT (2B images around Consistency); x, x', x, x~ around TRADES; x, x', x~ around MART.

    Attributes:
      inner: the method.
      weight: 1, for the "code" scale.
      alpha: share of the perturbation at x~, as in the paper. The rate r in the benchmarks' code is the clean image's
        share, `1 - alpha`. Both use 0.5.
      alpha_from: "fixed", or a share drawn for each batch, with b ~ Beta(0.75, 0.75): "beta-" is min(b, 1 - b), "beta+"
        max(b, 1 - b), clipped to [0.01, 0.99]. The paper's Fig. 4b compares all three.
      scale: "paper", the differences as above, or "code", both times `alpha (1 - alpha)`. With "code" the squared
        distance is that of the released code, between `z~` and `(1 - alpha) z + alpha z'`; the paper's is 16 times as
        large at alpha = 0.5.
      distance: D: "mse", mean over classes; "kl", `KL(softmax(first) || softmax(second))`; "js", Jensen-Shannon of the
        same softmaxes; "cosine", 1 minus the cosine of the two vectors, on which the scale has no effect.
      start: share of the run's epochs before it begins.

    Source: Wang & Liu (2025), arXiv:2508.02186, Eq. 3, and the code of its benchmarks. The paper names KL, JS and
    cosine as other measures between the two differences of Eq. 3 (Section 4.2, Figure 4a) without formulas, and the
    benchmarks' code has only MSE. Here D compares the two differences in Eq. 3's order. KL and JS need distributions,
    hence the softmax, and for them "code" acts as a temperature. The "KL loss" of Section 5.3 belongs to ReBAT, against
    a teacher, and is another method. Around MART, beta is 6.
    """

    weight: float = 1.0
    alpha: float = 0.5
    alpha_from: str = static(default="fixed")
    scale: str = static(default="code")
    distance: str = static(default="mse")
    start: float = 0.0

    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"mart": {"beta": 6.0}}

    def __post_init__(self) -> None:
        super().__post_init__()
        # At 0 and 1 one of the differences is between a point and itself.
        check_range("alpha", self.alpha, 0.01, 0.99)
        check_choice("alpha_from", self.alpha_from, ("fixed", "beta-", "beta+"))
        check_choice("scale", self.scale, ("code", "paper"))
        check_choice("distance", self.distance, DISTANCES)

    @property
    def forwards(self) -> tuple[str, ...]:
        """The inner method's forwards, then the mid-point, then clean unless it is among them."""
        inner = super().forwards
        return (*inner, "mid", *(() if "clean" in inner else ("clean",)))

    def inputs(self, batch: AdversarialBatch) -> dict[str, Array]:
        """The inner method's images and the mid-point."""
        inputs = super().inputs(batch)
        clean = inputs["clean"]
        return {**inputs, "mid": clean + self._alpha(batch) * (inputs["adversarial"] - clean)}

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Craft as the inner method does; attach the drawn alpha, if it is not fixed."""
        adversarial = super().perturb(variables, objective_state, batch, context)
        if self.alpha_from == "fixed":
            return adversarial
        share = symmetric_beta(0.75, *jax.random.uniform(named_key(context.key, "rpat"), (2,), jnp.float32))
        end = jnp.minimum if self.alpha_from == "beta-" else jnp.maximum
        # At 0 and 1 one of the differences is between a point and itself.
        drawn = jnp.clip(end(share, 1.0 - share), 0.01, 0.99)
        return self.hand(adversarial, drawn)

    def _alpha(self, batch: AdversarialBatch) -> Array | float:
        return self.alpha if self.alpha_from == "fixed" else self.handed(batch)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The inner method's terms, plus the distance between the two differences."""
        terms = super().terms(outputs, objective_state, context)
        clean, mid, adversarial = (outputs.logits[k].astype(jnp.float32) for k in ("clean", "mid", "adversarial"))
        alpha = self._alpha(outputs.batch)
        first, second = (1.0 - alpha) * (mid - clean), alpha * (adversarial - mid)
        if self.scale == "paper":
            first, second = (d / (alpha * (1.0 - alpha)) for d in (first, second))
        distance = DISTANCES[self.distance](first, second)
        weight = jnp.where(reached(self.start, context), self.weight, 0.0)
        metrics = {**terms.metrics, "robust_perception": jnp.mean(distance)}
        return terms._replace(other=terms.other + weight * distance, metrics=metrics)
