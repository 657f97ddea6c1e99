"""Robustness to several norms at once: MAX and AVG (Tramer and Boneh, 2019), SAT and E-AT."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.checks import InputError, check_choice
from piat_jax.core.norms import ALL_NORMS
from piat_jax.core.rng import example_keys, named_key
from piat_jax.core.types import AdversarialBatch, Array, Aux, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import Outputs, Terms, Wrapper, WrapperState, static, wrapper
from piat_jax.objectives.wrapper_checks import attack_options, check_attack_takes, innermost

HOW = ("max", "avg", "random", "errors")
BY = ("batch", "example")


class NormErrors(NamedTuple):
    """Success counts and rates of each norm's attack, `[P]` each."""

    wrong: Array  # int32, examples of this epoch
    total: Array  # int32, examples of this epoch
    rate: Array  # of the previous epoch; 1 for a norm that has not been drawn yet


@wrapper(
    "multi_norm",
    title="Multi-norm",
    summary="Attacks under several norms: the worst, all, or one drawn at random (MAX, AVG, SAT, E-AT).",
    paper="Tramer and Boneh (2019), arXiv:1904.13000; Croce and Hein (2022), arXiv:2105.12508",
)
class MultiNorm(Wrapper):
    """Multi-norm around any method: its attack runs under several norms p, with radius eps_p and step size step_p.

    `how` sets how the adversarial images `x'_p` are used:

        max     for each example, the image with the highest cross-entropy (MAX)
        avg     all images: the mean of the method's loss over the norms (AVG)
        random  the images of one norm, drawn uniformly (SAT)
        errors  the images of one norm, drawn in proportion to the error rate of the training examples under its attack
                in the previous epoch (E-AT, with L-inf and L1)

    A draw per batch runs one attack; a draw per example runs all of them. MSD is available as an attack, for any
    method: `config.attack.name=msd`.

    Train-mode forwards: those of the inner method; with "avg" the adversarial forward repeats for each norm, in order.

    Attributes:
      inner: the method; its attack must take norm, eps and step_size (pgd), or norm and eps (apgd).
      norms: at least two of linf, l2, l1.
      eps: radius in L-inf, the attack's.
      eps_l2: radius in L2: 0.5 for CIFAR-10.
      eps_l1: radius in L1: 12 for CIFAR-10.
      step_l2: step size in L2; in L-inf the attack's step size is used.
      step_l1: step size in L1, the sum of all pixel changes.
      how: max, avg, random, errors.
      by: batch or example: whether "random" and "errors" draw per batch or per example.

    Source: Tramer & Boneh (2019), arXiv:1904.13000; SAT: Madaan et al. (2021), arXiv:2003.02484; E-AT: Croce & Hein
    (2022), arXiv:2105.12508, whose code attacks by APGD with 10 steps (`config.attack.name=apgd`). In L1 the attack is
    APGD-L1 or SLIDE, depending on the configured attack.
    """

    norms: tuple[str, ...] = static(default=ALL_NORMS)
    eps: float = 8 / 255
    eps_l2: float = 0.5
    eps_l1: float = 12.0
    step_l2: float = 0.1
    step_l1: float = 2.0
    how: str = static(default="max")
    by: str = static(default="batch")

    changes_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("how", self.how, HOW)
        check_choice("by", self.by, BY)
        if len(self.norms) < 2 or len(set(self.norms)) < len(self.norms):
            raise InputError(f"norms={self.norms} must be at least two different ones of {', '.join(ALL_NORMS)}")
        for norm in self.norms:
            check_choice("norms", norm, ALL_NORMS)
        check_attack_takes(self, "norm", "eps")

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> Any:
        """Error counts for how="errors", else no state."""
        if self.how != "errors":
            return ()
        zeros = jnp.zeros(len(self.norms), jnp.int32)
        return NormErrors(zeros, zeros, jnp.ones(len(self.norms), jnp.float32))

    def options(self, norm: str, context: Context) -> dict[str, Any]:
        """The attack's options under a norm."""
        known = attack_options(self.inner)
        eps = {"linf": context.attack.get("eps", self.eps), "l2": self.eps_l2, "l1": self.eps_l1}[norm]
        found = {"norm": norm, "eps": eps}
        if norm != "linf" and (not known or "step_size" in known):
            found["step_size"] = {"l2": self.step_l2, "l1": self.step_l1}[norm]
        return found

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Run the inner method's attack under each norm, or under the drawn one."""

        def under(number: int) -> AdversarialBatch:
            return super(MultiNorm, self).perturb(
                variables, objective_state, batch, context.with_attack(**self.options(self.norms[number], context))
            )

        count = len(self.norms)
        if self.how in ("random", "errors"):
            drawn = self._draw(objective_state.own, batch, context)
            if self.by == "batch":
                crafted = jax.lax.switch(drawn, [lambda n=n: under(n) for n in range(count)])
                return self.hand(crafted, jnp.broadcast_to(drawn, batch.labels.shape))
            crafted = [under(number) for number in range(count)]
            return self.hand(_chosen(crafted, drawn), drawn)
        crafted = [under(number) for number in range(count)]
        if self.how == "avg":
            return self.hand(crafted[0], tuple(each.images for each in crafted))
        logits_fn = self._judge(variables)
        values = jnp.stack([losses.cross_entropy(logits_fn(each.images), batch.target) for each in crafted])
        return self.hand(_chosen(crafted, jnp.argmax(values, axis=0)), jnp.argmax(values, axis=0))

    def _judge(self, variables: Variables) -> Any:
        return innermost(self.inner).logits_fn(variables)

    def _draw(self, own: Any, batch: Batch, context: Context) -> Array:
        """The index of the drawn norm: one for the batch, or `[B]`."""
        rate = own.rate if self.how == "errors" else jnp.ones(len(self.norms))
        logits = jnp.log(jnp.maximum(rate, 1e-6))
        key = named_key(context.key, "multi_norm")
        if self.by == "batch":
            return jax.random.categorical(key, logits)
        return jax.vmap(lambda own: jax.random.categorical(own, logits))(example_keys(key, batch.indices))

    @property
    def forwards(self) -> tuple[str, ...]:
        """The inner method's forwards; with "avg" each norm's images replace the adversarial ones."""
        inside = super().forwards
        if self.how != "avg":
            return inside
        kinds = self._kinds()
        return tuple(kind for each in inside for kind in (kinds if each == "adversarial" else (each,)))

    def _kinds(self) -> tuple[str, ...]:
        return ("adversarial", *(f"adversarial_{norm}" for norm in self.norms[1:]))

    def inputs(self, batch: AdversarialBatch) -> dict[str, Array]:
        """The inner method's images; with "avg" also those of the other norms."""
        found = super().inputs(batch)
        if self.how == "avg":
            found |= dict(zip(self._kinds(), self.handed(batch)))
        return found

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The inner method's terms; with "avg" their mean over the norms."""
        if self.how != "avg":
            terms = super().terms(outputs, objective_state, context)
            shares = {
                f"share_{norm}": jnp.mean(self.handed(outputs.batch) == number)
                for number, norm in enumerate(self.norms)
            }
            return terms._replace(metrics={**terms.metrics, **shares})
        each = []
        for kind, images in zip(self._kinds(), self.handed(outputs.batch)):
            seen = outputs._replace(
                logits={**outputs.logits, "adversarial": outputs.logits[kind]},
                batch=outputs.batch._replace(images=images),
            )
            each.append(super().terms(seen, objective_state, context))
        adversarial = jnp.mean(jnp.stack([terms.adversarial for terms in each]), axis=0)
        other: Any = sum(terms.other for terms in each) / len(each)
        return Terms(adversarial, other, each[0].metrics)

    def after_step(
        self, variables: Variables, objective_state: PyTree, batch: AdversarialBatch, aux: Aux, context: Context
    ) -> WrapperState:
        """Count the batch's errors if how="errors"."""
        state = super().after_step(variables, objective_state, batch, aux, context)
        if self.how != "errors":
            return state
        own, drawn = objective_state.own, self.handed(batch)
        wrong = losses.misclassified(aux.logits["adversarial"], batch.clean.labels).astype(jnp.int32)
        own = own._replace(wrong=own.wrong.at[drawn].add(wrong), total=own.total.at[drawn].add(1))
        return state._replace(own=own)

    def after_epoch(self, objective_state: WrapperState, context: Context) -> WrapperState:
        """Compute rates from the counts and reset the counts; a norm that was not drawn keeps its rate."""
        state, own = super().after_epoch(objective_state, context), objective_state.own
        if self.how != "errors":
            return state
        rate = jnp.where(own.total > 0, own.wrong / jnp.maximum(own.total, 1), own.rate).astype(jnp.float32)
        zeros = jnp.zeros_like(own.total)
        return state._replace(own=NormErrors(zeros, zeros, rate))


def _chosen(crafted: list[AdversarialBatch], number: Array) -> AdversarialBatch:
    """For each example the images of batch `number`; all other fields come from the first batch."""
    images = jnp.stack([each.images for each in crafted])
    taken = jnp.take_along_axis(images, number.reshape(1, -1, *[1] * (images.ndim - 2)), axis=0)[0]
    return crafted[0]._replace(images=taken)
