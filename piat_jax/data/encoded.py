"""Images that are files, or bytes of files, and become arrays when they are asked for."""

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
"""Modes of one channel and of three. Transparency, 16 bits and several frames are refused, wherever a format keeps
them: dropping them would lose what is seen."""


class EncodedImages:
    """Images of one size, decoded by Pillow: as an array of uint8 `[N, H, W, C]` that is indexed by a slice or indices.

    Args:
      names: what each is called in errors.
      fetch: `index -> bytes` of the file.

    The first image decides on the size, and on one channel or three; gray images among coloured ones get three.

    Raises:
      InputError: on indexing, an image that is damaged or of another size.
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
        """How many values there are, as of an array."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        indices = range(len(self))[which] if isinstance(which, slice) else which
        images = np.empty((len(indices), *self.shape[1:]), np.uint8)

        def fill(place: int) -> None:
            index = int(indices[place])
            images[place] = decode(self.names[index], self.fetch(index), self.shape[1:])

        # Pillow decodes outside of Python's lock.
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for _ in threads.map(fill, range(len(indices))):
                pass
        return images


def decode(name: str, data: bytes, shape: tuple[int, ...] | None) -> np.ndarray:
    """The pixels `[H, W, C]` of an image file, or InputError; its size is looked at before anything is decoded."""
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(f"{name} needs Pillow to be decoded; pip install 'piat_jax[data]'") from error
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check(name, image, shape)
            if image.format == "PNG":
                # Verifies the checksums, which decoding does not; such an object cannot be used any more.
                image.verify()
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            gray = shape[2] == 1 if shape else image.mode in GRAY
            pixels = np.asarray(image.convert("L" if gray else "RGB"))
    except InputError:
        raise
    except Exception as error:  # Pillow raises nearly anything at a damaged file.
        raise InputError(f"{name} cannot be decoded as an image ({first_line(error)}); copy it again") from error
    return pixels[..., None] if gray else pixels


def check(name: str, image: Any, shape: tuple[int, ...] | None) -> None:
    """Raise InputError unless an opened image can become an array of this shape."""
    more = " with transparency" if image.has_transparency_data else " with 16 bits a channel" if _is_deep(image) else ""
    if more or image.mode not in GRAY + COLOR:
        more = more if image.mode in GRAY + COLOR else ""  # the mode says it
        raise InputError(
            f"{name} has mode {image.mode}{more}; give 8 bits a channel, gray or RGB, without transparency"
        )
    if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{name} is an animation of {image.n_frames} images; give each as a file of its own")
    if shape is None:
        return
    if (image.height, image.width) != shape[:2]:
        raise InputError(
            f"{name} is {image.height}x{image.width} pixels, the first image is {shape[0]}x{shape[1]}; "
            "give images of one size, or the size that they are to have: --config.dataset.image_size=224"
        )
    if shape[2] == 1 and image.mode not in GRAY:
        raise InputError(f"{name} has colours, the first image has none; give one kind")


def _is_deep(image: Any) -> bool:
    """Whether a file has more than 8 bits a channel, which Pillow cuts to 8 where there are three channels."""
    coding = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in image.tile]
    if image.format == "PPM":  # its name, and the value of white
        return any(isinstance(part, int) and part > 255 for parts in coding for part in parts[1:2])
    return image.format == "PNG" and any(";16" in str(parts[0]) for parts in coding)


def first_line(error: Exception) -> str:
    """The error on one line, without the memory address of a stream."""
    lines = str(error).splitlines()
    return type(error).__name__ if not lines or "BytesIO" in lines[0] else lines[0]
