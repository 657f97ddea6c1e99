"""The PIAT paper's toy data: two noisy concentric circles in three dimensions, as points and as a uint8 data set."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.core.checks import InputError, check_at_least
from piat_jax.core.rng import named_key
from piat_jax.core.types import Array
from piat_jax.data.dataset_info import dataset
from piat_jax.data.types import Found

REACH = 2.0
TRAIN_POINTS, TEST_POINTS = 1_000, 1_000


@dataclasses.dataclass(frozen=True)
class Circles:
    """`x = (rho_i cos z + e_1, rho_i sin z + e_2, t)`, `z ~ U(0, 2 pi)`, `e ~ N(0, sigma^2)`, `t ~ U(low, high)`.

    Attributes:
      inner, outer: `rho_i`, the radii of class 0 and class 1.
      sigma: standard deviation of the noise in the plane. The paper writes N(0, sigma_2) and sigma = 0.2; read as a
        variance, the classes would overlap far more than in its Fig. 2.
      low, high: range of the third coordinate, which is independent of the class.

    Raises:
      InputError: a radius or sigma is negative, or `low` is above `high`.

    Source: PIAT paper, Section III-A and Fig. 2.

    >>> points, labels = Circles(sigma=0.0).draw(jax.random.key(0), 4)
    >>> [round(x, 4) for x in jnp.linalg.norm(points[:, 0, 0, :2], axis=1).tolist()], labels.tolist()
    ([0.35, 0.35, 1.0, 1.0], [0, 0, 1, 1])
    """

    inner: float = 0.35
    outer: float = 1.0
    sigma: float = 0.2
    low: float = 0.80
    high: float = 0.85

    def __post_init__(self) -> None:
        for name in ("inner", "outer", "sigma"):
            check_at_least(name, getattr(self, name), 0)
        if self.low > self.high:
            raise InputError(f"low={self.low} must be at most high={self.high}")

    def draw(self, key: Array, count: int) -> tuple[Array, Array]:
        """`count` points `[count, 1, 1, 3]` and int32 labels `[count]`: first those of class 0, then as many of 1."""
        if count % 2 or count < 2:
            raise InputError(f"count={count} must be even and at least 2: half of the points belong to each class")
        labels = jnp.repeat(jnp.arange(2, dtype=jnp.int32), count // 2)
        radius = jnp.where(labels == 0, self.inner, self.outer)
        angle = jax.random.uniform(named_key(key, "angle"), (count,), maxval=2 * jnp.pi)
        noise = self.sigma * jax.random.normal(named_key(key, "noise"), (2, count))
        third = jax.random.uniform(named_key(key, "third"), (count,), minval=self.low, maxval=self.high)
        points = jnp.stack([radius * jnp.cos(angle) + noise[0], radius * jnp.sin(angle) + noise[1], third], axis=1)
        return points.reshape(count, 1, 1, 3), labels


@dataset(
    "circles",
    title="Circles",
    summary="The toy data of the PIAT paper as images of one pixel.",
    paper="the PIAT paper, Section III-A",
)
def read_circles() -> Found:
    """1,000 + 1,000 of the paper's points as uint8 images 1x1x3: pixel `x / 4 + 1/2`, so `[-2, 2]` becomes `[0, 1]`.

    A radius eps of the paper is eps / 4 in pixels, and one byte step is 1/64 of the paper's radius of class 0. Points
    beyond 2, five standard deviations from the outer circle, are clipped to 2. This data set is for trying out the
    commands; to study the toy problem use `Circles.draw`, which returns floats.

    >>> images, labels = read_circles().test
    >>> images.shape, np.bincount(labels).tolist()
    ((1000, 1, 1, 3), [500, 500])
    """
    splits = []
    for name, count in (("train", TRAIN_POINTS), ("test", TEST_POINTS)):
        key = named_key(jax.random.key(0), name)
        points, labels = Circles().draw(key, count)
        order = np.asarray(jax.random.permutation(named_key(key, "order"), count))  # drawn points are sorted by class
        pixels = np.rint(255 * np.clip(np.asarray(points) / (2 * REACH) + 0.5, 0, 1)).astype(np.uint8)
        splits.append((pixels[order], np.asarray(labels)[order]))
    return Found(splits[0], splits[1], "the PIAT paper's formula", "circles", ("inner", "outer"))
