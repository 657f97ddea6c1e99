"""Random dropping of attention and perturbation while crafting, "A&P" in the PIAT paper (Mo et al., 2022)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError, check_count, check_patches, check_share
from piat_jax.core.forward import with_attention_gates
from piat_jax.core.rng import named_key
from piat_jax.core.types import AdversarialBatch, Array, Batch, Context, LogitsFn, PyTree, Variables
from piat_jax.objectives.base import Wrapper, static, wrapper
from piat_jax.objectives.wrapper_checks import check_attack_takes


@wrapper(
    "ard_prm",
    summary="A&P, for Vision Transformers: early in training the attack drops attention branches and patches at "
    "random.",
    paper="Mo et al. (2022), arXiv:2210.07540",
)
class ARDPRM(Wrapper):
    """A&P around any method: early in training each attack step drops attention branches and patches at random.

    Let `r = min(t / n, 1)`. t counts the epochs done when this step ends, including fractions; n is `ramp` times the
    run's epochs. Each attack step draws anew, once for the whole batch:

    - ARD: keep each block's attention branch with probability r. No gradient flows through the others; logits do not
      change.
    - PRM: on `m = floor(N (1 - r))` of the N patches, set the perturbation to 0 before taking the gradient. Afterwards
      all pixels take their step, so masked patches restart from the clean image instead of staying clean.

    Training therefore begins on almost clean images. From epoch n on, r = 1 and both parts do nothing. Gradients with
    respect to parameters, and evaluation, are never affected.

    Train-mode forwards: those of the inner method.

    Attributes:
      inner: the method; its attack must take `vary`, as `pgd` does.
      ramp: share of the run's epochs over which r rises, 10/40; rounded to whole epochs.
      ard: whether to drop attention; needs a network with attention, such as vit_base. PRM works with any network.
      prm: whether to mask perturbations.
      patch_size: side of a patch in pixels, as in the model; it must divide the images' height and width.

    Source: Mo et al. (2022), arXiv:2210.07540, and its code; "A&P" in Table IV of the PIAT paper. The code draws
    `u <= r`; here it is `u < r`, so that r = 0 keeps nothing. The code computes m in float64, here it is computed in
    integers: equal in the code's settings, exact in all others. Restarts share what each step drops; the code has no
    restarts.
    """

    ramp: float = 10 / 40
    ard: bool = static(default=True)
    prm: bool = static(default=True)
    patch_size: int = static(default=4)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("ramp", self.ramp)
        check_count("patch_size", self.patch_size, 1)
        check_attack_takes(self, "vary")
        if self.ard and not _attention_blocks(self):
            raise InputError(
                "ard=True drops attention, but this model has none; give ard=False or a Vision Transformer"
            )

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> PyTree:
        """No state of its own; checks that patches cover the images exactly."""
        if self.prm:
            count_patches(images, self.patch_size)
        return ()

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Run the inner method's attack with varied steps."""
        progress = ramp_progress(self.ramp, context)
        drop = Drop(
            named_key(context.key, "ard_prm"),
            progress.share if self.ard else None,
            progress.masked(count_patches(batch.images, self.patch_size)) if self.prm else None,
            _attention_blocks(self),
            self.patch_size,
        )
        return super().perturb(variables, objective_state, batch, context.with_attack(vary=drop))


class RampProgress(NamedTuple):
    """Progress of the ramp: `done` of `total` steps, as integers so that the rest is exact."""

    done: Array  # int32, at most total
    total: Array  # int32

    @property
    def share(self) -> Array:
        """r, the share of attention branches that are kept."""
        return self.done.astype(jnp.float32) / self.total

    def masked(self, patches: int) -> Array:
        """`floor(patches (1 - r))`, computed in integers because float rounding would change exact results.

        >>> [int(RampProgress(jnp.int32(done), jnp.int32(7820)).masked(64)) for done in (1, 3910, 7698, 7820)]
        [63, 32, 0, 0]
        """
        return patches * (self.total - self.done) // self.total


def ramp_progress(ramp: Array | float, context: Context) -> RampProgress:
    """Steps done at the end of the current one, out of those in the first `ramp` of the run's epochs."""
    epochs = jnp.round(ramp * context.epochs).astype(jnp.int32)
    within = jnp.clip(context.step - context.epoch * context.steps_per_epoch, 0, context.steps_per_epoch - 1)
    # A ramp of no epochs ends with the first step.
    total = jnp.maximum(epochs * context.steps_per_epoch, 1)
    done = context.epoch * context.steps_per_epoch + within + 1
    return RampProgress(jnp.minimum(done, total), total)


class Drop(NamedTuple):
    """The `vary` option of `pgd`: `(logits_fn, images, x, index) -> (logits_fn, x)` for each attack step."""

    key: Array
    keep_rate: Array | float | None  # of attention branches, in [0, 1]; None leaves attention alone
    masked: Array | int | None  # patches without perturbation, 0 to all of them; None leaves the perturbation alone
    blocks: int
    patch_size: int

    def __call__(self, logits_fn: LogitsFn, images: Array, x: Array, index: Array | int) -> tuple[LogitsFn, Array]:
        """The model and the point for attack step `index`."""
        key = jax.random.fold_in(self.key, index)
        if self.keep_rate is not None:
            keep = jax.random.uniform(named_key(key, "attention"), (self.blocks,), jnp.float32) < self.keep_rate
            logits_fn = with_attention_gates(logits_fn, keep)
        if self.masked is not None:
            perturbed = patch_mask(named_key(key, "patches"), self.masked, images, self.patch_size)
            x = jnp.where(perturbed, x, images)
        return logits_fn, x


def patch_mask(key: Array, masked: Array | int, images: Array, patch_size: int) -> Array:
    """False on `masked` patches drawn without replacement, true elsewhere, `[1, H, W, 1]` for `images[B, H, W, C]`.

    >>> patch_mask(jax.random.key(0), 3, jnp.zeros((1, 4, 4, 1)), 2).sum().item()
    4
    """
    patches = count_patches(images, patch_size)
    height, width = images.shape[1] // patch_size, images.shape[2] // patch_size
    kept = jax.random.permutation(key, patches) >= masked
    grid = kept.reshape(1, height, 1, width, 1, 1)
    return jnp.broadcast_to(grid, (1, height, patch_size, width, patch_size, 1)).reshape(1, *images.shape[1:3], 1)


def count_patches(images: Array, patch_size: int) -> int:
    """N, the number of patches per image.

    Raises:
      InputError: the patches do not cover the images exactly.
    """
    check_patches(images, patch_size)
    height, width = images.shape[1:3]
    return (height // patch_size) * (width // patch_size)


def _attention_blocks(wrapper: ARDPRM) -> int:
    """The number of the model's attention blocks; 0 for a model that does not declare any."""
    return getattr(wrapper.model, "attention_blocks", 0)
