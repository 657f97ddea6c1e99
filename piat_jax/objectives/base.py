"""What the objectives share: how one is declared, and crafting by an attack on the current weights."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.bound import bind
from piat_jax.core.checks import check_at_least, check_choice
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.rng import named_key
from piat_jax.core.types import AdversarialBatch, Array, Attack, Aux, Batch, Context, Model, PyTree, Variables

T = TypeVar("T")


def static(**options: Any) -> Any:
    """A field that is part of the compiled program; every other field of an objective is traced."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(static,))
def objective(cls: type[T]) -> type[T]:
    """Declare an objective: a frozen dataclass and a pytree, so that its weights can change without recompiling."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, kw_only=True)(cls))


@objective
class AttackedObjective:
    """Base of the methods whose adversarial batch comes from one attack on the current weights.

    Attributes:
      model: the model that is trained.
      attack: crafts the batch; called as `attack(logits_fn, images, labels, key=..., indices=...)`. Fix its
        hyper-parameters with `bind`.
      attack_batch_norm: BatchNorm while crafting, "eval" (running statistics: SEAT, TRADES, MART and most others) or
        "train" (batch statistics: robust_overfitting, AWP). Crafting never updates the statistics; the codes that
        attack in train mode do let every attack step update them.
    """

    model: Model = static()
    attack: Attack
    attack_batch_norm: str = static(default="eval")

    # What the method's paper sets differently from the attack's own defaults.
    attack_options: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        if inspect.isfunction(self.attack):
            # A plain function could be no leaf of a pytree.
            object.__setattr__(self, "attack", bind(self.attack))
        check_choice("attack_batch_norm", self.attack_batch_norm, ("eval", "train"))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if field.type in ("float", float):
                check_at_least(field.name, getattr(self, field.name), 0)

    def init(self) -> PyTree:
        """No state between steps."""
        return ()

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """The batch under the attack's own loss (cross-entropy)."""
        return self.craft(variables, batch, context)

    def loss(
        self, params: PyTree, model_state: PyTree, objective_state: PyTree, batch: AdversarialBatch, context: Context
    ) -> tuple[Array, Aux]:
        """The scalar to minimise; each method's own."""
        raise NotImplementedError

    def craft(self, variables: Variables, batch: Batch, context: Context, **attack_options: Any) -> AdversarialBatch:
        """Run the attack; `attack_options` override what it was bound with."""
        logits_fn = make_logits_fn(self.model, variables, train=self.attack_batch_norm == "train")
        key = named_key(context.key, "attack")
        images = self.attack(logits_fn, batch.images, batch.labels, key=key, indices=batch.indices, **attack_options)
        return AdversarialBatch(batch, jax.lax.stop_gradient(images))

    def forward(self, params: PyTree, model_state: PyTree, images: Array) -> tuple[Array, PyTree]:
        """One train-mode forward: batch statistics, and the running ones updated once."""
        return self.model.apply(params, model_state, images, train=True)


def paired_aux(
    model_state: PyTree, loss: Array, regularizer: Array, clean: Array, adversarial: Array, labels: Array
) -> Aux:
    """What the objectives that forward both the clean and the adversarial images report."""
    metrics = {
        "loss": loss,
        "regularizer": regularizer,
        "clean_accuracy": accuracy(clean, labels),
        "adversarial_accuracy": accuracy(adversarial, labels),
    }
    return Aux(model_state, metrics)


def accuracy(logits: Array, labels: Array) -> Array:
    """Share of correct examples in the batch."""
    return jnp.mean(losses.correct(logits, labels).astype(jnp.float32))
