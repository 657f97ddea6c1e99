"""Margin-aware instance reweighting (Wang et al., 2021)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.checks import InputError, check_choice
from piat_jax.core.types import Array, Context, PyTree
from piat_jax.objectives.base import Outputs, Terms, Wrapper, reached, signed, static, wrapper


@wrapper(
    "mail",
    summary="Weights examples by their adversarial margin.",
    paper="Wang et al. (2021), arXiv:2106.07904",
)
class MAIL(Wrapper):
    """MAIL around any method: its adversarial part times `w_i = 3 sigmoid(slope (max_{j != y} p'_j - p'_y + bias))`.

    This weights PGD-AT's cross-entropy, TRADES' divergence and MART's boosted cross-entropy, but not clean terms,
    regularizers of wrappers or MART's divergence. The weights come from the adversarial logits of the training forward
    and are constants for the gradient. Before `start` they are 1.

    Train-mode forwards: those of the inner method.

    Attributes:
      inner: the method.
      slope: 10 for MAIL-AT and MAIL-MART, 2 for MAIL-TRADES.
      bias: -0.5 for MAIL-AT and MAIL-MART, 0 for MAIL-TRADES.
      normalization: "code", the factor 3 above, or "paper", which gives a batch's weights mean 1:
        `w_i = B s_i / sum_j s_j` with s the sigmoid. With "code" most weights of MAIL-AT are far below 1, which acts
        like a smaller learning rate.
      start: share of the run's epochs before it begins: 76/120, in epoch 76 (0-based) of 120.

    Source: Wang et al. (2021), arXiv:2106.07904, and its code, whose margin sign is used here (the paper's PM is
    `p'_y - max_{j != y} p'_j`). MAIL-TRADES has beta = 5 and forwards the clean batch once. All variants, MAIL-AT
    included, start the attack from small normal noise.
    """

    slope: float = 10.0
    bias: float = signed(default=-0.5)
    normalization: str = static(default="code")
    start: float = 76 / 120

    attack_options: ClassVar[Mapping[str, Any]] = {"start": "normal"}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"trades": {"slope": 2.0, "bias": 0.0}}
    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"trades": {"beta": 5.0, "clean_forwards": 1}}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("normalization", self.normalization, ("code", "paper"))

    def check_part(self, examples: int) -> None:
        """Refuse parts for the paper's weights, which have mean 1 over the full batch; the code's are independent."""
        super().check_part(examples)
        if self.normalization == "paper":
            raise InputError(
                "microbatches: MAIL's weights have mean 1 over the full batch; leave it at 1, or give "
                "normalization='code'"
            )

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The inner method's terms, with the adversarial part weighted."""
        terms = super().terms(outputs, objective_state, context)
        weights = self.weights(outputs.logits["adversarial"], outputs.batch.clean.labels)
        weights = jnp.where(reached(self.start, context), weights, 1.0)
        metrics = {**terms.metrics, "instance_weight": jnp.mean(weights)}
        return terms._replace(adversarial=weights * terms.adversarial, metrics=metrics)

    def weights(self, logits: Array, labels: Array) -> Array:
        """One weight per example of the batch, constant for the gradient."""
        margins = losses.probability_margin(jax.lax.stop_gradient(logits), labels)
        score = self.slope * (margins + self.bias)
        if self.normalization == "code":
            return 3.0 * jax.nn.sigmoid(score)
        # A softmax of logarithms avoids 0 / 0 for a batch of sigmoids near 0.
        return margins.shape[0] * jax.nn.softmax(jax.nn.log_sigmoid(score))
