"""Adversarial training with learnable attack strategy, LAS-AT (Jia et al., 2022)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.attacks import pgd
from piat_jax.core.checks import InputError, check_at_least, check_count
from piat_jax.core.forward import forward_keys, make_logits_fn
from piat_jax.core.rng import example_keys, flat_draw, named_key
from piat_jax.core.types import AdversarialBatch, Array, Aux, Batch, Context, Model, PyTree, Variables
from piat_jax.objectives.base import Outputs, Resources, Terms, Wrapper, WrapperState, accuracy, static, wrapper
from piat_jax.objectives.wrapper_checks import (
    attack_options,
    check_attack_takes,
    check_only_one_chooses,
    check_sees_the_images,
    hold_to_radius,
    innermost,
)


class Strategy(NamedTuple):
    """The strategy network and the momentum of its SGD."""

    params: PyTree
    model_state: PyTree
    momentum: PyTree


class Drawn(NamedTuple):
    """The actions drawn for a batch."""

    actions: Array  # [B, heads], the index of each choice
    beta: Array | None = None  # [B], if there are `betas`
    own: Strategy | None = None  # the strategy that chose, unless drawn for the strategy's own step


HEADS = ("eps_levels", "step_counts", "step_levels", "betas")


@wrapper(
    "las",
    title="LAS-AT",
    summary="A strategy network chooses each example's radius, steps and step size.",
    paper="Jia et al. (2022), arXiv:2203.06616",
)
class LAS(Wrapper):
    """LAS: draws `eps_i, K_i, alpha_i` (and `beta_i`) from a network's `pi(a | x_i)`, which learns by REINFORCE.

    On steps `interval`, `2 interval`, ... (1-based), before it chooses, the strategy network takes a step. It draws its
    own actions, crafts adversarial images x' with them, and minimises `-R sum_heads mean_i log pi(a_i | x_i)` with
    `R = R1 + R2 + R3`. R1 is the current model's loss on x': plain cross-entropy in evaluation mode; with `betas`,
    `CE(x) + mean_i beta_i KL(p(x_i) || p(x'_i))` in training mode. Then a copy of the model takes a step on x', using
    the method's full loss and the run's optimizer without momentum. R2 is `robust_reward` times the copy's accuracy
    under PGD-10 (two restarts), R3 `clean_reward` times its clean accuracy. The copy is attacked in training mode and
    judged in evaluation mode.

    Train-mode forwards: those of the inner method; with `betas`, x and x' of R1 come first in steps in which the
    strategy learns. The strategy network learns in training mode and chooses for the model in evaluation mode. The
    copy's forwards do not update the model's running statistics.

    Attributes:
      inner: the method; its attack must be `pgd`. Its `steps` is replaced by the largest of `step_counts`.
      strategy: a model with `num_actions(...)` outputs; the paper's is a ResNet-18.
      eps: the nominal radius; levels are multiples of an eighth of it, 1/255 at the paper's 8/255. Uniform starts are
        drawn in its ball, and R2's attack uses it, with the attack's own step size. In crafting, a radius from an
        outer wrapper (CFA, ReBAT's `strong`) replaces it.
      eps_levels: choices of the radius: 3 to 15 for PGD-AT, 5 to 9 for TRADES (5 to 10 on CIFAR-100), 7 to 15 for AWP.
      step_counts: choices of the number of steps: 3 to 14 (3 to 12), 7 to 14, 8 to 16 (8 to 15).
      step_levels: choices of the step size: 1 to 5, 2 to 4, 2 to 5.
      betas: choices of the factor on the adversarial part of the loss; none, or 5 to 9 for TRADES, whose own beta must
        then be 1. AWP must go outside LAS to see the factors.
      interval: optimizer steps between two steps of the strategy: 20; 1 for TRADES; 1 for AWP (10 on CIFAR-100).
      learning_rate, momentum, weight_decay: the strategy's SGD: 1e-4 and, except for PGD-AT, 0.9 and 5e-4.
      max_norm: the largest gradient norm of the strategy; larger gradients are clipped.
      loss_limit: R1 is clipped to [0, loss_limit]: 10, and 20 for TRADES.
      robust_reward, clean_reward: 4 and 2 for PGD-AT; 8 and 4 for TRADES (8 and 2 on CIFAR-100); 1 and 1 for AWP
        (4 and 2).
      clip: for AWP: perturbations are projected onto the ball of `eps` before the model's loss, but not before the
        reward.

    Source: Jia et al. (2022), arXiv:2203.06616, and its code with its README's ranges; the order is the code's. Four
    things in the code are not done here: the attack on the copy updates the copy's running statistics; that attack
    stops at an example once it is misclassified; the copy of LAS-TRADES forwards x twice; LAS-AWP computes rewards
    without mean and std. PGD-AT's label smoothing is 0.3, 0.4 on CIFAR-100 and 0.2 on TinyImageNet. The code counts
    the milestones of the strategy's learning rate in model steps, and an interval of 20 never reaches them: here the
    rate is constant.
    """

    strategy: Model = static()
    eps: float = 8 / 255
    eps_levels: tuple[float, ...] = tuple(float(level) for level in range(3, 16))
    step_counts: tuple[int, ...] = static(default=tuple(range(3, 15)))
    step_levels: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)
    betas: tuple[float, ...] = ()
    interval: int = static(default=20)
    learning_rate: float = 1e-4
    momentum: float = 0.0
    weight_decay: float = 0.0
    max_norm: float = 1.0
    loss_limit: float = 10.0
    robust_reward: float = 4.0
    clean_reward: float = 2.0
    clip: bool = static(default=False)

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "trades": {
            "eps_levels": (5.0, 6.0, 7.0, 8.0, 9.0),
            "step_counts": (7, 8, 9, 10, 11, 12, 13, 14),
            "step_levels": (2.0, 3.0, 4.0),
            "betas": (5.0, 6.0, 7.0, 8.0, 9.0),
            "interval": 1,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "loss_limit": 20.0,
            "robust_reward": 8.0,
            "clean_reward": 4.0,
        },
        "awp": {
            "eps_levels": (7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0),
            "step_counts": (8, 9, 10, 11, 12, 13, 14, 15, 16),
            "step_levels": (2.0, 3.0, 4.0, 5.0),
            "interval": 1,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "robust_reward": 1.0,
            "clean_reward": 1.0,
            "clip": True,
        },
    }
    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "pgd_at": {"label_smoothing": 0.3},
        "trades": {"beta": 1.0, "clean_forwards": 1},
        "pgd_at+awp": {"label_smoothing": 0.0, "attack_batch_norm": "eval"},
    }
    text_fields: ClassVar[Mapping[str, str]] = {"strategy": "resnet18"}
    chooses_attack: ClassVar[bool] = True

    @classmethod
    def from_fields(cls, inner: Any, fields: Mapping[str, Any], resources: Resources) -> Self:
        """As for any wrapper; `strategy` is the name of a network."""
        strategy = resources.network(fields["strategy"], cls.num_actions(**fields))
        return cls(inner, **{**fields, "strategy": strategy})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in HEADS:
            choices = getattr(self, name)
            if not choices and name != "betas":
                raise InputError(f"{name}=() is empty; give at least one choice, such as (8,)")
            for choice in choices:
                check_at_least(name, choice, 1 if name == "step_counts" else 0)
        if not all(isinstance(count, int) for count in self.step_counts):
            raise InputError(f"step_counts={self.step_counts} must be whole numbers, such as (3, 4, 5)")
        check_count("interval", self.interval, 1)
        check_attack_takes(self, "eps", "step_size", "steps", "start_eps", "step_budget")
        check_only_one_chooses(self)
        check_sees_the_images(self)
        beta = getattr(innermost(self), "beta", 1.0)
        if self.betas and isinstance(beta, (int, float)) and beta != 1:
            raise InputError(f"betas multiply the divergence, so its own beta={beta} must be 1; give beta=1")

    def check_part(self, examples: int) -> None:
        """Refuse parts: the strategy learns from one reward of the full batch."""
        raise InputError("microbatches: LAS's strategy learns from one reward of the full batch; leave it at 1")

    @classmethod
    def num_actions(cls, **options: Any) -> int:
        """The number of outputs that `strategy` needs with these options: one for each choice of each head.

        >>> LAS.num_actions(), LAS.num_actions(**LAS.variants["trades"])
        (30, 21)
        """
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        return sum(len({**defaults, **options}[name]) for name in HEADS)

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> Strategy:
        """The strategy network's weights and running statistics, and the momentum of its SGD."""
        own = self.strategy.init(key, images)
        logits, _ = jax.eval_shape(lambda w, s: self.strategy.apply(w, s, images, train=False), *own)
        needed = sum(len(choices) for _, choices in self._heads())
        if logits.shape[-1] != needed:
            raise InputError(f"strategy has {logits.shape[-1]} outputs; give it num_classes={needed}, LAS.num_actions")
        return Strategy(*own, jax.tree.map(jnp.zeros_like, own.params))

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Take the strategy's step if due; then run the inner attack as the strategy chooses for each example."""
        own, model_state = jax.lax.cond(
            (context.step + 1) % self.interval == 0,
            lambda: self.learn(variables, objective_state, batch, context),
            lambda: (objective_state.own, variables.model_state),
        )
        variables = Variables(variables.params, model_state)
        logits, _ = self.strategy.apply(own.params, own.model_state, batch.images, train=False)
        adversarial = self.attacked(variables, objective_state, batch, context, logits)
        if self.clip:
            nominal = context.attack.get("eps", self.eps)
            adversarial = hold_to_radius(adversarial, nominal, attack_options(self.inner).get("norm", "linf"))
        if self.betas and adversarial.model_state is None:  # else crafting continued from R1's statistics
            adversarial = adversarial._replace(model_state=model_state)
        return self.hand(adversarial, self.handed(adversarial)._replace(own=own))

    def attacked(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context, logits: Array
    ) -> AdversarialBatch:
        """Run the inner attack with actions `[B, heads]` drawn from the logits, and attach the actions."""
        actions = sample(self._split(logits), example_keys(named_key(context.key, "las"), batch.indices))
        chosen = {
            name: jnp.stack([jnp.asarray(choice) for choice in choices])[actions[:, head]]
            for head, (name, choices) in enumerate(self._heads())
        }
        nominal = context.attack.get("eps", self.eps)
        context = context.with_attack(
            eps=chosen["eps_levels"] * nominal / 8,
            step_size=chosen["step_levels"] * nominal / 8,
            step_budget=chosen["step_counts"],
            steps=max(self.step_counts),
            start_eps=nominal,
        )
        adversarial = super().perturb(variables, objective_state, batch, context)
        return self.hand(adversarial, Drawn(actions, chosen.get("betas")))

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The inner method's terms, with the adversarial part multiplied by each example's beta."""
        terms = super().terms(outputs, objective_state, context)
        if not self.betas:
            return terms
        return terms._replace(adversarial=self.handed(outputs.batch).beta * terms.adversarial)

    def after_step(
        self, variables: Variables, objective_state: PyTree, batch: AdversarialBatch, aux: Aux, context: Context
    ) -> WrapperState:
        """Store the strategy that chose for this step."""
        state = super().after_step(variables, objective_state, batch, aux, context)
        return state._replace(own=self.handed(batch).own)

    def learn(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> tuple[Strategy, PyTree]:
        """The strategy after its step, and the model's running statistics after R1."""
        own = objective_state.own
        context = context._replace(key=named_key(context.key, "las policy"))
        keys = forward_keys(self.strategy, context.key, batch.indices, "strategy")
        logits, _ = self.strategy.apply(own.params, own.model_state, batch.images, train=True, key=keys)
        adversarial = self.attacked(variables, objective_state, batch, context, logits)
        reward, model_state = self.reward(variables, objective_state, adversarial, context)
        loss = functools.partial(self.policy_loss, keys=keys)
        gradient, statistics = jax.grad(loss, has_aux=True)(own.params, own, adversarial, reward)
        length = jnp.sqrt(sum((jnp.sum(g * g) for g in jax.tree.leaves(gradient)), jnp.float32(0.0)))
        scale = jnp.minimum(1.0, self.max_norm / (length + 1e-6))
        momentum = jax.tree.map(
            lambda v, g, w: self.momentum * v + scale * g + self.weight_decay * w,
            *(own.momentum, gradient, own.params),
        )
        params = jax.tree.map(lambda w, v: w - self.learning_rate * v, own.params, momentum)
        return Strategy(params, statistics, momentum), model_state

    def reward(
        self, variables: Variables, objective_state: PyTree, adversarial: AdversarialBatch, context: Context
    ) -> tuple[Array, PyTree]:
        """`R1 + R2 + R3`, one number for the batch, and the model's running statistics after R1."""
        images, labels, indices, _ = adversarial.clean
        loss, model_state = self._loss_as_it_is(variables, adversarial, context)
        copy = self._trained_copy(Variables(variables.params, model_state), objective_state, adversarial, context)
        known = attack_options(self.inner)
        attacked = pgd(
            make_logits_fn(self.model, copy, train=True),
            images,
            labels,
            key=named_key(context.key, "las reward"),
            indices=indices,
            eps=self.eps,
            step_size=known.get("step_size", self.eps / 4),
            restarts=2,
            norm=known.get("norm", "linf"),
            box=known.get("box", (0.0, 1.0)),
        )
        judge = make_logits_fn(self.model, copy)
        robust, clean = (accuracy(judge(x), labels) for x in (attacked, images))
        loss = jnp.clip(loss, 0.0, self.loss_limit)
        return loss + self.robust_reward * robust + self.clean_reward * clean, model_state

    def _loss_as_it_is(
        self, variables: Variables, adversarial: AdversarialBatch, context: Context
    ) -> tuple[Array, PyTree]:
        """R1 before clipping, and the model's running statistics after it."""
        images, labels, indices, _ = adversarial.clean
        params, model_state = variables
        if not self.betas:
            logits, _ = self.model.apply(params, model_state, adversarial.images, train=False)
            return jnp.mean(losses.cross_entropy(logits, labels)), model_state
        first, second = (forward_keys(self.model, context.key, indices, kind) for kind in ("clean", "adversarial"))
        clean, model_state = self.model.apply(params, model_state, images, train=True, key=first)
        logits, model_state = self.model.apply(params, model_state, adversarial.images, train=True, key=second)
        divergence = self.handed(adversarial).beta * losses.kl_divergence(clean, logits)
        return jnp.mean(losses.cross_entropy(clean, labels) + divergence), model_state

    def _trained_copy(
        self, variables: Variables, objective_state: PyTree, adversarial: AdversarialBatch, context: Context
    ) -> Variables:
        """The model after a trial step on the adversarial images."""
        if context.trial_step is None:
            raise InputError("LAS tries a step of the run's optimizer; set context.trial_step, as train_step does")
        params, model_state = variables
        weights = self.perturb_weights(params, model_state, objective_state, adversarial, context)
        gradient, aux = jax.grad(self.loss, has_aux=True)(weights, model_state, objective_state, adversarial, context)
        return Variables(context.trial_step(gradient, weights, params), aux.model_state)

    def policy_loss(
        self, params: PyTree, own: Strategy, batch: AdversarialBatch, reward: Array, *, keys: Array | None = None
    ) -> tuple[Array, PyTree]:
        """`-R sum_heads mean_i log pi(a_i | x_i)`, and the strategy's running statistics after its forward."""
        images = batch.clean.images
        logits, model_state = self.strategy.apply(params, own.model_state, images, train=True, key=keys)
        actions = self.handed(batch).actions
        each = [losses.cross_entropy(head, actions[:, i]) for i, head in enumerate(self._split(logits))]
        return reward * sum((jnp.mean(value) for value in each), jnp.float32(0.0)), model_state

    def _heads(self) -> list[tuple[str, tuple[Any, ...]]]:
        return [(name, getattr(self, name)) for name in HEADS if getattr(self, name)]

    def _split(self, logits: Array) -> list[Array]:
        heads, begin = [], 0
        for _, choices in self._heads():
            heads.append(logits[:, begin : begin + len(choices)])
            begin += len(choices)
        return heads


def sample(heads: list[Array], keys: Array) -> Array:
    """One action per head, drawn from the softmax of its logits `[B, n]` with each example's key: `[B, heads]`."""
    sizes = [head.shape[-1] for head in heads]

    def draw(key: Array) -> Array:
        return flat_draw(jax.random.gumbel, key, (sum(sizes),), jnp.float32)

    # The argmax of logits plus Gumbel noise is a draw from their softmax.
    noise = jnp.split(jax.vmap(draw)(keys), [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)], axis=-1)
    return jnp.stack([jnp.argmax(head + gumbel, axis=-1) for head, gumbel in zip(heads, noise)], axis=-1)
