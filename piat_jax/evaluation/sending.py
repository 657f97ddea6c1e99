"""Transfer of images to the device: all at once, or block by block for large sets."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from piat_jax.core.sharding import AXIS, blocks, put, replicate

ON_DEVICE_BYTES = 256 * 2**20
"""The most bytes of images to place on the device at once; larger sets are sent block by block."""


class Block(NamedTuple):
    """B examples of N."""

    images: jax.Array  # `[N, H, W, C]`, or if `sent` only the block's, `[B, H, W, C]`
    labels: jax.Array  # `[N]`, or `[B]`
    indices: jax.Array  # `[B]`, indices of the examples; past the end the last one is repeated
    sent: bool


def placed(images: Any) -> Any:
    """Small sets of images on the device; large sets stay on the host.

    >>> isinstance(placed(np.zeros((2, 4, 4, 3), np.uint8)), jax.Array)
    True
    """
    return images if isinstance(images, jax.Array) or are_many(images) else jnp.asarray(images)


def are_many(images: Any) -> bool:
    """Whether a set of images, or its shape and dtype, is so large that it stays on the host."""
    return math.prod(images.shape) * np.dtype(images.dtype).itemsize > ON_DEVICE_BYTES


def sent_blocks(images: Any, labels: Any, size: int, mesh: Mesh | None) -> Iterator[Block]:
    """The blocks of a set of examples in order, all with one shape.

    Small sets, and images already on a device, are placed there at once. For other sets, each block is gathered and
    sent, sharded over the devices, while the device works on the previous block.

    Args:
      images: `[N, H, W, C]`, NumPy or JAX, a memory map, or an object that returns an array when indexed by rows.
      labels: `[N]`.
      size: the most rows per block; see `core.sharding.blocks`.
      mesh: the devices; None for one device.
    """
    indices = blocks(len(labels), size, mesh)
    images = placed(images)
    if isinstance(images, jax.Array):
        images, labels = replicate((images, labels), mesh)
        for block in indices:
            yield Block(images, labels, block, False)
        return
    # Fetch the indices before the device is busy, because they come from it.
    whole = list(indices)
    rows = [np.asarray(block) for block in whole]
    labels = np.asarray(labels)
    sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec(AXIS))

    def send(number: int) -> tuple[jax.Array, jax.Array]:
        part = np.asarray(images[rows[number]]), labels[rows[number]]
        return jax.block_until_ready(jax.device_put(part) if sharding is None else put(part, sharding))

    with ThreadPoolExecutor(1, "evaluation") as thread:
        following = thread.submit(send, 0)
        for number, block in enumerate(whole):
            part = following.result()
            if number + 1 < len(whole):
                following = thread.submit(send, number + 1)
            yield Block(*part, block, True)
            del part
