"""AutoAugment's policies and RandAugment on the device: Pillow's operations on bytes, with one key per example."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.core.checks import InputError, check_choice, check_count, check_range
from piat_jax.core.rng import named_key
from piat_jax.core.types import Array

# (operation, probability, magnitude in [0, 9]) twice: each image draws one of the 25, and both parts are tried.
CIFAR_POLICY = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)
IMAGENET_POLICY = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
    (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
)
LEARNED = {"cifar": CIFAR_POLICY, "imagenet": IMAGENET_POLICY}
"""AutoAugment's policies, by the data on which they were learned."""
RANDOM_OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
"""The operations from which RandAugment draws."""
MOST_MAGNITUDE = 30
"""Maximum magnitude of RandAugment; AutoAugment's is 9."""
FILL = 128
"""Fill value for pixels from outside the image: gray, close to the mean that the paper's code uses."""
MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


class Operation(NamedTuple):
    """One operation as numbers; tables of these are indexed by the random draws."""

    branch: Any  # int32, of BRANCHES
    matrix: Any  # [6] int32, in 1/65536 of a pixel: maps a pixel to its source
    factor: Any  # of a blend: 1 is the image, 0 the other image
    level: Any  # int32: number of bits kept, or the byte from which values are inverted


def autoaugment(images: Array, keys: Array, *, learned_on: str = "cifar") -> Array:
    """Apply one of AutoAugment's 25 pairs of operations to each image.

    Args:
      images: `[B, H, W, C]` uint8, with C = 1 or 3.
      keys: `[B]` typed keys, one per example.
      learned_on: which policy: "cifar" or "imagenet".

    Returns:
      Images of the same shape, uint8. Moves and lookups are Pillow's to the byte, blends and AutoContrast up to 1.

    Raises:
      InputError: images have another type or shape, or the policy is unknown.

    Source: Cubuk et al. (2019), arXiv:1805.09501, with the magnitudes and signs of torchvision's AutoAugment.

    >>> images = jnp.zeros((2, 8, 8, 3), jnp.uint8)
    >>> jax.jit(autoaugment)(images, jax.random.split(jax.random.key(0))).shape
    (2, 8, 8, 3)
    """
    _check_bytes("AutoAugment", images)
    check_choice("learned_on", learned_on, LEARNED)
    table = jax.tree.map(jnp.asarray, policy_table(learned_on, images.shape[1], images.shape[2]))
    probabilities = jnp.array([[probability for _, probability, _ in pair] for pair in LEARNED[learned_on]])

    def one(image: Array, key: Array) -> Array:
        drawn = jax.random.uniform(named_key(key, "autoaugment"), (5,), jnp.float32)
        pair = jnp.floor(drawn[0] * len(probabilities)).astype(jnp.int32)
        for part in range(2):
            sign = (drawn[3 + part] < 0.5).astype(jnp.int32)
            operation = jax.tree.map(lambda leaf, part=part, sign=sign: leaf[pair, part, sign], table)
            changed = apply(image, operation)
            image = jnp.where(drawn[1 + part] < probabilities[pair, part], changed, image)
        return image

    return jax.vmap(one)(images, keys)


def randaugment(images: Array, keys: Array, *, operations: int = 2, magnitude: int = 9) -> Array:
    """Apply random operations to each image, each one of 14 (`RANDOM_OPERATIONS`), at one magnitude, with either sign.

    Args:
      images: `[B, H, W, C]` uint8, with C = 1 or 3.
      keys: `[B]` typed keys, one per example.
      operations: N, at least 1; they may repeat.
      magnitude: M, an integer in [0, 30].

    Returns:
      Images of the same shape, uint8; operations as in `autoaugment`.

    Raises:
      InputError: images have another type or shape, or a number is out of range.

    Source: Cubuk et al. (2019), arXiv:1909.13719, with the numbers of torchvision's RandAugment. Pixels from outside
    the image are gray here, and black there.

    >>> images = jnp.zeros((2, 8, 8, 3), jnp.uint8)
    >>> jax.jit(randaugment)(images, jax.random.split(jax.random.key(0))).shape
    (2, 8, 8, 3)
    """
    _check_bytes("RandAugment", images)
    check_count("operations", operations, 1)
    check_range("magnitude", magnitude, 0, MOST_MAGNITUDE)
    table = jax.tree.map(jnp.asarray, random_table(magnitude, images.shape[1], images.shape[2]))

    def one(image: Array, key: Array) -> Array:
        drawn = jax.random.uniform(named_key(key, "randaugment"), (operations, 2), jnp.float32)
        which = jnp.floor(drawn[:, 0] * len(RANDOM_OPERATIONS)).astype(jnp.int32)
        sign = (drawn[:, 1] < 0.5).astype(jnp.int32)

        def step(number: Array | int, image: Array) -> Array:
            return apply(image, jax.tree.map(lambda leaf: leaf[which[number], sign[number]], table))

        return jax.lax.fori_loop(0, operations, step, image)

    return jax.vmap(one)(images, keys)


def _check_bytes(name: str, images: Array) -> None:
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise InputError(f"images are {images.dtype} {images.shape}; {name} takes uint8 [B, H, W, 1 or 3]")


def apply(image: Array, operation: Operation) -> Array:
    """Apply one operation to one image `[H, W, C]`; under vmap all branches are computed and one is kept."""
    return jax.lax.switch(operation.branch, BRANCHES, image, operation)


@functools.lru_cache
def policy_table(learned_on: str, height: int, width: int) -> Operation:
    """The operations of a policy, `[25, 2, 2]`: pair, part of the pair, sign of the magnitude."""
    rows = [
        [[encode(name, magnitude, sign, height, width) for sign in (1, -1)] for name, _, magnitude in pair]
        for pair in LEARNED[learned_on]
    ]
    flat = [operation for pair in rows for part in pair for operation in part]
    return Operation(*(np.stack(leaves).reshape(25, 2, 2, *leaves[0].shape) for leaves in zip(*flat)))


@functools.lru_cache
def random_table(magnitude: int, height: int, width: int) -> Operation:
    """RandAugment's operations, `[14, 2]`: operation, sign of the magnitude."""
    flat = [
        encode(name, magnitude, sign, height, width, most=MOST_MAGNITUDE)
        for name in RANDOM_OPERATIONS
        for sign in (1, -1)
    ]
    return Operation(*(np.stack(leaves).reshape(-1, 2, *leaves[0].shape) for leaves in zip(*flat)))


def encode(name: str, magnitude: int, sign: int, height: int, width: int, *, most: int = 9) -> Operation:
    """Encode an operation with torchvision's name at a magnitude in [0, most], for images of one size.

    >>> encode("Solarize", 6, 1, 32, 32).level.item(), round(encode("Color", 9, -1, 32, 32).factor.item(), 3)
    (85, 0.1)
    """
    share = magnitude / most * sign
    matrix, factor, level = IDENTITY, 1.0, 0
    if name == "Identity":
        branch = "Move"
    elif name in MOVES:
        shift_x, shift_y = (int(150 / 331 * size * share) for size in (width, height))
        cosine, sine = math.cos(math.radians(-30 * share)), math.sin(math.radians(-30 * share))
        x, y = width / 2, height / 2
        matrix = {
            "ShearX": (1.0, -0.3 * share, 0.0, 0.0, 1.0, 0.0),
            "ShearY": (1.0, 0.0, 0.0, -0.3 * share, 1.0, 0.0),
            "TranslateX": (1.0, 0.0, -shift_x, 0.0, 1.0, 0.0),
            "TranslateY": (1.0, 0.0, 0.0, 0.0, 1.0, -shift_y),
            "Rotate": (cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y),
        }[name]
        branch = "Move"
    elif name == "Posterize":
        branch, level = name, 256 - 2 ** round(magnitude / (most / 4))
    elif name in ("Solarize", "Invert"):
        branch, level = "Solarize", 0 if name == "Invert" else -(-255 * (most - magnitude) // most)
    else:
        branch, factor = name, 1 + 0.9 * share
    a, b, c, d, e, f = matrix
    # From the center of a pixel, rounded like Pillow's fixed-point numbers.
    fixed = [math.floor(65536 * v + 0.5) for v in (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)]
    return Operation(
        np.int32(BRANCH_NAMES.index(branch)), np.array(fixed, np.int32), np.float32(factor), np.int32(level)
    )


def move(image: Array, operation: Operation) -> Array:
    """Apply an affine map with nearest-neighbour sampling; `FILL` outside the image."""
    height, width = image.shape[:2]
    a, b, c, d, e, f = operation.matrix
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    x, y = (a * columns + b * rows + c) >> 16, (d * columns + e * rows + f) >> 16
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    moved = image[jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)]
    return jnp.where(inside[..., None], moved, jnp.uint8(FILL))


def blend(image: Array, other: Array, factor: Array) -> Array:
    """`other + factor (image - other)`, truncated to whole numbers."""
    other = other.astype(jnp.float32)
    return jnp.clip(other + factor * (image.astype(jnp.float32) - other), 0, 255).astype(jnp.uint8)


def gray(image: Array) -> Array:
    """The luma of each pixel `[H, W, 1]` int32."""
    x = image.astype(jnp.int32)
    if x.shape[2] == 1:
        return x
    return (19595 * x[..., :1] + 38470 * x[..., 1:2] + 7471 * x[..., 2:] + 0x8000) >> 16


def smooth(image: Array) -> Array:
    """The mean of 3x3 pixels with weight 5 for the center; the border is unchanged."""
    x = image.astype(jnp.int32)
    rows = x[:-2] + x[1:-1] + x[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * x[1:-1, 1:-1]
    return x.at[1:-1, 1:-1].set((2 * total + 13) // 26)


def brightness(image: Array, operation: Operation) -> Array:
    """Change the brightness: blend with black."""
    return blend(image, jnp.zeros_like(image), operation.factor)


def color(image: Array, operation: Operation) -> Array:
    """Change the saturation: blend with gray."""
    return blend(image, jnp.broadcast_to(gray(image), image.shape), operation.factor)


def contrast(image: Array, operation: Operation) -> Array:
    """Change the contrast: blend with the mean luma."""
    luma = gray(image)
    mean = (2 * jnp.sum(luma) + luma.size) // (2 * luma.size)
    return blend(image, jnp.full(image.shape, mean), operation.factor)


def sharpness(image: Array, operation: Operation) -> Array:
    """Change the sharpness: blend with the smoothed image."""
    return blend(image, smooth(image), operation.factor)


def posterize(image: Array, operation: Operation) -> Array:
    """Keep only the high bits."""
    return image & operation.level.astype(jnp.uint8)


def solarize(image: Array, operation: Operation) -> Array:
    """Invert values from `operation.level` on; 0 inverts all."""
    return jnp.where(image < operation.level, image, 255 - image)


def autocontrast(image: Array, operation: Operation) -> Array:
    """Stretch each channel to [0, 255]."""
    x = image.astype(jnp.int32)
    low, high = jnp.min(x, axis=(0, 1), keepdims=True), jnp.max(x, axis=(0, 1), keepdims=True)
    stretched = (x - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched, x).astype(jnp.uint8)


def equalize(image: Array, operation: Operation) -> Array:
    """Equalize each channel's histogram."""

    def channel(values: Array) -> Array:
        counts = jnp.zeros(256, jnp.int32).at[values].add(1)
        highest = jnp.max(values)
        step = (values.size - counts[highest]) // 255
        below = jnp.cumsum(counts) - counts
        lookup = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
        return jnp.where(step > 0, lookup[values], values.astype(jnp.int32))

    return jax.vmap(channel, in_axes=2, out_axes=2)(image).astype(jnp.uint8)


NAMED = {
    "Move": move,
    "Brightness": brightness,
    "Color": color,
    "Contrast": contrast,
    "Sharpness": sharpness,
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": autocontrast,
    "Equalize": equalize,
}
BRANCH_NAMES, BRANCHES = list(NAMED), list(NAMED.values())
