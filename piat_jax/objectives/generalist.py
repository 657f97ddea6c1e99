"""Generalist: a natural and a robust learner, mixed (Wang & Wang, 2023)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.averaging.interpolation import PAPER_WEIGHT, interpolate
from piat_jax.core.checks import check_count, check_range
from piat_jax.core.forward import forward_keys
from piat_jax.core.trees import copied
from piat_jax.core.types import AdversarialBatch, Array, Aux, Context, PyTree, Variables
from piat_jax.objectives.base import Wrapper, WrapperState, reached, static, wrapper
from piat_jax.objectives.learner import Learner, learned, learner, learning_rate


class Mixing(NamedTuple):
    """The natural learner, and the averages of weights and statistics."""

    natural: Learner
    of_robust: Variables
    of_natural: Variables
    mixed: Variables


@wrapper(
    "generalist",
    title="Generalist",
    summary="Mixes the averaged weights of the model and of a copy trained on clean images, and restarts both from it.",
    paper="Wang and Wang (2023), arXiv:2303.13813",
)
class Generalist(Wrapper):
    """Generalist around any method: it trains a robust learner w, and a natural learner u learns the clean images.

    u minimises `mean_i CE(z_u(x_i), y_i)`. Both start from the model's weights, and u takes its step after w's. After
    step n, counted from 0, with `d = min((n + 1) / (n + 10), decay)`, for BatchNorm's running statistics too,

        wa <- d wa + (1 - d) w,  ua <- d ua + (1 - d) u,  m <- d m + (1 - d) (share wa + (1 - share) ua)

    m is evaluated. `share` is 1 in the first two thirds of the epochs, then falls linearly to `last_share`. In every
    `every`-th epoch from `start` on, both w and u are set to m after each step; averages and momentum continue. u's SGD
    uses the run's learning rate of the step, inferred from a trial step of the run's optimizer.

    Train-mode forwards: those of the inner method. u forwards x in training mode once.

    Attributes:
      inner: the method, PGD-AT in the paper.
      last_share: 0.4, reached in the last epoch.
      every: 5.
      start: share of the run's epochs before learners start from m: epoch 75 (1-based) of 120.
      decay: the largest decay, 0.999.
      momentum, weight_decay: of the natural learner's SGD: 0.9 and 5e-4; in the code the robust learner's weight decay
        is 3.5e-3.

    Source: Wang & Wang (2023), arXiv:2303.13813, and its code, from which the constants are. In the paper learners
    restart from m at intervals; in the code, and here, they restart in every step of such an epoch. The code picks its
    best epoch from those with at least 88% clean accuracy; here it is chosen as in any run.
    """

    last_share: float = 0.4
    every: int = static(default=5)
    start: float = 74 / 120
    decay: float = 0.999
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("every", self.every, 1)
        check_range("last_share", self.last_share, 0, 1)
        check_range("decay", self.decay, 0, 1)

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> Mixing:
        """Copies of the model's variables."""
        first, *others = (Variables(*copied(variables)) for _ in range(4))
        return Mixing(learner(first), *others)

    def share_now(self, context: Context) -> Array:
        """The robust learner's share of the mix in this epoch."""
        epochs = jnp.asarray(context.epochs)
        begin = 2 * epochs // 3
        fallen = (context.epoch + 1 - begin).astype(jnp.float32) / (epochs - begin).astype(jnp.float32)
        fallen = jnp.clip(fallen, 0.0, 1.0)
        return 1.0 + (self.last_share - 1.0) * fallen

    def due(self, context: Context) -> Array:
        """Whether both learners start the next step from the mix."""
        return reached(self.start, context) & ((context.epoch + 1) % self.every == 0)

    def after_step(
        self, variables: Variables, objective_state: PyTree, batch: AdversarialBatch, aux: Aux, context: Context
    ) -> WrapperState:
        """Take the natural learner's step, update the averages, and set the learner to the mix if due."""
        state, own = super().after_step(variables, objective_state, batch, aux, context), objective_state.own
        target = self.target_of(batch.clean, next(iter(aux.logits.values())).shape[-1])

        def loss(params: PyTree) -> tuple[Array, PyTree]:
            model_state, (images, _, indices, _) = own.natural.model_state, batch.clean
            keys = forward_keys(self.model, context.key, indices, "natural")
            logits, model_state = self.model.apply(params, model_state, images, train=True, key=keys)
            return jnp.mean(losses.cross_entropy(logits, target)), model_state

        gradient, model_state = jax.grad(loss, has_aux=True)(own.natural.params)
        rate = learning_rate("Generalist", context, variables.params)
        natural = learned(own.natural, gradient, model_state, rate, self.momentum, self.weight_decay)
        decay = jnp.minimum(PAPER_WEIGHT(context.step), self.decay)
        of_robust = interpolate(own.of_robust, variables, decay)
        of_natural = interpolate(own.of_natural, natural.variables, decay)
        mixed = interpolate(own.mixed, interpolate(of_robust, of_natural, self.share_now(context)), decay)
        params, model_state = self.started(natural.variables, mixed, context)
        natural = natural._replace(params=params, model_state=model_state)
        return state._replace(own=Mixing(natural, of_robust, of_natural, mixed))

    def next_variables(self, variables: Variables, objective_state: PyTree, context: Context) -> Variables:
        """The inner method's variables, or the mix if due."""
        variables = super().next_variables(variables, objective_state, context)
        return self.started(variables, objective_state.own.mixed, context)

    def started(self, variables: Variables, mixed: Variables, context: Context) -> Variables:
        """The variables, or the mix if due."""
        due = self.due(context)
        return jax.tree.map(lambda own, mix: jnp.where(due, mix, own), variables, mixed)

    def eval_variables(self, variables: Variables, objective_state: PyTree) -> Variables:
        """The mix."""
        return objective_state.own.mixed
