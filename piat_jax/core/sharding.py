"""Data parallelism: each batch is sharded over the devices, everything else is replicated.

With `split_state` the training state is sharded too. The devices may belong to several processes, each of which holds
the same data. `None` in place of a mesh means one device, the one that holds the arrays.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from piat_jax.core.checks import InputError, check_count

Tree = TypeVar("Tree")
AXIS = "data"


def data_mesh(batch_size: int, devices: Sequence[Any] | None = None) -> Mesh | None:
    """A mesh of as many devices as can have equal shares of a batch; None if that is one device.

    Args:
      batch_size: examples per batch.
      devices: default all, including those of other processes; the mesh has equally many from each process.

    Raises:
      InputError: the batch cannot be divided among the processes.

    >>> data_mesh(7, jax.devices()[:1]) is None
    True
    """
    check_count("batch_size", batch_size, 1)
    groups: dict[int, list[Any]] = {}
    for device in jax.devices() if devices is None else devices:
        groups.setdefault(device.process_index, []).append(device)
    if batch_size % len(groups):
        raise InputError(f"batch_size={batch_size} cannot be divided among {len(groups)} processes; give a multiple")
    most = min(map(len, groups.values()))
    count = max(n for n in range(1, most + 1) if batch_size % (n * len(groups)) == 0)
    chosen = [device for group in groups.values() for device in group[:count]]
    return None if len(chosen) == 1 else Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def replicate(tree: Tree, mesh: Mesh | None) -> Tree:
    """The tree on every device of the mesh; arrays that are already there are not copied."""
    return tree if mesh is None else put(tree, NamedSharding(mesh, PartitionSpec()))


def put(tree: Tree, sharding: Any) -> Tree:
    """`jax.device_put` for a tree that every process has; `sharding` is one sharding, or a tree of them."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda leaf: sharding, tree)
    return jax.tree.map(_put_across, tree, sharding)


def gather(tree: Tree) -> Tree:
    """The tree as NumPy arrays, each complete in every process."""

    def whole(leaf: jax.Array) -> np.ndarray:
        here = leaf.is_fully_addressable or leaf.is_fully_replicated
        return np.asarray(leaf) if here else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, tree)


def blocks(count: int, size: int, mesh: Mesh | None) -> Iterator[jax.Array]:
    """The indices of `count` examples in blocks of one length, at most `size` and divisible among the devices.

    Past the end the last example is repeated; cut off the results of the copies.

    >>> [block.tolist() for block in blocks(5, 2, None)]
    [[0, 1], [2, 3], [4, 4]]
    """
    check_count("batch_size", size, 1)
    shares = 1 if mesh is None else mesh.size
    length = -(-min(size, count) // shares) * shares
    for start in range(0, count, length):
        yield replicate(jnp.minimum(jnp.arange(start, start + length), count - 1), mesh)


def split_batch(batch: Tree, mesh: Mesh | None) -> Tree:
    """Inside a jitted function: arrays `[B, ...]` sharded along their first axis."""
    return batch if mesh is None else jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(AXIS)))


def keep_replicated(tree: Tree, mesh: Mesh | None) -> Tree:
    """Inside a jitted function: the tree replicated on every device, whatever XLA would choose."""
    return keep_state(tree, mesh, split=False)


def put_state(state: Tree, mesh: Mesh | None, *, split: bool) -> Tree:
    """A training state on the devices; with `split` sharded as in `state_shardings`.

    Without a mesh, NumPy arrays go to the default device and JAX arrays stay where they are.
    """
    return jax.device_put(state) if mesh is None else put(state, state_shardings(state, mesh, split=split))


def keep_state(state: Tree, mesh: Mesh | None, *, split: bool) -> Tree:
    """The equivalent of `put_state` inside a jitted function."""
    return state if mesh is None else jax.lax.with_sharding_constraint(state, state_shardings(state, mesh, split=split))


def state_shardings(tree: Any, mesh: Mesh, *, split: bool) -> Any:
    """The sharding of each array of a state: replicated, or with `split` in equal parts.

    An array is split along the largest axis that is divisible by the number of devices. Vectors, and arrays without
    such an axis, are replicated, because they are small.
    """

    def sharding(leaf: Any) -> NamedSharding:
        axes = [axis for axis, length in enumerate(leaf.shape) if length and length % mesh.size == 0]
        if not split or len(leaf.shape) < 2 or not axes:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, PartitionSpec(*[None] * max(axes, key=lambda axis: leaf.shape[axis]), AXIS))

    return jax.tree.map(sharding, tree)


def _put_across(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Put an array that every process has on the devices of all; `device_put` would transfer it to compare it."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if leaf.sharding.device_set == sharding.device_set:
            return jax.device_put(leaf, sharding)
        leaf = leaf.addressable_data(0) if leaf.is_fully_replicated else gather(leaf)
    if not (isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)):
        leaf = np.asarray(leaf)
    places = sharding.addressable_devices_indices_map(leaf.shape)
    parts = [jax.device_put(leaf[places[device]], device) for device in sharding.mesh.local_devices or ()]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)
