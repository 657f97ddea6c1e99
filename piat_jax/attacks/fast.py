"""One-step attacks for fast adversarial training."""

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.attacks.ascent import Ascent
from piat_jax.attacks.registry import attack
from piat_jax.core.checks import check_at_least, check_box, check_choice, check_images, check_key, check_radius
from piat_jax.core.network_checks import check_network
from piat_jax.core.norms import Box, Radius, norm_name, per_example, random_in_ball
from piat_jax.core.rng import example_keys
from piat_jax.core.types import Array, LogitsFn, LossFn


@attack(
    "n_fgsm",
    summary="One step from strong noise, clipped to the box only: a training attack that may leave the ball.",
    paper="de Jorge et al. (2022), arXiv:2202.01181",
)
def n_fgsm(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    key: Array,
    indices: Array | None = None,
    targets: Array | None = None,
    eps: Radius = 8 / 255,
    noise_scale: Radius = 2.0,
    step_scale: Radius = 1.0,
    norm: str = "linf",
    loss: LossFn = losses.cross_entropy,
    box: Box = (0.0, 1.0),
) -> Array:
    """N-FGSM: `x' = box(x + n + step_scale eps sign(grad loss(x + n)))`, n uniform in `noise_scale` times [-eps, eps].

    x' is not projected onto the ball of eps and may be `(noise_scale + step_scale) eps` away, so this attack is for
    training. An evaluation does not count points outside the ball as success.

    Args:
      logits_fn, images, labels, key, indices, targets, eps, loss, box: as in `pgd`.
      noise_scale: radius of the noise in units of eps; 2 in the paper.
      step_scale: step size in units of eps; 1 in the paper.
      norm: only "linf".

    Source: de Jorge et al. (2022), arXiv:2202.01181.

    >>> logits_fn = lambda x: jnp.concatenate([x.reshape(1, 1), jnp.zeros((1, 1))], axis=1)
    >>> x = jnp.full((1, 1, 1, 1), 0.5)
    >>> options = dict(key=jax.random.key(0), eps=0.25, noise_scale=0.0)
    >>> n_fgsm(logits_fn, x, jnp.array([0]), **options).ravel().tolist()
    [0.25]
    """
    check_network(logits_fn)
    check_box(box)
    check_images("images", images, box)
    check_key(key)
    check_choice("norm", norm_name(norm), ("linf",))
    check_radius("eps", eps, "linf", box)
    check_at_least("noise_scale", noise_scale, 0)
    check_at_least("step_scale", step_scale, 0)
    ascent = Ascent(logits_fn, images, labels, eps, 0.0, "linf", loss, box, targets=targets)
    keys = example_keys(key, jnp.arange(images.shape[0]) if indices is None else indices)
    radius = jnp.asarray(noise_scale) * eps
    start = ascent.images + random_in_ball(keys, radius, images.shape[1:], "linf", ascent.images.dtype)
    step = per_example(jnp.asarray(step_scale) * eps, start) * jnp.sign(ascent.gradient(start)[0])
    return jax.lax.stop_gradient(ascent.into_box(start + step).astype(images.dtype))
