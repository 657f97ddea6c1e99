"""Distillation from a standard and a robust teacher (Chen et al., 2021)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError, check_range
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.trees import leaf_shapes
from piat_jax.core.types import Array, Context, PyTree, Variables
from piat_jax.objectives.base import Outputs, Resources, Terms, Wrapper, wrapper


@wrapper(
    "kd",
    summary="Distils from a standard and a robust teacher; with swa it is KD+SWA.",
    paper="Chen et al. (2021), ICLR",
)
class Distillation(Wrapper):
    """KD around any method: `inner_weight L_inner + standard_weight KD(z_s, z') + robust_weight KD(z_r, z')`.

    `KD(z_t, z) = -tau^2 sum_c softmax(z_t / tau)_c log softmax(z / tau)_c`, and both teachers see x'. This is the
    cross-entropy form: it exceeds `tau^2 KL` by a constant, `tau^2` times the entropy of the teacher's prediction.

    Train-mode forwards: those of the inner method. The teachers run in evaluation mode and are never differentiated.

    Attributes:
      inner: the method, PGD-AT in the paper.
      standard: weights and statistics of a teacher trained on clean images, with the model's architecture.
      robust: weights and statistics of a teacher trained adversarially, likewise.
      inner_weight: 0.3.
      standard_weight: 0.1.
      robust_weight: 0.6.
      temperature: tau, 2.

    Source: Chen et al., "Robust Overfitting May Be Mitigated by Properly Learned Smoothening" (ICLR 2021), and its
    code, from which the constants are. The second half of its KD+SWA is `averaging.Average` with `EQUAL_WEIGHT` from
    epoch 55 of 200.
    """

    standard: Variables
    robust: Variables
    inner_weight: float = 0.3
    standard_weight: float = 0.1
    robust_weight: float = 0.6
    temperature: float = 2.0

    text_fields: ClassVar[Mapping[str, str]] = {"standard": "", "robust": ""}
    teachers: ClassVar[Mapping[str, str]] = {"standard": "standard", "robust": "pgd_at"}
    rescales: ClassVar[bool] = True
    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"pgd_at": {"attack_batch_norm": "train"}}

    @classmethod
    def from_fields(cls, inner: Any, fields: Mapping[str, Any], resources: Resources) -> Self:
        """As for any wrapper; `standard` and `robust` are folders of runs."""
        teachers = {name: resources.teacher(name, fields[name]) for name in ("standard", "robust")}
        return cls(inner, **{**fields, **teachers})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("temperature", self.temperature, 0, float("inf"), open_low=True)

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> tuple[()]:
        """No state; checks that the teachers fit the model."""
        for name in ("standard", "robust"):
            check_teacher(name, getattr(self, name), variables)
        return ()

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The inner method's terms, weighted, plus the distillation losses on the adversarial images."""
        terms = super().terms(outputs, objective_state, context)
        images, logits = self.inputs(outputs.batch)["adversarial"], outputs.logits["adversarial"]

        def taught_by(teacher: Variables) -> Array:
            target = jax.lax.stop_gradient(make_logits_fn(self.model, teacher)(images))
            return distillation_loss(target, logits, self.temperature)

        standard, robust = taught_by(self.standard), taught_by(self.robust)
        taught = self.standard_weight * standard + self.robust_weight * robust
        metrics = {
            **terms.metrics,
            "distillation_standard": jnp.mean(standard),
            "distillation_robust": jnp.mean(robust),
        }
        return Terms(self.inner_weight * terms.adversarial, self.inner_weight * terms.other + taught, metrics)


def distillation_loss(target_logits: Array, logits: Array, temperature: Array | float) -> Array:
    """`-tau^2 sum_c softmax(z_t / tau)_c log softmax(z / tau)_c` of each example, `[B]`.

    >>> distillation_loss(jnp.zeros((1, 4)), jnp.zeros((1, 4)), 1.0).tolist()
    [1.3862943649291992]
    """
    target = jax.nn.softmax(target_logits.astype(jnp.float32) / temperature)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    return -(temperature**2) * jnp.sum(target * log_p, axis=-1)


def check_teacher(name: str, teacher: Variables, variables: Variables) -> None:
    """Raise InputError unless the teacher's leaves match the model's in name and shape; names the first mismatch."""
    theirs, ours = leaf_shapes(teacher), leaf_shapes(variables)
    for path in ours | theirs:
        if theirs.get(path) != ours.get(path):
            their, our = (f"has shape {shapes[path]}" if path in shapes else "is missing" for shapes in (theirs, ours))
            raise InputError(
                f"{name}/{path} {their} in the teacher and {our} in the model; give a teacher of this architecture"
            )
    if jax.tree.structure(teacher) != jax.tree.structure(variables):
        raise InputError(f"{name} holds the model's leaves in other containers; give Variables(params, model_state)")
