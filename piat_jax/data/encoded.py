"""Encoded images of one size, from files or bytes, which are decoded when they are indexed."""

import io
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from piat_jax.core.checks import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")
GRAY, COLOR = ("L", "1"), ("RGB", "P", "CMYK")
"""Modes with one channel and with three. Transparency, 16 bits and several frames are rejected in every format,
because dropping them would change the picture."""


class EncodedImages:
    """Images of one size, decoded by Pillow: like a uint8 array `[N, H, W, C]`, indexed by a slice or indices.

    Args:
      names: the images' names in errors.
      fetch: `index -> bytes` of the file.

    The first image decides the size, and one channel or three; gray images among coloured ones are expanded to three.

    Raises:
      InputError: on indexing, if an image is damaged or has another size.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, names: Sequence[str], fetch: Callable[[int], bytes]):
        self.names = names
        self.fetch = fetch
        first = decode(names[0], fetch(0), None)
        self.shape = (len(names), *first.shape)

    @property
    def size(self) -> int:
        """The number of values, as for an array."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        indices = range(len(self))[which] if isinstance(which, slice) else which
        images = np.empty((len(indices), *self.shape[1:]), np.uint8)

        def fill(place: int) -> None:
            index = int(indices[place])
            images[place] = decode(self.names[index], self.fetch(index), self.shape[1:])

        # Pillow releases the GIL while it decodes.
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for _ in threads.map(fill, range(len(indices))):
                pass
        return images


def decode(name: str, data: bytes, shape: tuple[int, ...] | None) -> np.ndarray:
    """Decode an image file to pixels `[H, W, C]`, or raise InputError; the size is checked before decoding."""
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(f"{name} needs Pillow to be decoded; pip install 'piat_jax[data]'") from error
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check(name, image, shape)
            if image.format == "PNG":
                # Verifies the checksums, which decoding does not; the object cannot be used afterwards.
                image.verify()
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            gray = shape[2] == 1 if shape else image.mode in GRAY
            pixels = np.asarray(image.convert("L" if gray else "RGB"))
    except InputError:
        raise
    except Exception as error:  # For a damaged file Pillow can raise almost any exception.
        raise InputError(f"{name} cannot be decoded as an image ({first_line(error)}); copy it again") from error
    return pixels[..., None] if gray else pixels


def check(name: str, image: Any, shape: tuple[int, ...] | None) -> None:
    """Raise InputError unless an opened image can become an array of this shape."""
    more = " with transparency" if image.has_transparency_data else " with 16 bits a channel" if _is_deep(image) else ""
    if more or image.mode not in GRAY + COLOR:
        more = more if image.mode in GRAY + COLOR else ""  # otherwise the mode already says it
        raise InputError(
            f"{name} has mode {image.mode}{more}; give 8 bits a channel, gray or RGB, without transparency"
        )
    if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{name} is an animation of {image.n_frames} images; give each as a separate file")
    if shape is None:
        return
    if (image.height, image.width) != shape[:2]:
        raise InputError(
            f"{name} is {image.height}x{image.width} pixels, the first image is {shape[0]}x{shape[1]}; "
            "give images of one size, or the size of the crops: --config.dataset.image_size=224"
        )
    if shape[2] == 1 and image.mode not in GRAY:
        raise InputError(f"{name} is coloured, the first image is gray; give one type")


def _is_deep(image: Any) -> bool:
    """Whether a file has more than 8 bits per channel, which Pillow reduces to 8 for three channels."""
    coding = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in image.tile]
    if image.format == "PPM":  # its name, and the maximum value
        return any(isinstance(part, int) and part > 255 for parts in coding for part in parts[1:2])
    return image.format == "PNG" and any(";16" in str(parts[0]) for parts in coding)


def first_line(error: Exception) -> str:
    """The error in one line, without the memory address of a stream."""
    lines = str(error).splitlines()
    return type(error).__name__ if not lines or "BytesIO" in lines[0] else lines[0]
