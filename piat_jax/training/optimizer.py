"""SGD as the papers use it: momentum, coupled weight decay, and learning rates constant within an epoch."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from piat_jax.core.checks import InputError, check_at_least, check_count, check_range
from piat_jax.core.types import Array


def piecewise_linear(epochs: Sequence[float], values: Sequence[float], steps_per_epoch: int) -> optax.Schedule:
    """A learning rate interpolated linearly between knots, evaluated once an epoch at its 1-based number.

    `lr(n) = interp(n; epochs, values)`: with the PIAT paper's knots (0, 60, 90, 120) and values (1e-2, 1e-2, 1e-3,
    1e-4) it is 1e-2 until epoch 60, 9.7e-3 at 61 and 1e-4 at 120. Not a step decay and not linear in log scale. A step
    decay is written with two knots an epoch apart: (35, 36) with (0.1, 0.01) drops after epoch 35.

    Args:
      epochs: increasing knots.
      values: the learning rate at each; constant before the first and after the last.
      steps_per_epoch: optimizer steps in an epoch.

    Returns:
      step (0-based) -> learning rate.

    Raises:
      InputError: knots that are not finite or do not increase, or as many values as there are no knots for.

    Source: PIAT paper, Section V-A; per epoch as in SEAT and Generalist, its lineage.

    >>> schedule = piecewise_linear((0, 60, 90, 120), (1e-2, 1e-2, 1e-3, 1e-4), steps_per_epoch=10)
    >>> [round(float(schedule(10 * (n - 1))), 6) for n in (1, 60, 61, 75, 120)]
    [0.01, 0.01, 0.0097, 0.0055, 0.0001]
    """
    if len(epochs) != len(values) or not epochs:
        raise InputError(f"lr_epochs has {len(epochs)} entries and lr_values {len(values)}; give one value per knot")
    if not all(map(math.isfinite, epochs)):
        raise InputError(f"lr_epochs={tuple(epochs)} must be finite")
    if any(late <= early for early, late in itertools.pairwise(epochs)):
        raise InputError(f"lr_epochs={tuple(epochs)} must increase")
    for value in values:
        if not 0 <= value < math.inf:
            raise InputError(f"lr_values={tuple(values)} must be finite and at least 0")
    check_count("steps_per_epoch", steps_per_epoch, 1)
    knots, heights = jnp.asarray(epochs, jnp.float32), jnp.asarray(values, jnp.float32)

    def schedule(step: jax.typing.ArrayLike) -> Array:
        epoch = jnp.asarray(step, jnp.int32) // steps_per_epoch + 1
        return jnp.interp(epoch.astype(jnp.float32), knots, heights)

    return schedule


def sgd(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float = 0.9, weight_decay: float = 5e-4, max_norm: float = 0.0
) -> optax.GradientTransformation:
    """PyTorch's SGD: `v <- momentum v + (g + weight_decay w)`, `w <- w - lr v`, on every parameter.

    The decay enters before the momentum (coupled) and reaches BatchNorm's scale and shift and all biases, as in every
    public code of the papers.

    Args:
      learning_rate: a number, or a function of the step.
      momentum: of the velocity v.
      weight_decay: of every parameter.
      max_norm: a gradient g whose L2 norm over all parameters is larger is first scaled to it; 0 leaves g alone.

    >>> import jax
    >>> optimizer = sgd(0.1, momentum=0.5, weight_decay=0.1)
    >>> optimizer.update(1.0, optimizer.init(2.0), 2.0)[0].item()
    -0.12000000476837158
    """
    check_range("momentum", momentum, 0, 1)
    check_at_least("weight_decay", weight_decay, 0)
    check_at_least("max_norm", max_norm, 0)
    clip = (optax.clip_by_global_norm(max_norm),) if max_norm else ()
    return optax.chain(*clip, optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum))
