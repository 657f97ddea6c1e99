"""Mixed images: mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019), as A&P's code trains with them."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError, check_range
from piat_jax.core.forward import num_classes
from piat_jax.core.labels import smoothed
from piat_jax.core.rng import named_key, symmetric_beta
from piat_jax.core.types import AdversarialBatch, Array, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import Wrapper, wrapper
from piat_jax.objectives.las import LAS
from piat_jax.objectives.rat import RAT
from piat_jax.objectives.wrapper_checks import layers


@wrapper(
    "mix",
    summary="Applies mixup or CutMix to a share of the batches before the attack, as A&P's code does in its PGD-AT.",
    paper="Zhang et al. (2018), arXiv:1710.09412; Yun et al. (2019), arXiv:1905.04899",
)
class Mix(Wrapper):
    """Mix around a method: in a share of the batches it mixes each example's image and label with a partner's.

    Example i's partner j has the same position in the reversed batch. With t the labels' one-hot vectors and `lam`
    drawn per batch,

        mixup   x_i <- lam x_i + (1 - lam) x_j
        CutMix  x_i <- x_j inside one box, x_i elsewhere; lam <- the share of pixels outside the box
        target  t_i <- lam t_i + (1 - lam) t_j, then t_i <- (1 - s) t_i + s / K

    Loss and attack use the mixed targets (`Batch.targets`). Where one label is needed, the one with the larger share
    counts: in the logged accuracy, and for wrappers that judge examples by their label.

    Only this method builds an example's image from another example of its batch, so the result depends on the batch's
    composition and order. In an odd batch the middle example is its own partner and does not change. Two views of an
    example (`Consistency(Mix(...))`) are mixed with views of the same other example, in the same shares.

    Train-mode forwards: those of the inner method, on the mixed images.

    Attributes:
      inner: the method. ECAS belongs inside, where it sees mixed images. LAS-AT and RAT need one label per example and
        cannot be inside Mix.
      prob: share of the batches that are mixed, 0.3.
      mixup_alpha: alpha of mixup, 0.8: lam is drawn from Beta(alpha, alpha).
      cutmix_alpha: alpha of CutMix, 1, a uniform draw: lam is drawn likewise, then corrected to the box.
      switch: share of the mixed batches that use CutMix, 0.5; the rest use mixup.
      label_smoothing: s, the share of a target that is spread over all K classes, 0; in every batch, as in timm. Loss
        and attack see it, while only the loss sees `objective.label_smoothing`.

    Source: Zhang et al. (2018), arXiv:1710.09412, and Yun et al. (2019), arXiv:1905.04899, in the form and with the
    numbers of A&P's code (Mo et al., 2022, arXiv:2210.07540). That code mixes in PGD-AT only, and the PIAT paper does
    not mention mixing. The code refuses odd batches.
    """

    prob: float = 0.3
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    switch: float = 0.5
    label_smoothing: float = 0.0

    needs_attack: ClassVar[bool] = False
    # It scales the cross-entropy, of which RAT takes a share.
    rescales: ClassVar[bool] = True
    changes_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prob", "switch", "label_smoothing"):
            check_range(name, getattr(self, name), 0, 1)
        for name in ("mixup_alpha", "cutmix_alpha"):
            check_range(name, getattr(self, name), 0, float("inf"), open_low=True)
        for inside in layers(self.inner)[:-1]:
            if isinstance(inside, (LAS, RAT, Mix)):
                raise InputError(f"Mix cannot go around {type(inside).__name__}; leave out one of them")

    def check_part(self, examples: int) -> None:
        """Refuse odd parts: only a part of even size has both examples of each pair."""
        super().check_part(examples)
        if examples % 2:
            raise InputError(
                f"microbatches leaves parts of {examples} examples, but Mix needs pairs; give an even number"
            )

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Mix the batch, then run the inner method's attack on it."""
        own, lam = draw(self, batch.images.shape[1:3], named_key(context.key, "mix"))
        images = own * batch.images + (1.0 - own) * batch.images[::-1]
        labels = jnp.where(lam >= 0.5, batch.labels, batch.labels[::-1])
        classes = num_classes(self.model, variables, images)
        target = smoothed(batch.target, classes, self.label_smoothing, "all")
        target = lam * target + (1.0 - lam) * target[::-1]
        batch = batch._replace(images=images, labels=labels, targets=target)
        adversarial = super().perturb(variables, objective_state, batch, context)
        return adversarial._replace(metrics={**adversarial.metrics, "mixed": (lam < 1.0).astype(jnp.float32)})


def draw(mix: Mix, size: tuple[int, ...], key: Array) -> tuple[Array, Array]:
    """The example's own share of each pixel, `[1, H, W, 1]` for images of `size`, and of the label."""
    whether, which, u, v = jax.random.uniform(named_key(key, "shares"), (4,), jnp.float32)
    centre = jax.random.randint(named_key(key, "centre"), (2,), 0, jnp.array(size))
    mixes, cuts = whether < mix.prob, which < mix.switch
    lam = symmetric_beta(jnp.where(cuts, mix.cutmix_alpha, mix.mixup_alpha), u, v)
    own = jnp.where(cuts, outside_box(lam, centre, size).astype(jnp.float32), lam)
    return jnp.where(mixes, own, 1.0), jnp.where(mixes, jnp.where(cuts, jnp.mean(own), lam), 1.0)


def outside_box(lam: Array, centre: Array, size: tuple[int, ...]) -> Array:
    """False in a box around `centre` with about `1 - lam` of the image's area, `[1, H, W, 1]`.

    Its sides are `2 floor(floor(H sqrt(1 - lam)) / 2)`, and likewise with W, cut off at the image's borders.

    >>> outside_box(jnp.array(0.75), jnp.array([0, 2]), (4, 4))[0, :, :, 0].astype(int).tolist()
    [[1, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    """
    inside = []
    for length, middle in zip(size, centre):
        half = jnp.floor(length * jnp.sqrt(1.0 - lam)).astype(jnp.int32) // 2
        pixels = jnp.arange(length)
        inside.append((pixels >= middle - half) & (pixels < middle + half))
    rows, columns = inside
    return ~(rows[:, None] & columns[None, :])[None, :, :, None]
