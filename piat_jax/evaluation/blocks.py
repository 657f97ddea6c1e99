"""Runs compiled functions on blocks of rows with one shape, on one device or several."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from piat_jax.attacks import Outcome
from piat_jax.core.bound import Bound
from piat_jax.core.network_checks import checked_logits
from piat_jax.core.sharding import gather, put, replicate
from piat_jax.core.types import Array, LossFn
from piat_jax.evaluation.journal import digest
from piat_jax.programs.jit import program_jit

ROWS = "rows"


class Rows(NamedTuple):
    """An attack's inputs for a block, `[R, ...]` each."""

    images: Array | np.ndarray  # float32 in [0, 1]
    labels: Array | np.ndarray
    indices: Array | np.ndarray  # a row's randomness derives from its index
    active: Array | np.ndarray  # false for padding
    targets: Array | np.ndarray | None  # target classes; None for an untargeted attack


class Found(NamedTuple):
    """An attack's results for a block, `[R, ...]` each: JAX arrays in the compiled function, NumPy outside."""

    images: Any  # float32
    queries: Any  # int32, the forwards it spent, 0 if it does not report them
    claimed: Any  # bool, whether it reports success; true if it does not report this


class Blocks:
    """Calls a `logits_fn` on blocks of `size` rows, split over the devices; shorter blocks are padded.

    Each device runs its own loop over its share, so devices do not wait for each other, and only one shape is compiled.
    The devices may belong to several processes; each process makes the same calls and receives all results.
    """

    def __init__(self, logits_fn: Callable[..., Array], size: int, devices: Sequence[Any], precision: str):
        self.mesh = Mesh(np.array(devices), (ROWS,))
        # Multiples of eight rows fill whole vectors; a CPU rounds leftover rows differently.
        unit = 8 * len(devices)
        self.size = -(-size // unit) * unit
        self.precision = precision
        # A pytree passes its weights as arguments; the weights of any other function are constants of the program.
        self.weights = jax.tree.leaves(logits_fn)
        if not all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in self.weights):
            # Wrapped in a function, because a module may be unhashable, and jit needs a hash.
            self.weights, logits_fn = [], jax.tree_util.Partial(_caller(logits_fn))
        self.logits_fn = replicate(logits_fn, self.mesh)

    def weights_digest(self) -> str:
        """A fingerprint of the weights passed as arguments; empty if the network closes over them."""
        return digest(*map(_plain, self.weights)) if self.weights else ""

    def logits(self, images: np.ndarray, keys: Array | None = None) -> np.ndarray:
        """`[R, K]` float32 for `images[R, H, W, C]`, R at most `size`; `keys[R]` for a randomised network."""
        with self._exactly():
            padded = self._put((images, keys), len(images))
            return gather(_logits(self.logits_fn, *padded, mesh=self.mesh))[: len(images)]

    def attack(self, attack: Bound, rows: Rows, key: Array, eps: float, norm: str) -> Found:
        """Run an attack on `rows`."""
        with self._exactly():
            padded = self._put(rows, len(rows.labels))
            found = _attack(attack, self.logits_fn, padded, key, jnp.float32(eps), norm=norm, mesh=self.mesh)
            return Found(*(leaf[: len(rows.labels)] for leaf in gather(found)))

    def gradients(self, fn: LossFn, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """`[R, H, W, C]`, the gradient of `fn(logits, labels)[R]` with respect to each image."""
        with self._exactly():
            padded = self._put((images, labels), len(labels))
            return gather(_gradients(self.logits_fn, *padded, fn=fn, mesh=self.mesh))[: len(labels)]

    def _put(self, tree: Any, count: int) -> Any:
        """Pad with copies of the first row, with `active` false, and shard over the devices."""
        place = np.where(np.arange(self.size) < count, np.arange(self.size), 0)
        padded = jax.tree.map(lambda x: x[place], tree)
        if isinstance(padded, Rows):
            padded = padded._replace(active=padded.active & (np.arange(self.size) < count))
        return put(padded, NamedSharding(self.mesh, P(ROWS)))

    def _exactly(self) -> Any:
        return jax.default_matmul_precision(None if self.precision == "default" else self.precision)


def _caller(logits_fn: Callable[..., Array]) -> Callable[..., Array]:
    try:
        hash(logits_fn)
    except TypeError:
        return lambda *arguments: logits_fn(*arguments)
    return logits_fn


def _plain(leaf: Any) -> np.ndarray:
    keys = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if keys else leaf)


@program_jit(static_argnames="mesh")
def _logits(logits_fn: Any, images: Array, keys: Array | None, *, mesh: Mesh) -> Array:
    def local(logits_fn: Any, images: Array, keys: Array | None) -> Array:
        return checked_logits(logits_fn, images, *([] if keys is None else [keys])).astype(jnp.float32)

    return _split(local, mesh, replicated=1, split=2)(logits_fn, images, keys)


@program_jit(static_argnames=("norm", "mesh"))
def _attack(attack: Bound, logits_fn: Any, rows: Rows, key: Array, eps: Array, *, norm: str, mesh: Mesh) -> Found:
    takes_active = "active" in inspect.signature(attack.fn).parameters

    def local(attack: Bound, logits_fn: Any, key: Array, eps: Array, rows: Rows) -> Found:
        options: dict[str, Any] = {"active": rows.active} if takes_active else {}
        if rows.targets is not None:
            options["targets"] = rows.targets
        found = attack(
            logits_fn, rows.images, rows.labels, key=key, indices=rows.indices, eps=eps, norm=norm, **options
        )
        if isinstance(found, Outcome):
            return Found(found.images, found.queries, found.fooled)
        return Found(found, jnp.zeros(rows.labels.shape, jnp.int32), jnp.ones(rows.labels.shape, bool))

    return _split(local, mesh, replicated=4, split=1)(attack, logits_fn, key, eps, rows)


@program_jit(static_argnames=("fn", "mesh"))
def _gradients(logits_fn: Any, images: Array, labels: Array, *, fn: LossFn, mesh: Mesh) -> Array:
    def local(logits_fn: Any, images: Array, labels: Array) -> Array:
        return jax.grad(lambda x: jnp.sum(fn(logits_fn(x).astype(jnp.float32), labels)))(images)

    return _split(local, mesh, replicated=1, split=2)(logits_fn, images, labels)


def _split(fn: Callable[..., Any], mesh: Mesh, *, replicated: int, split: int) -> Callable[..., Any]:
    specs = (P(),) * replicated + (P(ROWS),) * split
    return jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=P(ROWS), check_vma=False)
