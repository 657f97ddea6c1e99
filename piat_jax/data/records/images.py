"""A split of encoded images that behaves like an array of their evaluation crops."""

import functools
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.scratch import scratch
from piat_jax.data.records.base import Records
from piat_jax.data.records.geometry import Decoding, crop_draws, evaluation_crop, open_image, training_crop
from piat_jax.data.types import Split

AT_ONCE = 1024
"""Number of images that are queued for the decoding threads."""
TRIED_IN_PLACE = 1000
"""Number of examples that are tried to replace one that cannot be decoded."""


class RecordImages:
    """Images `[N, size, size, 3]`, uint8, which are decoded when they are indexed, as for evaluation.

    Args:
      records: the source of the images.
      decoding: how to decode them.
      which: `[N]`, the numbers of the records in this split; None = all.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, records: Records, decoding: Decoding, which: np.ndarray | None = None):
        self.records, self.decoding, self.which = records, decoding, which
        count = len(records) if which is None else len(which)
        self.shape = (count, decoding.size, decoding.size, 3)

    @property
    def size(self) -> int:
        """The number of values, as for an array."""
        return math.prod(self.shape)

    @property
    def labels(self) -> np.ndarray:
        """The labels, `[N]` int32."""
        return self.records.labels if self.which is None else self.records.labels[self.which]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        indices = np.arange(len(self))[which]
        images = np.empty((len(indices), *self.shape[1:]), np.uint8)

        def fill(place: int) -> None:
            images[place] = self.evaluated(int(indices[place]))

        _for_all(fill, len(indices))
        return images

    def part(self, which: np.ndarray) -> "RecordImages":
        """The images with some numbers, or selected by a mask; nothing is decoded."""
        chosen = np.arange(len(self))[which]
        return RecordImages(self.records, self.decoding, chosen if self.which is None else self.which[chosen])

    def evaluated(self, index: int) -> np.ndarray:
        """The evaluation crop of an image."""
        return evaluation_crop(self._open(index), self.decoding)

    def drawn(self, index: int, words: tuple[int, ...], epoch: int) -> np.ndarray:
        """The training crop of an image in an epoch, for a key."""
        return training_crop(self._open(index), self.decoding, crop_draws(words, epoch, index))

    def drawn_or_next(self, index: int, words: tuple[int, ...], epoch: int) -> tuple[np.ndarray, int]:
        """As `drawn`, with the example's number; if bad images are skipped, those of the next good image.

        Raises:
          InputError: the image, or also the following images if bad images are skipped, cannot be decoded.
        """
        tried = 1 if self.decoding.on_bad == "stop" else min(TRIED_IN_PLACE, len(self))
        for step in range(tried):
            chosen = (index + step) % len(self)
            try:
                return self.drawn(chosen, words, epoch), chosen
            except InputError:
                if step == tried - 1:
                    raise
        raise AssertionError

    def name(self, index: int) -> str:
        """The image's name in messages."""
        return self.records.name(self._record(index))

    def read(self, index: int) -> bytes:
        """The bytes of an image file."""
        return self.records.read(self._record(index))

    def _record(self, index: int) -> int:
        return index if self.which is None else int(self.which[index])

    def _open(self, index: int) -> Any:
        return open_image(self.name(index), self.read(index))


def decoded(images: RecordImages) -> tuple[Split, list[str]]:
    """Decode all images of a split as for evaluation, into an array of `core.scratch`; also a line per bad image.

    Raises:
      InputError: an image cannot be decoded and bad ones are not skipped, none can be decoded, or the disk is too
        small.
    """
    pixels = scratch(f"the {len(images)} images to evaluate on, of {images.records.where},", images.shape, np.uint8)
    bad: dict[int, str] = {}

    def fill(place: int) -> None:
        try:
            pixels[place] = images.evaluated(place)
        except InputError as error:
            if images.decoding.on_bad == "stop":
                raise
            bad[place] = str(error)

    _for_all(fill, len(images))
    if len(bad) == len(images):
        raise InputError(f"{images.records.where} has no image that can be decoded; the first error: {bad[0]}")
    good = np.setdiff1d(np.arange(len(images)), list(bad))
    for place, kept in enumerate(good.tolist()):
        if place != kept:
            pixels[place] = pixels[kept]
    return Split(pixels[: len(good)], images.labels[good]), [bad[place] for place in sorted(bad)]


def _for_all(work: Any, count: int) -> None:
    """Call `work` with each number below `count`, in threads: Pillow releases the GIL while it decodes."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in range(0, count, AT_ONCE):
            for _ in threads.map(work, range(start, min(start + AT_ONCE, count))):
                pass


@functools.cache
def _nothing(size: int) -> np.ndarray:
    return np.zeros((size, size, 3), np.uint8)


def row(images: RecordImages, words: tuple[int, ...], place: Sequence[int]) -> dict[str, Any]:
    """A worker's result for an epoch and an index: the training crop, and the number of the example that it shows.

    A negative number, `-1 - index`, means that the image cannot be decoded; the caller decodes it again to report why.
    """
    epoch, index = place
    try:
        image, chosen = images.drawn_or_next(index, words, epoch)
    except InputError:
        image, chosen = _nothing(images.decoding.size), -1 - index
    return {"image": image, "index": np.int64(chosen)}
