"""Learnable boundary guided adversarial training (Cui et al., 2021)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.checks import InputError
from piat_jax.core.forward import forward_keys
from piat_jax.core.types import AdversarialBatch, Array, Aux, Batch, Context, Model, PyTree, Variables
from piat_jax.objectives.base import Outputs, Resources, Terms, Wrapper, WrapperState, static, wrapper
from piat_jax.objectives.learner import Learner, learned, learner, learning_rate
from piat_jax.objectives.trades import TRADES


@wrapper(
    "lbgat",
    title="LBGAT",
    summary="TRADES guided by the logits of a second network that learns the clean images.",
    paper="Cui et al. (2021), arXiv:2011.11164",
)
class LBGAT(Wrapper):
    """LBGAT, around TRADES: `mean_i [ mean_k (z'_ik - g_ik)^2 + beta KL(p_i || p'_i) ]`, g the guide's logits for x.

    The guide minimises the same squared distance plus `CE(g_i, y_i)`, and takes its step after the model's. TRADES' own
    clean cross-entropy is left out. The guide's SGD uses the run's learning rate of the step, inferred from a trial
    step of the run's optimizer.

    Train-mode forwards: those of the inner method. The guide forwards x in training mode twice: before the attack for
    its logits, and later for its gradient. Only the second forward updates its running statistics.

    Attributes:
      inner: `TRADES` itself; other wrappers go outside. beta = 0 gives the paper's LBGAT0, 6 gives LBGAT6.
      guide: a model with the same number of outputs; the code guides a WRN-34-10 with a ResNet-18. Evaluation uses the
        model, not the guide.
      momentum, weight_decay: of the guide's SGD: 0.9 and 2e-4, in the code the model's too.

    Source: Cui et al. (2021), arXiv:2011.11164, and its code, where one SGD updates both networks. Its model forwards
    x' first. With `microbatches`, the guide's logits for a part use the batch statistics of that part.
    """

    guide: Model = static()
    momentum: float = 0.9
    weight_decay: float = 2e-4

    text_fields: ClassVar[Mapping[str, str]] = {"guide": "resnet18"}
    default_inner: ClassVar[str] = "trades"
    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"trades": {"clean_forwards": 1}}
    rescales: ClassVar[bool] = True

    @classmethod
    def from_fields(cls, inner: Any, fields: Mapping[str, Any], resources: Resources) -> Self:
        """As for any wrapper; `guide` is the name of a network."""
        return cls(inner, **{**fields, "guide": resources.network(fields["guide"], resources.classes)})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.inner, TRADES):
            raise InputError(
                f"LBGAT replaces TRADES' clean cross-entropy, but {type(self.inner).__name__} is inside; "
                "put it directly around TRADES, and other wrappers outside"
            )

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> Learner:
        """The guide's initial weights and statistics."""
        return learner(self.guide.init(key, images))

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Craft as the inner method does; attach the guide's logits for the clean images."""
        own, keys = objective_state.own, forward_keys(self.guide, context.key, batch.indices, "guide")
        logits, _ = self.guide.apply(own.params, own.model_state, batch.images, train=True, key=keys)
        adversarial = super().perturb(variables, objective_state, batch, context)
        return self.hand(adversarial, jax.lax.stop_gradient(logits))

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """TRADES' divergence, plus the distance from the guide's logits."""
        terms = super().terms(outputs, objective_state, context)
        guided = logit_distance(outputs.logits["adversarial"], self.handed(outputs.batch))
        metrics = {**terms.metrics, "guided": jnp.mean(guided)}
        return terms._replace(other=guided, metrics=metrics)

    def after_step(
        self, variables: Variables, objective_state: PyTree, batch: AdversarialBatch, aux: Aux, context: Context
    ) -> WrapperState:
        """Take the guide's step, towards the model's logits from before the model's step."""
        state, own = super().after_step(variables, objective_state, batch, aux, context), objective_state.own
        target = self.target_of(batch.clean, aux.logits["adversarial"].shape[-1])

        def loss(params: PyTree) -> tuple[Array, PyTree]:
            images, _, indices, _ = batch.clean
            keys = forward_keys(self.guide, context.key, indices, "guide")
            logits, model_state = self.guide.apply(params, own.model_state, images, train=True, key=keys)
            distance = logit_distance(aux.logits["adversarial"], logits)
            return jnp.mean(distance + losses.cross_entropy(logits, target)), model_state

        gradient, model_state = jax.grad(loss, has_aux=True)(own.params)
        rate = learning_rate("LBGAT", context, variables.params)
        return state._replace(own=learned(own, gradient, model_state, rate, self.momentum, self.weight_decay))


def logit_distance(logits: Array, other_logits: Array) -> Array:
    """`mean_k (z_k - g_k)^2`, `[B]`.

    >>> logit_distance(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 0.0]])).tolist()
    [2.5]
    """
    return losses.squared_distance(logits, other_logits) / logits.shape[-1]
