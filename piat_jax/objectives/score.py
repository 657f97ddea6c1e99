"""Self-consistent robust error, SCORE (Pang et al., 2022)."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from piat_jax.core.labels import probabilities
from piat_jax.core.types import AdversarialBatch, Array, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import AttackedObjective, Outputs, Terms, method
from piat_jax.objectives.wrapper_checks import check_attack_takes


@method(
    "score",
    title="SCORE",
    summary="TRADES with squared distances of probabilities in place of cross-entropy and divergence.",
    paper="Pang et al. (2022), arXiv:2202.10103",
)
class SCORE(AttackedObjective):
    """SCORE: minimise `mean_i [ |p_i - y_i|^2 + beta max(|p'_i - p_i|^2 - clip, 0) ]`, sums over classes.

    y is the label's one-hot vector, smoothed by `label_smoothing`. The attack maximises `|p' - p|^2`. Gradients flow
    through both p and p'.

    Train-mode forwards: x, x'.

    Attributes:
      beta: 4 in its README's example with generated data, 3 for the released models.
      clip: the squared distance between p' and p that costs nothing, 0; the paper's "clipped" loss uses other values.
      attack: must not start at the clean images, where the distance has no gradient; the code's start is uniform in the
        ball, the configs' default. The attack must take `loss`, as `pgd` does.
      model, attack_batch_norm, label_smoothing, smoothing_over: as in `AttackedObjective`. The code attacks with batch
        statistics and does not keep them; this is "train".

    Source: Pang et al. (2022), arXiv:2202.10103, and its code for generated data, whose README sets the label smoothing
    to 0. Its code without generated data forwards x' first and also subtracts a bound from the total loss.
    """

    beta: float = 4.0
    clip: float = 0.0

    attack_options: ClassVar[dict[str, Any]] = {"start": "uniform"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_attack_takes(self, "loss")

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Maximise the distance from the clean prediction, computed once."""
        clean = prediction(self.logits_fn(variables)(batch.images))

        def distance(logits: Array, _: Array) -> Array:
            return squared_error(prediction(logits), clean)

        return self.craft(variables, batch, context, loss=distance)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """Beta times the predictions' distance beyond the clip, plus the clean prediction's distance from the label."""
        clean, adversarial = (prediction(outputs.logits[kind]) for kind in ("clean", "adversarial"))
        target = probabilities(outputs.target, clean.shape[-1])
        distance = squared_error(adversarial, clean)
        robust = self.beta * jnp.maximum(distance - self.clip, 0.0)
        return Terms(robust, squared_error(clean, target), {"regularizer": jnp.mean(distance)})


def prediction(logits: Array) -> Array:
    """The softmax in float32."""
    return jax.nn.softmax(logits.astype(jnp.float32))


def squared_error(first: Array, second: Array) -> Array:
    """`|p - q|^2`, `[B]`, a sum over classes.

    >>> squared_error(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])).tolist()
    [2.0]
    """
    return jnp.sum((first - second) ** 2, axis=-1)
