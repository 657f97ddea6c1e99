"""Free adversarial training (Shafahi et al., 2019)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.checks import InputError, check_count
from piat_jax.core.forward import forward_keys
from piat_jax.core.norms import ascent_direction, project
from piat_jax.core.types import AdversarialBatch, Array, Aux, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import AttackedObjective, Outputs, Terms, method, static
from piat_jax.objectives.wrapper_checks import attack_options


@method(
    "free",
    title="Free-AT",
    summary="Uses each batch several times in a row; each step updates weights and perturbation together.",
    paper="Shafahi et al. (2019), arXiv:1904.12843",
)
class FreeAT(AttackedObjective):
    """Free-AT: minimise `mean_i CE(z(x_i + d_i), y_i)`; at the same point d moves by `step_size sign(gradient)`.

    `d <- ball(d + step_size u)`, where u is the steepest ascent direction of the loss at the weights before the step. d
    belongs to positions in the batch: it starts at 0 and carries over from step to step and batch to batch. Each batch
    is used `replays` times in a row. An epoch keeps its number of steps, so it sees only a `replays`-th of the data,
    and `epochs` count as for other methods: the paper's 205 / 8 epochs of 8 replays are 205 here.

    Train-mode forwards: x + d. The gradient with respect to the image uses the same training-mode forward, so the
    compiler may compute both once.

    Attributes:
      replays: m, how many times in a row each batch is used; 8 in the paper.
      attack: only its eps, step_size and norm ("linf" or "l2") are used; the paper's step size is eps.
      model, label_smoothing, smoothing_over: as in `AttackedObjective`.

    Source: Shafahi et al. (2019), arXiv:1904.12843, and the version of fast_adversarial, which forwards a new batch
    under the old perturbation without clipping; here `x + d` is always clipped to the box.
    """

    replays: int = static(default=8)

    attack_options: ClassVar[Mapping[str, Any]] = {"steps": 1, "start": "none", "step_size": 8 / 255}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("replays", self.replays, 1)
        for needed in ("eps", "step_size", "norm"):
            if needed not in attack_options(self):
                raise InputError(f"FreeAT needs its attack's {needed}, which this attack lacks; give bind(pgd, ...)")

    @property
    def forwards(self) -> tuple[str, ...]:
        """Only adversarial images."""
        return ("adversarial",)

    def init(self, variables: Variables, images: Array, *, key: Array) -> Array:
        """A zero perturbation for a full batch; `images[B, H, W, C]` must be as many as a step has."""
        return jnp.zeros(images.shape, jnp.float32)

    def check_part(self, examples: int) -> None:
        """Refuse parts: perturbations belong to positions in the batch."""
        raise InputError("microbatches: Free-AT's perturbations belong to positions in the full batch; leave it at 1")

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """The batch under the current perturbation; attach the next one."""
        if objective_state.shape != batch.images.shape:
            raise InputError(
                f"Free-AT keeps a perturbation of shape {objective_state.shape} for batches of {batch.images.shape}; "
                "give init_state as many images as a step has"
            )
        options = {**attack_options(self), **context.attack}
        eps, step_size, norm = (options[name] for name in ("eps", "step_size", "norm"))
        images = jnp.clip(batch.images + objective_state, 0.0, 1.0)

        def mean_loss(images: Array) -> Array:
            keys = forward_keys(self.model, context.key, batch.indices, "adversarial")  # as the loss draws
            logits, _ = self.model.apply(*variables, images, train=True, key=keys)
            return jnp.mean(losses.cross_entropy(logits, self.target_of(batch, logits.shape[-1])))

        uphill = ascent_direction(jax.grad(mean_loss)(images), norm)
        moved = project(objective_state + step_size * uphill, eps, norm)
        moved = jnp.clip(batch.images + moved, 0.0, 1.0) - batch.images
        return AdversarialBatch(batch, images, {type(self).__name__: jax.lax.stop_gradient(moved)})

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """Cross-entropy on the adversarial images."""
        return Terms(losses.cross_entropy(outputs.logits["adversarial"], outputs.target))

    def after_step(
        self, variables: Variables, objective_state: PyTree, batch: AdversarialBatch, aux: Aux, context: Context
    ) -> PyTree:
        """The perturbation for the next step."""
        return batch.extra[type(self).__name__]
