"""Loss landscapes: the loss around trained weights along two random directions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax import losses
from piat_jax.core.checks import InputError, check_count
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.types import Array, Attack, Model, PyTree, Variables
from piat_jax.programs.jit import program_jit


class Directions(NamedTuple):
    """Two directions in weight space, as trees like the weights, each of total length 1."""

    u: PyTree
    v: PyTree


def random_directions(key: Array, params: PyTree) -> Directions:
    """Draw `u / ||u||` and `v / ||v||` with `u, v ~ N(0, I)` over all weights together.

    The norm is that of the entire direction, as in Eq. 13, not that of each filter.

    Args:
      key: typed PRNG key.
      params: weights.

    >>> directions = random_directions(jax.random.key(0), {"a": jnp.zeros((2, 3)), "b": jnp.zeros(4)})
    >>> float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(directions.u)))).__round__(5)
    1.0
    """
    leaves, structure = jax.tree.flatten(params)

    def draw(key: Array) -> PyTree:
        keys = jax.random.split(key, len(leaves))
        # Drawn as vectors, as XLA:CPU compiles draws with many axes slowly.
        drawn = [jax.random.normal(k, (leaf.size,)).reshape(leaf.shape) for k, leaf in zip(keys, leaves)]
        length = jnp.sqrt(sum((jnp.sum(leaf**2) for leaf in drawn), start=jnp.float32(0)))
        return jax.tree.unflatten(structure, [leaf / length for leaf in drawn])

    return Directions(*map(draw, jax.random.split(key)))


def loss_landscape(
    model: Model,
    variables: Variables,
    images: Array,
    labels: Array,
    *,
    directions: Directions,
    coordinates: np.ndarray,
    attack: Attack | None = None,
    key: Array,
    points_per_call: int = 50,
) -> np.ndarray:
    """Compute `L(theta + m_1 u + m_2 v)`, the mean cross-entropy under attack, on a grid of `(m_1, m_2)`.

    All points use the same images, labels and randomness; the attack runs again at each point's weights. BatchNorm's
    running statistics are those of theta.

    Args:
      model: the model.
      variables: theta and its statistics.
      images: `[B, H, W, C]` in [0, 1].
      labels: `[B]`.
      directions: u and v.
      coordinates: `[G]`, the values of both m_1 and m_2, in units of the weights.
      attack: with bound hyper-parameters; None for the clean loss.
      key: for the attack.
      points_per_call: grid points per compiled call.

    Returns:
      `[G, G]`, m_1 along the first axis.

    Raises:
      InputError: there are no coordinates, or a loss is not finite.

    Source: the PIAT paper, Eq. 13 and Fig. 8, with m in [-1, 1] and the loss under PGD-20.

    >>> from piat_jax.models import create
    >>> model = create("mlp", num_classes=2, hidden=(4,))
    >>> images = jnp.ones((3, 2, 2, 1))
    >>> variables = model.init(jax.random.key(0), images)
    >>> directions = random_directions(jax.random.key(1), variables.params)
    >>> grid = loss_landscape(model, variables, images, jnp.zeros(3, int), directions=directions,
    ...                       coordinates=np.array([-1.0, 0.0, 1.0]), key=jax.random.key(2))
    >>> grid.shape
    (3, 3)
    """
    check_count("points_per_call", points_per_call, 1)
    if not len(coordinates):
        raise InputError("coordinates is empty; give some, such as np.linspace(-1, 1, 21)")
    count = len(coordinates) ** 2
    points = np.stack(np.meshgrid(coordinates, coordinates, indexing="ij"), axis=-1).reshape(count, 2)
    size = min(points_per_call, count)
    found = []
    for start in range(0, count, size):
        # The last block is padded with its last point, so that there is one shape and one compilation.
        block = points[np.minimum(np.arange(start, start + size), count - 1)].astype(np.float32)
        found.append(_losses(model, variables, directions, images, labels, attack, key, jnp.asarray(block)))
    values = np.concatenate(jax.device_get(found))[:count].reshape(len(coordinates), -1)
    if not np.isfinite(values).all():
        raise InputError(f"the loss is not finite at {int((~np.isfinite(values)).sum())} of {count} points")
    return values


@program_jit(static_argnames=("model",))
def _losses(
    model: Model,
    variables: Variables,
    directions: Directions,
    images: Array,
    labels: Array,
    attack: Attack | None,
    key: Array,
    points: Array,
) -> Array:
    def at(point: Array) -> Array:
        params = jax.tree.map(lambda w, u, v: w + point[0] * u + point[1] * v, variables.params, *directions)
        logits_fn = make_logits_fn(model, variables._replace(params=params))
        x = images if attack is None else attack(logits_fn, images, labels, key=key)
        return jnp.mean(losses.cross_entropy(logits_fn(x), labels))

    return jax.lax.map(at, points)
