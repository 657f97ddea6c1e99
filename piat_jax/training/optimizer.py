"""Optimizers: any optax optimizer by name, with weight decay, gradient clipping and layer-wise rates."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from piat_jax.core.bound import fields_of
from piat_jax.core.checks import InputError, check_at_least, check_choice, check_range
from piat_jax.core.types import PyTree
from piat_jax.training.schedules import Rate

DECAYS = ("all", "matrices")
DEFAULTS = {"sgd": {"momentum": 0.9}}
"""Defaults that differ from optax's: the field's PyTorch codes always use momentum."""
MASKS = ("mask", "weight_decay_mask")
MOMENTA = ("momentum", "b1", "beta")
"""Optimizers' names for the momentum, which a one-cycle schedule moves against the rate."""


@functools.cache
def optimizer_names() -> tuple[str, ...]:
    """The optimizers that a config may name: those of optax and optax.contrib that need only a learning rate.

    >>> set(optimizer_names()) >= {"sgd", "adamw", "lamb", "lion", "muon"}
    True
    """
    found = {**vars(contrib), **vars(optax)}
    return tuple(sorted(name for name, value in found.items() if _is_optimizer(name, value)))


def _is_optimizer(name: str, value: Any) -> bool:
    if not inspect.isfunction(value) or name.startswith(("_", "scale_by", "schedule_free")):
        return False
    first, *rest = [*inspect.signature(value).parameters.values(), None]
    return bool(first) and first.name == "learning_rate" and all(p is None or p.default is not p.empty for p in rest)


def optimizer_fields(name: str) -> dict[str, Any]:
    """The arguments of an optimizer that a config can set, with their defaults.

    >>> optimizer_fields("sgd"), optimizer_fields("lion")
    ({'momentum': 0.9, 'nesterov': False}, {'b1': 0.9, 'b2': 0.99})
    """
    own = DEFAULTS.get(name, {})
    found = fields_of(optimizer_function(name), without=("learning_rate", "weight_decay", "mu_dtype", *MASKS))
    return {**own, **{field: default for field, default in found.items() if field not in own}}


def optimizer_function(name: str) -> Callable[..., optax.GradientTransformation]:
    """The optax function with this name; raises InputError if there is none."""
    if isinstance(name, str) and name.startswith("schedule_free"):
        raise InputError(f"optimizer {name!r} evaluates other weights than it trains; give adamw, or use it via optax")
    check_choice("optimizer", name, optimizer_names())
    return getattr(optax, name, None) or getattr(contrib, name)


def build_optimizer(
    name: str,
    rate: Rate | optax.ScalarOrSchedule,
    fields: Mapping[str, Any] = {},
    *,
    weight_decay: float = 0.0,
    weight_decay_on: str = "all",
    max_norm: float = 0.0,
    scales: PyTree | None = None,
) -> optax.GradientTransformation:
    """An optax optimizer by name, preceded by gradient clipping and weight decay, in this order.

    Args:
      name: one of `optimizer_names`.
      rate: a learning rate, a learning-rate schedule, or a `Rate`, which may also schedule the momentum.
      fields: arguments from `optimizer_fields`.
      weight_decay: decoupled if the optimizer has an argument for it (adamw, lamb, lion), as in PyTorch's AdamW; else
        coupled: added to the gradient before all momenta (sgd, adam), as in PyTorch's SGD and Adam.
      weight_decay_on: which parameters decay: "all", or "matrices", those with two or more axes, which excludes biases
        and the parameters of BatchNorm and LayerNorm.
      max_norm: clips the gradient's L2 norm over all parameters to this value; 0 = no clipping.
      scales: a tree of factors on each parameter's update, such as from `layer_scales`; None = no factors.

    Raises:
      InputError: an unknown name or field, a value out of range, an optimizer that needs more than gradients, a
        schedule of the momentum for an optimizer without one, or an optimizer whose decay cannot exclude parameters.

    >>> optimizer = build_optimizer("sgd", 0.1, {"momentum": 0.5}, weight_decay=0.1)
    >>> optimizer.update(1.0, optimizer.init(2.0), 2.0)[0].item()
    -0.12000000476837158
    """
    function, known = optimizer_function(name), optimizer_fields(name)
    for field in fields:
        check_choice(f"argument of {name}", field, known)
    check_at_least("weight_decay", weight_decay, 0)
    check_at_least("max_norm", max_norm, 0)
    check_choice("weight_decay_on", weight_decay_on, DECAYS)
    options = {**known, **fields}
    for momentum in MOMENTA:
        if momentum in options:
            check_range(momentum, options[momentum], 0, 1)
    parameters = inspect.signature(function).parameters
    mask = _matrices if weight_decay_on == "matrices" else None
    before = [optax.clip_by_global_norm(max_norm)] if max_norm else []
    if "weight_decay" not in parameters:
        before.append(optax.add_decayed_weights(weight_decay, mask))
    else:
        options["weight_decay"] = weight_decay
        masks = [argument for argument in MASKS if argument in parameters]
        if mask and not masks:
            raise InputError(f"weight_decay_on='matrices': {name} decays all parameters or none; give 'all'")
        # The mask is always given, because some optimizers decay nothing by default and some everything.
        options |= {masks[0]: mask or _all} if masks else {}
    rate = rate if isinstance(rate, Rate) else Rate(rate)  # type: ignore[arg-type]
    try:
        optimizer = optax.chain(*before, _at_rate(function, name, rate, options))
        _try(optimizer)
    except InputError:
        raise
    except Exception as error:  # any error that optax raises for its arguments
        raise InputError(f"optimizer {name!r} cannot be used here: {str(error).partition(chr(10))[0]}") from error
    return optimizer if scales is None else optax.chain(optimizer, _scaled(scales))


def _at_rate(
    function: Callable[..., optax.GradientTransformation], name: str, rate: Rate, options: dict[str, Any]
) -> optax.GradientTransformation:
    """The optimizer, with a scheduled momentum if the rate has one."""
    if rate.momentum is None:
        return function(rate.learning_rate, **options)
    moved = next((momentum for momentum in MOMENTA if momentum in options), None)
    if moved is None:
        raise InputError(f"{name} has no momentum, which the schedule changes; give another schedule or optimizer")
    fixed = {field: value for field, value in options.items() if field != moved}
    injected = optax.inject_hyperparams(functools.partial(function, **fixed))
    return injected(**{"learning_rate": rate.learning_rate, moved: rate.momentum})


def sgd(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float = 0.9, weight_decay: float = 5e-4, max_norm: float = 0.0
) -> optax.GradientTransformation:
    """PyTorch's SGD: `v <- momentum v + (g + weight_decay w)`, `w <- w - lr v`, on every parameter.

    The decay is added before the momentum (coupled) and includes BatchNorm's scale and shift and all biases, as in all
    public codes of the papers.

    Args:
      learning_rate: a number, or a function of the step.
      momentum: of the velocity v.
      weight_decay: of every parameter.
      max_norm: clips the L2 norm of g over all parameters to this value; 0 = no clipping.

    >>> import jax
    >>> optimizer = sgd(0.1, momentum=0.5, weight_decay=0.1)
    >>> optimizer.update(1.0, optimizer.init(2.0), 2.0)[0].item()
    -0.12000000476837158
    """
    fields = {"momentum": momentum}
    return build_optimizer("sgd", learning_rate, fields, weight_decay=weight_decay, max_norm=max_norm)


def _matrices(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


def _all(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: True, params)


def _scaled(scales: PyTree) -> optax.GradientTransformation:
    """Multiplies each parameter's update by its own factor."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, scale: u * scale, updates, scales))


def _try(optimizer: optax.GradientTransformation) -> None:
    """Trace an update without computing it, so that optax checks its arguments."""
    params = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}
    jax.eval_shape(lambda tree: optimizer.update(tree, optimizer.init(tree), tree), params)
