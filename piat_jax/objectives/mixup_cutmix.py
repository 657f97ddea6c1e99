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
    summary="Mixup or CutMix in a share of the batches, attacked as mixed; A&P's code has it in its PGD-AT.",
    paper="Zhang et al. (2018), arXiv:1710.09412; Yun et al. (2019), arXiv:1905.04899",
)
class Mix(Wrapper):
    """Mix around a method: in a share of the batches each example is mixed with its partner, image and label.

    With j the partner of i, which is the batch read backwards, t the labels' one-hot vectors and `lam` drawn per batch

        mixup   x_i <- lam x_i + (1 - lam) x_j
        CutMix  x_i <- x_j inside one box, x_i elsewhere; lam <- the share of pixels outside the box
        target  t_i <- lam t_i + (1 - lam) t_j, then t_i <- (1 - s) t_i + s / K

    Loss and attack are told the mixed targets (`Batch.targets`). Of an example's two labels that of the larger share
    stands for both where one is wanted: in the logged accuracy, and to wrappers that judge examples by their label.

    This is the one method here that makes an example's images out of others of its batch: whom it is mixed with depends
    on the batch's make-up and order. An odd batch pairs its middle example with itself, which leaves it as it is. Two
    views of an example (`Consistency(Mix(...))`) are mixed with views of the same other example, in the same shares.

    Train-mode forwards: those inside, on the mixed images.

    Attributes:
      inner: the method. ECAS belongs inside, where it sees mixed images. LAS-AT and RAT, which go by the label, do not
        go with Mix.
      prob: share of the batches that are mixed, 0.3.
      mixup_alpha: mixup's lam is drawn from Beta(alpha, alpha), 0.8.
      cutmix_alpha: CutMix's likewise, before the correction, 1, which is uniform.
      switch: share of the mixed batches that CutMix takes, 0.5; mixup has the rest.
      label_smoothing: s, the share of a target that is spread over all K classes, 0; in every batch, as timm has it.
        Loss and attack are told; of `objective.label_smoothing` only the loss is.

    Source: Zhang et al. (2018), arXiv:1710.09412, and Yun et al. (2019), arXiv:1905.04899, in the form and with the
    numbers of A&P's code (Mo et al., 2022, arXiv:2210.07540), which does so in PGD-AT and in no other method; the PIAT
    paper says nothing of it. The code refuses odd batches.
    """

    prob: float = 0.3
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    switch: float = 0.5
    label_smoothing: float = 0.0

    needs_attack: ClassVar[bool] = False
    # The cross-entropy, which RAT takes a share of.
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
                raise InputError(f"Mix does not go around {type(inside).__name__}; leave one of them out")

    def check_part(self, examples: int) -> None:
        """A part has both examples of each pair where their number is even."""
        super().check_part(examples)
        if examples % 2:
            raise InputError(
                f"microbatches leaves parts of {examples} examples, and Mix pairs them; give an even number"
            )

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """The mixed batch under the attack inside."""
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
    """How much of each pixel is the example's own, `[1, H, W, 1]` for images of `size`, and how much of its label."""
    whether, which, u, v = jax.random.uniform(named_key(key, "shares"), (4,), jnp.float32)
    centre = jax.random.randint(named_key(key, "centre"), (2,), 0, jnp.array(size))
    mixes, cuts = whether < mix.prob, which < mix.switch
    lam = symmetric_beta(jnp.where(cuts, mix.cutmix_alpha, mix.mixup_alpha), u, v)
    own = jnp.where(cuts, outside_box(lam, centre, size).astype(jnp.float32), lam)
    return jnp.where(mixes, own, 1.0), jnp.where(mixes, jnp.where(cuts, jnp.mean(own), lam), 1.0)


def outside_box(lam: Array, centre: Array, size: tuple[int, ...]) -> Array:
    """False in a box around `centre` of about `1 - lam` of the image's area, `[1, H, W, 1]`.

    Its sides are `2 floor(floor(H sqrt(1 - lam)) / 2)` and the same of W, less what lies beyond the image.

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
