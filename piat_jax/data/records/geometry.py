"""Decoding by Pillow, and the crops for training and evaluation: pure functions of bytes and random numbers."""

import dataclasses
import functools
import io
import math
from typing import Any

import numpy as np

from piat_jax.core.checks import InputError, check_choice, check_count, check_range
from piat_jax.data.encoded import FORMATS, first_line

INTERPOLATIONS = ("bilinear", "bicubic")
RESIZINGS = ("short", "both", "none")
ON_BAD_IMAGE = ("stop", "skip")
RATIO = (3 / 4, 4 / 3)
"""Range of a training crop's ratio of width to height, drawn log-uniformly."""
TRIES = 10
"""Number of crops that are drawn before the largest center crop is used instead."""
USUAL_RESIZE = 256 / 224
"""Default ratio of the short side to the evaluation crop."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """How encoded images of any size become arrays `[size, size, 3]`.

    Args:
      size: side of the crop in pixels.
      resize: the short side before the evaluation crop, in pixels; 0 = 256 for a size of 224, and in proportion.
      resizing: "short" resizes the short side, "both" both sides, changing the aspect ratio. With "none" the crop is
        taken from the original image, with black borders if the image is smaller.
      interpolation: "bilinear" or "bicubic"; both with an anti-aliasing filter, as in Pillow and torchvision.
      scale: the minimum and maximum share of an image's area in a training crop, before rounding.
      on_bad: if an image cannot be decoded, "stop" raises; "skip" uses the next decodable image and its label instead.

    Raises:
      InputError: a value is out of range.
    """

    size: int
    resize: int = 0
    resizing: str = "short"
    interpolation: str = "bilinear"
    scale: tuple[float, float] = (0.08, 1.0)
    on_bad: str = "stop"

    def __post_init__(self) -> None:
        check_count("image_size", self.size, 1)
        check_count("resize", self.resize, 0)
        check_choice("resizing", self.resizing, RESIZINGS)
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        check_choice("on_bad_image", self.on_bad, ON_BAD_IMAGE)
        if self.resizing == "none" and self.resize:
            raise InputError(f"resize={self.resize} with resizing='none'; leave out one of the two")
        if 0 < self.resize < self.size:
            raise InputError(f"resize={self.resize} is less than image_size={self.size}; give at least as much, or 0")
        if len(self.scale) != 2:
            raise InputError(f"crop_scale={self.scale} has {len(self.scale)} numbers; give the minimum and the maximum")
        for share in self.scale:
            check_range("crop_scale", share, 0, 1, open_low=True)
        if self.scale[0] > self.scale[1]:
            raise InputError(f"crop_scale={self.scale} decreases; give the minimum first")

    @property
    def short_side(self) -> int:
        """The length of the short side after resizing, before the evaluation crop.

        >>> Decoding(size=224).short_side, Decoding(size=32).short_side, Decoding(size=224, resize=232).short_side
        (256, 37, 232)
        """
        return self.resize or round(self.size * USUAL_RESIZE)


def open_image(name: str, data: bytes) -> Any:
    """Decode the image in a file as an 8-bit RGB image of Pillow.

    Gray becomes three equal channels; of 16 bits the upper 8 are kept; Pillow converts CMYK. Transparency is dropped,
    so that the colours behind it show, and the orientation in EXIF is ignored; torchvision's loader does both, too.

    Args:
      name: its name in messages.
      data: the bytes of the file.

    Raises:
      InputError: the bytes are not an image, or the image is damaged, has floats, or is an animation.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(f"{name} needs Pillow to be decoded; pip install 'piat_jax[data]'") from error
    if not data:
        raise InputError(f"{name} has no bytes; copy it again")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if getattr(image, "is_animated", False):
            raise InputError(f"{name} is an animation of {getattr(image, 'n_frames', 0)} images; give one image a file")
        if image.mode == "F":
            raise InputError(f"{name} has floating-point pixels; give 8 or 16 bits per channel")
        image.load()
        return _as_rgb(image)
    except InputError:
        raise
    except Exception as error:  # For a damaged file Pillow can raise almost any exception.
        raise InputError(f"{name} cannot be decoded as an image ({first_line(error)}); copy it again") from error


def _as_rgb(image: Any) -> Any:
    from PIL import Image

    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits of gray: Pillow's conversion would clip them at 255
        deep = np.asarray(image)
        image = Image.fromarray((deep.astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct conversion
    return image.convert("RGB")


def evaluation_crop(image: Any, decoding: Decoding) -> np.ndarray:
    """Resize an image and take its center `[size, size, 3]`, uint8: torchvision's Resize and CenterCrop.

    Args:
      image: of Pillow, RGB.
      decoding: says how.
    """
    width, height = image.size
    short, size = decoding.short_side, decoding.size
    if decoding.resizing == "both":
        width = height = short
    elif decoding.resizing == "none":
        pass
    elif width <= height:
        width, height = short, int(short * height / width)
    else:
        width, height = int(short * width / height), short
    left, top = _before(width, size), _before(height, size)
    resized = image.resize((width, height), _filter(decoding.interpolation)) if image.size != (width, height) else image
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _before(length: int, size: int) -> int:
    """The start of a center crop; negative if the crop is larger than the image."""
    return round((length - size) / 2) if length >= size else -((size - length) // 2)


def training_crop(image: Any, decoding: Decoding, draws: np.ndarray) -> np.ndarray:
    """A random crop of an image, resized to `[size, size, 3]`, uint8; as torchvision's RandomResizedCrop.

    Args:
      image: of Pillow, RGB.
      decoding: says how.
      draws: `[TRIES, 4]` in [0, 1), as from `crop_draws`.
    """
    left, top, width, height = crop_box(image.width, image.height, decoding.scale, draws)
    part = image.crop((left, top, left + width, top + height))
    size = (decoding.size, decoding.size)
    return np.asarray(part.resize(size, _filter(decoding.interpolation)) if part.size != size else part)


def crop_box(width: int, height: int, scale: tuple[float, float], draws: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, width and height of a training crop.

    `w = round(sqrt(A s r))`, `h = round(sqrt(A s / r))` for an image of area A, with s uniform in `scale` and log r
    uniform in that of `RATIO`. The first of `draws` that fits inside is used, at a uniform position. If none fits, the
    crop is the largest center crop with a ratio in `RATIO`.

    Args:
      width, height: of the image, pixels.
      scale: as in `Decoding`.
      draws: `[TRIES, 4]` in [0, 1): area, ratio, top, left.

    Source: Szegedy et al. (2015), arXiv:1409.4842, for the crop; torchvision's RandomResizedCrop for the tries and the
    fallback.

    >>> crop_box(500, 375, (1.0, 1.0), np.full((10, 4), 0.5))
    (0, 0, 500, 375)
    """
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for area, ratio, top, left in draws.tolist():
        target = width * height * (scale[0] + (scale[1] - scale[0]) * area)
        aspect = math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(left * (width - w + 1)), int(top * (height - h + 1)), w, h
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def crop_draws(words: tuple[int, ...], epoch: int, index: int) -> np.ndarray:
    """The random numbers `[TRIES, 4]` of an example's training crop in an epoch, by Philox from these arguments only.

    Args:
      words: of a key, 32 bits each; at most four are used.
      epoch: from 0.
      index: of the example.
    """
    key = np.array((*words, 0, 0, 0, 0)[:4], np.uint64)
    generator = np.random.Philox(key=key[::2] << np.uint64(32) | key[1::2], counter=(0, epoch, index, 0))
    return np.random.Generator(generator).random((TRIES, 4))


@functools.cache
def _filter(interpolation: str) -> Any:
    from PIL import Image

    return {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
