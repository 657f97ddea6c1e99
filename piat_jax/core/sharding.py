"""Data parallelism: each batch is shared out among the devices, everything else is on all of them.

`None` in place of a mesh is one device, whichever the arrays are on.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from piat_jax.core.checks import check_at_least

Tree = TypeVar("Tree")
AXIS = "data"


def data_mesh(batch_size: int, devices: Sequence[Any] | None = None) -> Mesh | None:
    """A mesh of as many devices as can have equal shares of a batch; None if that is one.

    Args:
      batch_size: examples in a batch.
      devices: default all.

    >>> data_mesh(7, jax.devices()[:1]) is None
    True
    """
    check_at_least("batch_size", batch_size, 1)
    devices = jax.devices() if devices is None else devices
    count = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
    return None if count == 1 else Mesh(np.array(devices[:count]), (AXIS,), axis_types=(AxisType.Auto,))


def replicate(tree: Tree, mesh: Mesh | None) -> Tree:
    """The tree on every device of the mesh; what is there already is not copied."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split_batch(batch: Tree, mesh: Mesh | None) -> Tree:
    """Inside a jitted function: arrays `[B, ...]` shared out by their first axis."""
    return _constrain(batch, mesh, PartitionSpec(AXIS))


def keep_replicated(tree: Tree, mesh: Mesh | None) -> Tree:
    """Inside a jitted function: the tree on every device, whatever XLA would choose."""
    return _constrain(tree, mesh, PartitionSpec())


def _constrain(tree: Any, mesh: Mesh | None, spec: PartitionSpec) -> Any:
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, spec))
