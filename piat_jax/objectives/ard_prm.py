"""Attention and perturbation dropped at random while crafting, "A&P" in the PIAT paper (Mo et al., 2022)."""

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
    summary="A&P, for Vision Transformers: early in training the attack loses attention branches and patches at "
    "random.",
    paper="Mo et al. (2022), arXiv:2210.07540",
)
class ARDPRM(Wrapper):
    """A&P around any method: early in training each attack step loses attention branches and patches, at random.

    With `r = min(t / n, 1)`, t the epochs done when this step ends, fractions included, and `n = ramp` of the run's
    epochs, and freshly drawn for each attack step, the same for the whole batch:

    - ARD: each block's attention branch is kept with probability r. Through the others no gradient flows; logits stay.
    - PRM: on `m = floor(N (1 - r))` of the N patches the perturbation is set to 0 before the gradient is taken. All
      pixels then take their step, so masked patches start again rather than stay clean.

    So training begins on almost clean images. From epoch n on r = 1, and both do nothing. Parameter gradients and
    evaluation are ordinary throughout.

    Train-mode forwards: those inside.

    Attributes:
      inner: the method; its attack must take `vary`, as `pgd` does.
      ramp: share of the run's epochs in which r rises: 10/40; rounded to whole epochs.
      ard: whether attention is dropped; needs a network with attention, such as vit_base. PRM works with any.
      prm: whether perturbations are masked.
      patch_size: pixels along a patch's side, that of the model; it must divide the images.

    Source: Mo et al. (2022), arXiv:2210.07540, and its code; "A&P" in Table IV of the PIAT paper. It draws `u <= r`,
    here `u < r`, so that r = 0 keeps nothing. It computes m in float64, here in whole numbers: the same in its settings
    and exact in all others. Restarts share what each step drops; the code has none.
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
                "ard=True drops attention, and this model has none; give ard=False or a Vision Transformer"
            )

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> PyTree:
        """No state of its own; the images must be whole patches."""
        if self.prm:
            count_patches(images, self.patch_size)
        return ()

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """The attack inside, its steps varied."""
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
    """How far the ramp is: `done` of `total` steps, so that what is left can be counted exactly."""

    done: Array  # int32, at most total
    total: Array  # int32

    @property
    def share(self) -> Array:
        """r, the share of attention branches that are kept."""
        return self.done.astype(jnp.float32) / self.total

    def masked(self, patches: int) -> Array:
        """`floor(patches (1 - r))` counted in whole numbers: rounding would show where it is one exactly.

        >>> [int(RampProgress(jnp.int32(done), jnp.int32(7820)).masked(64)) for done in (1, 3910, 7698, 7820)]
        [63, 32, 0, 0]
        """
        return patches * (self.total - self.done) // self.total


def ramp_progress(ramp: Array | float, context: Context) -> RampProgress:
    """Steps done when the present one ends, of those in the first `ramp` of the run's epochs."""
    epochs = jnp.round(ramp * context.epochs).astype(jnp.int32)
    within = jnp.clip(context.step - context.epoch * context.steps_per_epoch, 0, context.steps_per_epoch - 1)
    # A ramp of no epochs is over with the first step.
    total = jnp.maximum(epochs * context.steps_per_epoch, 1)
    done = context.epoch * context.steps_per_epoch + within + 1
    return RampProgress(jnp.minimum(done, total), total)


class Drop(NamedTuple):
    """What varies an attack's steps: `(logits_fn, images, x, index) -> (logits_fn, x)`, as `pgd` calls it."""

    key: Array
    keep_rate: Array | float | None  # of attention branches, in [0, 1]; None leaves attention alone
    masked: Array | int | None  # patches without perturbation, 0 to all of them; None leaves the perturbation alone
    blocks: int
    patch_size: int

    def __call__(self, logits_fn: LogitsFn, images: Array, x: Array, index: Array | int) -> tuple[LogitsFn, Array]:
        """The model and the point of the attack step of this number."""
        key = jax.random.fold_in(self.key, index)
        if self.keep_rate is not None:
            keep = jax.random.uniform(named_key(key, "attention"), (self.blocks,), jnp.float32) < self.keep_rate
            logits_fn = with_attention_gates(logits_fn, keep)
        if self.masked is not None:
            perturbed = patch_mask(named_key(key, "patches"), self.masked, images, self.patch_size)
            x = jnp.where(perturbed, x, images)
        return logits_fn, x


def patch_mask(key: Array, masked: Array | int, images: Array, patch_size: int) -> Array:
    """False on `masked` patches drawn without replacement, else true, `[1, H, W, 1]` for `images[B, H, W, C]`.

    >>> patch_mask(jax.random.key(0), 3, jnp.zeros((1, 4, 4, 1)), 2).sum().item()
    4
    """
    patches = count_patches(images, patch_size)
    height, width = images.shape[1] // patch_size, images.shape[2] // patch_size
    kept = jax.random.permutation(key, patches) >= masked
    grid = kept.reshape(1, height, 1, width, 1, 1)
    return jnp.broadcast_to(grid, (1, height, patch_size, width, patch_size, 1)).reshape(1, *images.shape[1:3], 1)


def count_patches(images: Array, patch_size: int) -> int:
    """N, the patches of each image.

    Raises:
      InputError: the patches do not cover the images exactly.
    """
    check_patches(images, patch_size)
    height, width = images.shape[1:3]
    return (height // patch_size) * (width // patch_size)


def _attention_blocks(wrapper: ARDPRM) -> int:
    """Of the model; one that is not of ours has none to speak of."""
    return getattr(wrapper.model, "attention_blocks", 0)
