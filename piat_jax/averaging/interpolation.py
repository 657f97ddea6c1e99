"""Parameter interpolation: the weight schedule, the function on trees, and the optax transformation.

`theta'_n = lambda_n theta'_{n-1} + (1 - lambda_n) theta_n`: after round n the fast weights `theta_n` are pulled back
towards the last interpolated weights, and round n + 1 starts from the result (PIAT paper, Eq. 9 and Algorithm 1).
Lookahead (Zhang et al., 2019) does the same with a constant weight. PIAT's round is an epoch, and its weight grows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from piat_jax.core.checks import InputError, check_count, check_range
from piat_jax.core.renamed import renamed_argument
from piat_jax.core.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class RationalWeight:
    """PIAT's schedule `lambda_n = (a n + b) / (c n + d)` (Eq. 10): from b/d at n = 0 towards a/c.

    With the paper's constants, `(n + 1) / (n + 10)`, early rounds keep little of the past, late rounds nearly all.

    Attributes:
      a, b, c, d: constants with `c >= a >= 0` and `d >= b >= 0`, `d > 0`, so that the weight lies in [0, 1].

    Raises:
      InputError: the constants allow a weight outside [0, 1].

    >>> weight = RationalWeight()
    >>> [round(float(weight(n)), 3) for n in (1, 9, 120)]
    [0.182, 0.526, 0.931]
    >>> RationalWeight(a=2.0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: weight with a=2.0, b=1.0, c=1.0, d=10.0 can leave [0, 1]; give c >= a >= 0, ...
    """

    a: float = 1.0
    b: float = 1.0
    c: float = 1.0
    d: float = 10.0

    def __post_init__(self) -> None:
        if not (np.inf > self.c >= self.a >= 0 and np.inf > self.d >= self.b >= 0 and self.d > 0):
            raise InputError(
                f"weight with a={self.a}, b={self.b}, c={self.c}, d={self.d} can leave [0, 1]; "
                "give c >= a >= 0, d >= b >= 0 and d > 0"
            )

    def __call__(self, n: jax.typing.ArrayLike) -> Array:
        """`lambda_n` as a float (64 bits under x64), for a number or an array of numbers, traced or not."""
        n = jnp.asarray(n, float)
        return (self.a * n + self.b) / (self.c * n + self.d)


Weight = jax.typing.ArrayLike | Callable[[Any], jax.typing.ArrayLike]
"""The weight of the past: a constant in [0, 1], or a schedule of the round number n."""

PAPER_WEIGHT = RationalWeight()


def check_weight(weight: object) -> None:
    """Raise InputError unless a concrete constant `weight` lies in [0, 1]; schedules and traced values pass."""
    check_range("weight", weight, 0, 1)


def weight_at(weight: Weight, n: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    """The weight of round `n`."""
    return weight(n) if callable(weight) else weight


def interpolate(previous: PyTree, current: PyTree, weight: jax.typing.ArrayLike) -> PyTree:
    """`weight * previous + (1 - weight) * current`, leaf by leaf.

    Weight 0 gives exactly `current` and weight 1 exactly `previous`, whatever the other tree contains. Equal trees give
    bit-identical results.

    Args:
      previous: a pytree of arrays.
      current: a pytree of the same structure and shapes.
      weight: a scalar in [0, 1].

    Returns:
      A tree with the dtypes of `current`, computed in float32 or wider. Leaves that are not floating point (counters,
      flags, keys) come from `current`.

    Raises:
      InputError: the trees differ.

    >>> interpolate({"w": jnp.array([0.0, 4.0])}, {"w": jnp.array([8.0, 4.0])}, 0.25)["w"].tolist()
    [6.0, 4.0]
    >>> interpolate({"w": 0.0}, {"w": 0.0, "b": 1.0}, 0.25)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: previous and current are different trees: only current has ['b']
    """
    _check_same("previous", previous, "current", current)

    def mix(before: Array, now: Array) -> Array:
        before, now = jnp.asarray(before), jnp.asarray(now)
        if not jnp.issubdtype(now.dtype, jnp.inexact):
            return now
        wide = jnp.promote_types(now.dtype, jnp.float32)
        p, c = before.astype(wide), now.astype(wide)
        w = jnp.asarray(weight, jnp.finfo(wide).dtype)
        # The difference of equal values is exactly 0. Weights 0 and 1 select, because 0 * inf is nan.
        mixed = c - w * (c - p)
        return jnp.where(w == 0, c, jnp.where(w == 1, p, mixed)).astype(now.dtype)

    return jax.tree.map(mix, previous, current)


_Shapes = dict[str, tuple[int, ...]]


def _check_same(name: str, tree: PyTree, other_name: str, other: PyTree) -> None:
    """Raise InputError unless the trees agree in structure and shapes; the message names a differing leaf."""
    _check_shapes(name, _shapes(tree), other_name, _shapes(other))
    if jax.tree.structure(tree) != jax.tree.structure(other):
        raise InputError(f"{name} and {other_name} are different trees: their containers differ in type")


def _check_shapes(name: str, shapes: _Shapes, other_name: str, other_shapes: _Shapes) -> None:
    for path in shapes | other_shapes:
        if path not in other_shapes or path not in shapes:
            owner = name if path in shapes else other_name
            raise InputError(f"{name} and {other_name} are different trees: only {owner} has {path}")
        if shapes[path] != other_shapes[path]:
            raise InputError(
                f"{name} and {other_name} differ at {path}: shape {shapes[path]} against {other_shapes[path]}"
            )


def _shapes(tree: PyTree) -> _Shapes:
    return {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


class InterpolateParamsState(NamedTuple):
    """State of `interpolate_params`."""

    # int32, updates seen. The name follows optax's states and checkpoints; like theirs, it hides tuple.count.
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    syncs: Array  # int32, interpolations done
    anchor: optax.Params  # theta', the weights after the last interpolation; the initial ones before the first


@renamed_argument("first", "first_epoch")
def interpolate_params(
    period: int | None = None, *, weight: Weight | None = None, first_epoch: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Interpolate the parameters with their last interpolated value, every `period` updates or on demand.

    `theta'_n = lambda_n theta'_{n-1} + (1 - lambda_n) (theta + updates)` replaces the parameters: on an interpolating
    update the transformation returns `theta'_n - theta`, on all others the updates it was given. It must be the LAST of
    an `optax.chain`, because it needs the final updates; `interpolated` puts it there.

    With `period`, the n-th interpolation happens on update n * period. To interpolate on a given update, whatever the
    count, pass `interpolate=True` (a bool, traced or not) as an extra argument of `update`; this is the safer trigger
    if the last batch of an epoch is dropped or steps are skipped. Without either, parameters do not change.

    The transformation cannot see BatchNorm's running statistics, because they are not parameters. Without treatment
    they remain those of the fast weights. Interpolate them too, as the epoch hook `piat_jax.averaging.PIAT` does, or
    re-estimate them with `piat_jax.averaging.recompute_batch_stats`.

    Args:
      period: updates between two interpolations (for PIAT, the steps of an epoch); None for the extra argument only.
      weight: `lambda`, the weight of the past: a constant in [0, 1], or a schedule n -> lambda_n; None is PIAT's,
        `RationalWeight()`. With a constant this is `optax.lookahead` with `slow_step_size = 1 - weight`.
      first_epoch: n of the first interpolation (a period is PIAT's epoch): 1 as in Algorithm 1, 0 to start at the
        schedule's b/d.

    Returns:
      A transformation whose state keeps one copy of the parameters. Updates keep their dtype, or take the parameters'
      dtype if it is wider.

    Raises:
      InputError: `period` is below 1 or not a whole number, a constant `weight` outside [0, 1], `first_epoch` negative;
        in `update`, no parameters were given.

    Inside `optax.MultiSteps` the period counts optimizer steps, and `interpolate=True` acts only on the micro-step that
    completes a step. Under `optax.inject_hyperparams` a constant weight may be injected; name your own schedule in
    `static_args=("weight",)`, or optax evaluates it at its own step count. Put `optax.apply_if_finite` inside:
    `interpolated(optax.apply_if_finite(optimizer, 5))`. Outside, it undoes everything in a bad step: an interpolation
    requested with `interpolate=True` is lost, and the step does not count for `period`.

    Example: SGD with step size 1 on the gradient 1: x goes 4, 3, then (4 + 2) / 2 = 3, where plain SGD is at 2.

    >>> optimizer = optax.chain(optax.sgd(1.0), interpolate_params(period=2, weight=0.5))
    >>> x = jnp.array(4.0)
    >>> state = optimizer.init(x)
    >>> for _ in range(4):
    ...     updates, state = optimizer.update(jnp.array(1.0), state, x)
    ...     x = optax.apply_updates(x, updates)
    ...     print(x)
    3.0
    3.0
    2.0
    2.0

    References:
      PIAT paper, Eq. 9-10 and Algorithm 1; Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back" (2019),
      whose inner loop is one epoch here.
    """
    if isinstance(period, (float, np.floating)):
        raise InputError(f"period={period} must be a whole number of updates; did you mean {round(period)}?")
    if period is not None:
        check_count("period", period, 1)
    check_count("first_epoch", first_epoch, 0)
    # The default argument is not a schedule, because optax.inject_hyperparams would treat it as its own.
    schedule = PAPER_WEIGHT if weight is None else weight
    check_weight(schedule)

    def init(params: optax.Params) -> InterpolateParamsState:
        # Copies, so that parameters and state can be donated together; with fixed dtypes, so that no step retraces.
        anchor = jax.tree.map(lambda leaf: jnp.array(leaf, dtype=jnp.asarray(leaf).dtype, copy=True), params)
        return InterpolateParamsState(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32), anchor)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, InterpolateParamsState]:
        if params is None:
            raise InputError("interpolate_params needs the parameters; call update(updates, state, params)")
        count = jnp.asarray(optax.safe_increment(state.count))
        sync = jnp.asarray(extra_args.get("interpolate", False), bool)
        if sync.ndim:
            raise InputError(f"interpolate has shape {sync.shape}; give one bool for all parameters")
        if period is not None:
            sync |= count % period == 0

        fast = optax.apply_updates(params, updates)
        target = interpolate(state.anchor, fast, weight_at(schedule, state.syncs + first_epoch))

        def step(to: Array, start: Array, given: Array) -> Array:
            dtype = jnp.result_type(start, given)
            return jnp.where(sync, jnp.asarray(to, dtype) - jnp.asarray(start, dtype), given).astype(dtype)

        new_updates = jax.tree.map(step, target, params, updates)
        # The anchor is the result of the caller's apply_updates, which may differ from the target by rounding.
        written = optax.apply_updates(params, new_updates)
        anchor = jax.tree.map(lambda new, old: jnp.where(sync, new, old), written, state.anchor)
        syncs = jnp.where(sync, optax.safe_increment(state.syncs), state.syncs)
        return new_updates, InterpolateParamsState(count, syncs, anchor)

    return optax.GradientTransformationExtraArgs(init, update)


@renamed_argument("first", "first_epoch")
def interpolated(
    inner: optax.GradientTransformation,
    period: int | None = None,
    *,
    weight: Weight | None = None,
    first_epoch: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer followed by `interpolate_params`, which guarantees the right order.

    Args:
      inner: the full optimizer; nothing may change the updates after it.
      period, weight, first_epoch: see `interpolate_params`.

    Raises:
      InputError: see `interpolate_params`.

    >>> optimizer = interpolated(optax.sgd(0.1, momentum=0.9), period=391)
    """
    if isinstance(inner, optax.MultiSteps):
        raise InputError(
            "inner is an optax.MultiSteps, which is not a transformation; give inner.gradient_transformation()"
        )
    if not isinstance(inner, optax.GradientTransformation):
        raise InputError(f"inner={inner!r} is not an optimizer; give an optax optimizer, such as optax.sgd(0.1)")
    return optax.chain(inner, interpolate_params(period, weight=weight, first_epoch=first_epoch))


def eval_params(opt_state: optax.OptState, params: optax.Params) -> optax.Params:
    """The weights to evaluate: those after the last interpolation, found anywhere in an optimizer's state.

    Args:
      opt_state: the state of an optimizer that holds `interpolate_params` once, in any chain or wrapper.
      params: the current parameters, in any containers (for an `nnx.Optimizer` those of `nnx.state(model, nnx.Param)`,
        or a plain dict of it); parameters that `optax.masked` hid from the interpolation are taken from here.

    Returns:
      `theta'_n`, in the containers of `params`; before the first interpolation, the initial weights. These are the
      arrays of the state, not copies.

    Raises:
      InputError: the state holds no `interpolate_params` or several, or belongs to other parameters.

    >>> optimizer = interpolated(optax.sgd(1.0), period=100)
    >>> state = optimizer.init(jnp.array(4.0))
    >>> updates, state = optimizer.update(jnp.array(1.0), state, jnp.array(4.0))
    >>> eval_params(state, jnp.array(3.0)).item()
    4.0
    >>> eval_params(optax.sgd(1.0).init(params=0.0), params=0.0)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: opt_state holds no interpolate_params; add it last in the optax.chain
    """

    def is_state(node: Any) -> bool:
        return isinstance(node, InterpolateParamsState)

    def is_masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(node)]
    if not found:
        raise InputError("opt_state holds no interpolate_params; add it last in the optax.chain")
    if len(found) > 1:
        raise InputError(f"opt_state holds {len(found)} interpolate_params; give the part that holds only one")
    # Compared by name: a library may keep the anchor in its own containers (nnx.Optimizer).
    kept, given = _named(found[0].anchor, is_leaf=is_masked), _named(params)
    masked = tuple(name for name, leaf in kept.items() if is_masked(leaf))
    kept |= {name: leaf for name, leaf in given.items() if name.startswith(masked)}
    kept = {name: leaf for name, leaf in kept.items() if not is_masked(leaf)}
    shapes, others = ({name: jnp.shape(leaf) for name, leaf in tree.items()} for tree in (kept, given))
    _check_shapes("the anchor in opt_state", shapes, "params", others)
    return jax.tree.unflatten(jax.tree.structure(params), [kept[name] for name in given])


def _named(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Each leaf by its path of names, for any types of containers."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        parts = [getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))) for key in path]
        if path and path[-1] == jax.tree_util.GetAttrKey("value"):  # from a variable that holds one array
            parts.pop()
        named["".join(f"[{part!r}]" for part in parts)] = leaf
    return named
