"""How images come to the device: all of them at once, or block by block where they are many."""

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
"""Of images that are on the device as a whole; more are sent block by block."""


class Block(NamedTuple):
    """B examples of N."""

    images: jax.Array  # `[N, H, W, C]`, or where `sent` those of the block, `[B, H, W, C]`
    labels: jax.Array  # `[N]`, or `[B]`
    indices: jax.Array  # `[B]`, of the examples; past the end the last one is repeated
    sent: bool


def placed(images: Any) -> Any:
    """Images on the device where they are few; many stay where they are.

    >>> isinstance(placed(np.zeros((2, 4, 4, 3), np.uint8)), jax.Array)
    True
    """
    return images if isinstance(images, jax.Array) or are_many(images) else jnp.asarray(images)


def are_many(images: Any) -> bool:
    """Whether images, or shapes of them, are so many that they stay on the host."""
    return math.prod(images.shape) * np.dtype(images.dtype).itemsize > ON_DEVICE_BYTES


def sent_blocks(images: Any, labels: Any, size: int, mesh: Mesh | None) -> Iterator[Block]:
    """The blocks of a set of examples in order, all of one shape.

    Images that are on a device already, or are few, are there as a whole. Of others a block is gathered and sent, its
    rows shared out over the devices, while the one before it is worked on.

    Args:
      images: `[N, H, W, C]`, of NumPy or JAX, a map of a file, or what gives an array when it is indexed by rows.
      labels: `[N]`.
      size: rows of a block, at most; see `core.sharding.blocks`.
      mesh: the devices; None for one.
    """
    indices = blocks(len(labels), size, mesh)
    images = placed(images)
    if isinstance(images, jax.Array):
        images, labels = replicate((images, labels), mesh)
        for block in indices:
            yield Block(images, labels, block, False)
        return
    # Before the device is busy: these come from it.
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
