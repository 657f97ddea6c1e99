"""Random crop, flip, policies, cutout and erasing on the device: pure, jittable, with one key per example."""

from pathlib import PurePath

import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError, check_choice, check_count, check_range
from piat_jax.core.rng import named_key
from piat_jax.core.types import Array
from piat_jax.data.autoaugment import autoaugment, randaugment
from piat_jax.data.dataset_info import KNOWN

# jnp.pad's name of each mode. Zeros is as in torchvision's RandomCrop; reflect as in davidcpage's cifar10-fast.
PADDING_MODES = {"zeros": "constant", "reflect": "reflect"}
POLICIES = ("autoaugment", "autoaugment_imagenet", "randaugment", "")
ERASED_AREA, ERASED_RATIO = (0.02, 1 / 3), (0.3, 3.3)
"""Range of an erased rectangle's share of the image, and of its ratio of height to width."""
ERASED_MEAN, ERASED_STD = 0.45, 0.225
"""Mean and standard deviation of its noise, for pixels in [0, 1]: about N(0, 1) after the usual normalisation."""


def check_augmentation(dataset_name: str, flip: bool) -> None:
    """Raise InputError if `flip` would change the meaning of this data set's images.

    Args:
      dataset_name: `Dataset.name`, or the name or path for loading. An unknown name counts as digits if its last two
        parts contain "svhn" or "mnist"; other data may be flipped.
      flip: whether images will be mirrored.

    >>> check_augmentation("cifar10", True)
    >>> check_augmentation("svhn", True)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: flip=True would mirror the digits of 'svhn'; give flip=False
    """
    if not flip:
        return
    name = "/".join(PurePath(dataset_name).parts[-2:]).lower()
    digits = "svhn" in name or ("mnist" in name and "fashion" not in name)
    if not (KNOWN[dataset_name].flip if dataset_name in KNOWN else not digits):
        raise InputError(f"flip=True would mirror the digits of {dataset_name!r}; give flip=False")


def augment(
    images: Array,
    keys: Array,
    *,
    crop_padding: int,
    padding_mode: str,
    flip: bool,
    policy: str = "",
    policy_operations: int = 2,
    policy_magnitude: int = 9,
    cutout: int = 0,
    erasing: float = 0.0,
) -> Array:
    """Augment each image: pad and crop at random, mirror with probability 1/2, apply a policy, cut out and erase.

    Args:
      images: `[B, H, W, C]` of any dtype; uint8 costs a quarter of the memory traffic of float32.
      keys: `[B]` typed keys, one per example (`core.rng.example_keys`): an example's augmentation does not depend on
        the rest of the batch.
      crop_padding: pixels added on each side, at least 0; the crop's corner is uniform on [0, 2 * crop_padding]^2.
        0 = no crop.
      padding_mode: "zeros" or "reflect" (the mirror image, without repeating the edge; needs crop_padding < H, W).
      flip: whether to mirror images left and right.
      policy: "autoaugment" for AutoAugment's CIFAR policy, "autoaugment_imagenet" for its ImageNet policy,
        "randaugment" (all in `data.autoaugment`), "" for none.
      policy_operations, policy_magnitude: N and M of RandAugment.
      cutout: side, in pixels, of a black square around a random pixel; near the border a part lies outside. 0 = none.
      erasing: the probability that a rectangle of an image is replaced by noise, in [0, 1] (`random_erasing`).

    Returns:
      Images of the same shape and dtype; `images` itself if there is nothing to do.

    Raises:
      InputError: a value is out of range, or there is not one key per image.

    Source: cutout is DeVries and Taylor (2017), arXiv:1708.04552; erasing Zhong et al. (2017), arXiv:1708.04896.

    >>> images = jnp.arange(4, dtype=jnp.uint8).reshape(1, 2, 2, 1)
    >>> augment(images, jax.random.key(0)[None], crop_padding=0, padding_mode="zeros", flip=False) is images
    True
    """
    check_count("crop_padding", crop_padding, 0)
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    check_choice("policy", policy, POLICIES)
    check_count("cutout", cutout, 0)
    check_range("erasing", erasing, 0, 1)
    if images.ndim != 4:
        raise InputError(f"images has {images.ndim} axes; give images as [batch, height, width, channels]")
    if keys.shape != images.shape[:1]:
        raise InputError(f"keys has shape {keys.shape}; give one typed key per image, {images.shape[:1]}")
    if padding_mode == "reflect" and crop_padding >= min(images.shape[1:3]):
        raise InputError(
            f"crop_padding={crop_padding} must be less than the image size {images.shape[1:3]} to reflect; "
            "give padding_mode='zeros' or less padding"
        )
    if crop_padding:
        images = random_crop(images, keys, crop_padding, padding_mode)
    if flip:
        images = random_flip(images, keys)
    if policy.startswith("autoaugment"):
        images = autoaugment(images, keys, learned_on="imagenet" if policy.endswith("imagenet") else "cifar")
    elif policy:
        images = randaugment(images, keys, operations=policy_operations, magnitude=policy_magnitude)
    if cutout:
        images = random_cutout(images, keys, cutout)
    return random_erasing(images, keys, erasing) if erasing else images


def crop_offsets(keys: Array, crop_padding: int) -> Array:
    """The corner `[B, 2]` (row, column) of each example's crop in the padded image, uniform on [0, 2 * padding]^2."""
    end = 2 * crop_padding + 1
    # int32 regardless of jax_enable_x64: other integer types would draw other offsets.
    return jax.vmap(lambda key: jax.random.randint(named_key(key, "crop"), (2,), 0, end, jnp.int32))(keys)


def flip_mask(keys: Array) -> Array:
    """Which examples are mirrored, `[B]` bool, each with probability 1/2."""
    return jax.vmap(lambda key: jax.random.bernoulli(named_key(key, "flip")))(keys)


def random_crop(images: Array, keys: Array, crop_padding: int, padding_mode: str) -> Array:
    """Pad each image by `crop_padding` and crop it back to its size at `crop_offsets`."""
    pad = (crop_padding, crop_padding)
    padded = jnp.pad(images, ((0, 0), pad, pad, (0, 0)), mode=PADDING_MODES[padding_mode])
    zero = jnp.zeros((), jnp.int32)

    def crop(image: Array, offset: Array) -> Array:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], zero), images.shape[1:])

    return jax.vmap(crop)(padded, crop_offsets(keys, crop_padding))


def random_flip(images: Array, keys: Array) -> Array:
    """Mirror the images that `flip_mask` selects left and right."""
    return jnp.where(flip_mask(keys)[:, None, None, None], images[:, :, ::-1], images)


def random_cutout(images: Array, keys: Array, side: int) -> Array:
    """Put a black square of `side` pixels into each image, around its pixel from `cutout_centres`."""
    rows, columns = cutout_centres(keys, images.shape[1], images.shape[2]).T - side // 2

    def covered(start: Array, length: int) -> Array:
        places = jnp.arange(length)[None, :] - start[:, None]
        return (places >= 0) & (places < side)

    square = covered(rows, images.shape[1])[:, :, None] & covered(columns, images.shape[2])[:, None, :]
    return jnp.where(square[..., None], jnp.zeros((), images.dtype), images)


def cutout_centres(keys: Array, height: int, width: int) -> Array:
    """The center `[B, 2]` (row, column) of each example's cutout, uniform over the image's pixels."""
    end = jnp.array([height, width], jnp.int32)
    return jax.vmap(lambda key: jax.random.randint(named_key(key, "cutout"), (2,), 0, end, jnp.int32))(keys)


def random_erasing(images: Array, keys: Array, probability: float) -> Array:
    """Replace a rectangle of each image by noise, with this probability.

    The rectangle's area is uniform on `ERASED_AREA`, its ratio log-uniform on `ERASED_RATIO`, its place uniform inside
    the image, and its pixels N(`ERASED_MEAN`, `ERASED_STD`), clipped to [0, 1].

    Source: Zhong et al. (2017), arXiv:1708.04896. If a rectangle is higher or wider than the image, torchvision draws
    again; here it is clipped. The noise is timm's "pixel" mode without a mean per channel.
    """
    height, width = images.shape[1:3]
    sides, corners = erased_rectangles(keys, probability, height, width)

    def covered(axis: int, length: int) -> Array:
        places = jnp.arange(length)[None, :] - corners[:, axis, None]
        return (places >= 0) & (places < sides[:, axis, None])

    rectangle = covered(0, height)[:, :, None] & covered(1, width)[:, None, :]
    noise = jax.vmap(lambda key: jax.random.normal(named_key(key, "erased"), images.shape[1:], jnp.float32))(keys)
    noise = jnp.clip(ERASED_MEAN + ERASED_STD * noise, 0.0, 1.0)
    noise = jnp.rint(255 * noise) if images.dtype == jnp.uint8 else noise
    return jnp.where(rectangle[..., None], noise.astype(images.dtype), images)


def erased_rectangles(keys: Array, probability: float, height: int, width: int) -> tuple[Array, Array]:
    """Sides and corner, both `[B, 2]` int32 (rows, columns), of the erased rectangles; sides of 0 erase nothing."""

    def one(key: Array) -> tuple[Array, Array]:
        drawn = jax.random.uniform(named_key(key, "erasing"), (5,), jnp.float32)
        area = height * width * (ERASED_AREA[0] + drawn[1] * (ERASED_AREA[1] - ERASED_AREA[0]))
        low, high = jnp.log(jnp.array(ERASED_RATIO, jnp.float32))
        ratio = jnp.exp(low + drawn[2] * (high - low))
        sizes = jnp.array([height, width], jnp.float32)
        sides = jnp.minimum(jnp.rint(jnp.sqrt(area * jnp.stack([ratio, 1 / ratio]))), sizes)
        corner = jnp.minimum(jnp.floor(drawn[3:] * (sizes - sides + 1)), sizes - sides)
        return jnp.where(drawn[0] < probability, sides, 0.0).astype(jnp.int32), corner.astype(jnp.int32)

    return jax.vmap(one)(keys)
