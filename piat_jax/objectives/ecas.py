"""Entropy-guided cyclical adversarial strategy (ECAS)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError, check_at_least, check_choice, check_range
from piat_jax.core.forward import forward_keys
from piat_jax.core.rng import named_key
from piat_jax.core.types import AdversarialBatch, Array, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import Wrapper, static, wrapper
from piat_jax.objectives.wrapper_checks import (
    attack_options,
    check_attack_takes,
    check_only_one_chooses,
    hold_to_radius,
)

SCHEDULERS = ("fixed", "linear", "cyclic_batch", "cyclic")


@wrapper(
    "ecas",
    summary="Cycles the radius over epochs and adapts it to the entropy of each prediction.",
    paper="Kuurila-Zhang et al., the ECAS paper",
)
class ECAS(Wrapper):
    """ECAS: `eps_i` is the smallest level if `H(p(x_i)) > high`, a random big one if `< low`, else the cyclic one.

    H is the entropy of the clean prediction in nats. One big level is drawn for the whole batch. For all examples the
    step size is `reach` times the cyclic radius, divided by the number of steps.

    Train-mode forwards: x for the entropy, before the attack (none with `entropy=False` or
    `entropy_batch_norm="eval"`), then those of the inner method.

    Attributes:
      inner: the method; its attack must take `eps`, `step_size` and `start_eps`, as `pgd` does.
      eps: the nominal radius, unless an outer wrapper sets one (CFA, ReBAT's `strong`). Levels are multiples of an
        eighth of it, 1/255 at the paper's 8/255.
      levels: the radii to cycle through: 3 to 12 for PGD-AT, 5 to 9 for TRADES, 6 to 15 for AWP. They are sorted.
      num_big: how many of the largest levels to draw from: 3, and 2 for TRADES (the code; Algorithm 1 has 3).
      reach: the sum of the attack's step sizes divided by the cyclic radius, 2: with 10 steps, 0.2 radii per step.
      entropy: whether to use entropy; False uses the scheduler alone ("+ Cyclic" of Table 1).
      entropy_low, entropy_high: 1.3 and 2.274 for CIFAR-10, 0.565 and 0.988 of ln 10; give 3.35 and 4.582 for
        CIFAR-100, 0.727 and 0.995 of ln 100. The paper measures them as the mean entropy of a trained and an untrained
        model.
      scheduler: Table 1's "cyclic" (the level with index epoch modulo their count), "cyclic_batch" (by optimizer step),
        "linear" (from the smallest to the largest over the run) or "fixed" (`eps`).
      clip: for AWP: perturbations start in the ball of `eps` and are projected back onto it before the loss.
      entropy_batch_norm: BatchNorm in the forward for the entropy: "train", which updates the running statistics, as
        the code does in all batches of an epoch but the first, or "eval".

    Source: Kuurila-Zhang et al., Adaptive Adversarial Norm Space for Efficient Adversarial Training (BMVC), its
    Algorithm 1 and its code, whose list of levels includes the largest one, unlike Eq. 2.
    Its TRADES attacks with cross-entropy and a uniform start on CIFAR-10, with the KL and start="normal" on CIFAR-100;
    `inner_options` and `attack_options` are CIFAR-10's. Its AWP on CIFAR-10 feeds unnormalised images to a network
    trained on normalised ones to compute the entropy; this is not done here.
    """

    eps: float = 8 / 255
    levels: tuple[float, ...] = (3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0)
    num_big: int = static(default=3)
    reach: float = 2.0
    entropy: bool = static(default=True)
    entropy_low: float = 1.3
    entropy_high: float = 2.274
    scheduler: str = static(default="cyclic")
    clip: bool = static(default=False)
    entropy_batch_norm: str = static(default="train")

    attack_options: ClassVar[Mapping[str, Any]] = {"start": "uniform"}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "trades": {"levels": (5.0, 6.0, 7.0, 8.0, 9.0), "num_big": 2},
        "awp": {
            "levels": (6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0),
            "num_big": 3,
            "clip": True,
        },
    }
    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "pgd_at": {"label_smoothing": 0.3},
        "trades": {"clean_forwards": 1, "attack_loss": "cross_entropy"},
        "pgd_at+awp": {"label_smoothing": 0.0, "attack_batch_norm": "eval"},
    }
    chooses_attack: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.levels:
            raise InputError("levels=() is empty; give the radii in units of eps / 8, such as (3.0, 4.0, 5.0)")
        for level in self.levels:
            check_at_least("levels", level, 0)
        check_range("num_big", self.num_big, 1, len(self.levels))
        check_choice("scheduler", self.scheduler, SCHEDULERS)
        check_choice("entropy_batch_norm", self.entropy_batch_norm, ("train", "eval"))
        check_attack_takes(self, "eps", "step_size", "start_eps")
        check_only_one_chooses(self)

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Run the inner method's attack, with each example's radius."""
        # In units of the nominal radius, which may differ between examples.
        levels = jnp.sort(jnp.stack([jnp.asarray(level, jnp.float32) for level in self.levels])) / 8
        nominal = context.attack.get("eps", self.eps)
        cyclic = self._scheduled(levels, context)
        radii, after_entropy = jnp.broadcast_to(cyclic, batch.labels.shape), None
        adjusted = {}
        if self.entropy:
            train = self.entropy_batch_norm == "train"
            keys = forward_keys(self.model, context.key, batch.indices, "entropy")
            logits, model_state = self.model.apply(*variables, batch.images, train=train, key=keys)
            if train:
                variables, after_entropy = variables._replace(model_state=model_state), model_state
            which = jax.random.randint(named_key(context.key, "ecas"), (), 0, self.num_big)
            entropy = prediction_entropy(logits)
            lower, raise_ = entropy > self.entropy_high, entropy < self.entropy_low
            radii = jnp.where(lower, levels[0], radii)
            radii = jnp.where(raise_, levels[-self.num_big :][which], radii)
            adjusted = {"radius_lowered": jnp.mean(lower)}
            for number in range(self.num_big):
                adjusted[f"radius_raised_{number + 1}"] = jnp.mean(raise_ & (which == number))
        radii = radii * nominal
        steps = context.attack.get("steps", attack_options(self.inner).get("steps", 10))
        context = context.with_attack(eps=radii, step_size=self.reach / steps * cyclic * nominal)
        if self.clip:
            context = context.with_attack(start_eps=nominal)
        adversarial = super().perturb(variables, objective_state, batch, context)
        if self.clip:
            adversarial = hold_to_radius(adversarial, nominal, attack_options(self.inner).get("norm", "linf"))
        # Running statistics from the inner method started from these, so they are newer.
        if adversarial.model_state is None:
            adversarial = adversarial._replace(model_state=after_entropy)
        return self.hand(adversarial._replace(metrics={**adversarial.metrics, **adjusted}), radii)

    def _scheduled(self, levels: Array, context: Context) -> Array:
        if self.scheduler == "fixed":
            return jnp.ones((), jnp.float32)
        if self.scheduler == "linear":
            share = context.epoch / jnp.maximum(context.epochs - 1, 1)
            return levels[0] + share * (levels[-1] - levels[0])
        count = context.epoch if self.scheduler == "cyclic" else context.step
        return levels[count % len(self.levels)]


def prediction_entropy(logits: Array) -> Array:
    """`-sum_c p_c log p_c` in nats, `[B]`; a probability of 0 adds 0.

    >>> prediction_entropy(jnp.array([[0.0, 0.0], [0.0, 1000.0]])).round(4).tolist()
    [0.6930999755859375, 0.0]
    """
    return jnp.sum(jax.scipy.special.entr(jax.nn.softmax(logits.astype(jnp.float32))), axis=-1)
