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
    """Two directions in weight space, trees like the weights, each of length 1 as a whole."""

    u: PyTree
    v: PyTree


def random_directions(key: Array, params: PyTree) -> Directions:
    """`u / ||u||` and `v / ||v||` with `u, v ~ N(0, I)` over all weights together.

    The norm is that of the whole direction, as Eq. 13 has it, and not that of each filter.

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
        # Vectors: XLA:CPU compiles draws of many axes slowly.
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
    """`L(theta + m_1 u + m_2 v)`, the mean cross-entropy under attack, over a grid of `(m_1, m_2)`.

    The same images, labels and randomness at every point; the attack is run anew at each point's weights. BatchNorm's
    statistics stay those of theta.

    Args:
      model: the model.
      variables: theta and its statistics.
      images: `[B, H, W, C]` in [0, 1].
      labels: `[B]`.
      directions: u and v.
      coordinates: `[G]`, the values of both m_1 and m_2, in units of weights.
      attack: with its hyper-parameters bound; None for the clean loss.
      key: the attack's.
      points_per_call: grid points in one compiled call.

    Returns:
      `[G, G]`, m_1 along the first axis.

    Raises:
      InputError: no coordinates, or a loss that is not finite.

    Source: the PIAT paper, Eq. 13 and Fig. 8, whose m are in [-1, 1] and whose loss is under PGD-20.

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
        # The last block is filled up with its last point: one shape, one compilation.
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
