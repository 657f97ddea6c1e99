"""Checks before and after the attacks for properties that make a robust accuracy doubtful, each with its cause."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax import losses
from piat_jax.core.checks import InputError, check_pixels
from piat_jax.core.types import Array
from piat_jax.evaluation.blocks import Blocks
from piat_jax.evaluation.robustness import Finding
from piat_jax.programs.jaxprs import inner_jaxprs

BLIND = ("round", "floor", "ceil", "sign", "argmax", "argmin", "stop_gradient")
"""Primitives whose gradient is zero or missing."""
UNLIKELY = 0.01
"""The probability of so few correct guesses below which the order of the labels is doubtful."""


def check_data(images: np.ndarray, labels: np.ndarray) -> None:
    """Raise InputError unless `images` and `labels` can be evaluated.

    >>> check_data(np.full((1, 2, 2, 1), 2.0), np.zeros(1, int))
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: images range from 2 to 2; give pixels in [0, 1] and normalise inside logits_fn
    """
    if images.ndim != 4:
        raise InputError(f"images has shape {images.shape}; give [N, height, width, channels]")
    if not len(images):
        raise InputError("images is empty; give at least one example")
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f"images has dtype {images.dtype}; give uint8, or floats in [0, 1]")
    if images.dtype != np.uint8:
        check_pixels("images", images)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels are {labels.dtype}{list(labels.shape)}; give {len(images)} integers, one per image")


def are_probabilities(outputs: Any) -> Any:
    """Whether each row of a network's outputs `[B, K]`, NumPy or JAX, looks like a softmax's: in [0, 1], with sum 1.

    1: it does, 0: it does not, -1: it is not finite, which says nothing.

    >>> are_probabilities(np.float32([[0.2, 0.8], [0.2, 0.7], [-0.5, 1.5], [np.nan, 1.0]])).tolist()
    [1, 0, 0, -1]
    """
    sums = outputs.sum(axis=1)
    inside = (outputs.min(axis=1) > -1e-5) & (outputs.max(axis=1) < 1 + 1e-5) & (abs(sums - 1) < 1e-5)
    return inside.astype("int8") + (abs(sums) < np.inf) - 1


def of_probabilities(rows: np.ndarray) -> Iterator[Finding]:
    """A finding if all finite outputs look like probabilities; `rows` is from `are_probabilities`."""
    known = rows[rows >= 0]
    if len(known) and known.all():
        yield Finding(
            "probabilities",
            "the outputs look like probabilities; give logits, because a softmax hides gradients from the attacks",
        )


def of_outputs(logits: np.ndarray, labels: np.ndarray) -> Iterator[Finding]:
    """Findings from the clean logits `[N, K]`."""
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        yield Finding(
            "non_finite",
            f"{(~finite).sum()} of {len(logits)} clean images have logits that are not finite; they count as wrong",
        )
    from scipy.special import bdtr

    known, classes = logits[finite], logits.shape[1]
    yield from of_probabilities(are_probabilities(known))
    correct = int((known.argmax(axis=1) == labels[finite]).sum())
    accuracy = correct / len(labels)
    # The binomial distribution: the probability that guessing is right for at most so many images.
    if bdtr(correct, len(labels), 1 / classes) < UNLIKELY:
        yield Finding(
            "chance",
            f"the clean accuracy, {100 * accuracy:.1f}%, is far below that of guessing among {classes} classes, "
            f"{100 / classes:.1f}%; most likely labels are in another order than the network's classes",
        )
    elif len(labels) >= 10 * classes and accuracy <= 1.5 / classes:
        yield Finding(
            "chance",
            f"the clean accuracy, {100 * accuracy:.1f}%, is about that of guessing among {classes} classes; "
            "check that labels are in the network's order, and that images are normalised as in its training",
        )


def of_program(logits_fn: Callable[..., Array], *arguments: jax.ShapeDtypeStruct) -> Iterator[Finding]:
    """Findings from the program of `logits_fn`, traced but not run; the images are the first argument."""
    found: Counter[str] = Counter()
    closed = jax.make_jaxpr(logits_fn)(*arguments)
    first = closed.jaxpr.invars[-len(jax.tree.leaves(arguments)) :][:1]
    _scan(closed.jaxpr, set(first), found)
    draws = found.pop("random_bits", 0)
    if found:
        listed = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in sorted(found.items()))
        yield Finding(
            "non_differentiable",
            f"operations without a gradient lie between image and logits: {listed}. Attacks that use gradients may "
            "be blind; replace them in the backward pass (BPDA), or trust only Square",
        )
    if draws and len(arguments) == 1:
        yield Finding(
            "randomised",
            "the network draws random numbers from its own key, so the noise is the same in every call; "
            "take the keys as a second argument and give version='rand'",
        )


def of_behaviour(blocks: Blocks, images: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> Iterator[Finding]:
    """Findings from one block: its logits in a second call, and its gradients at correctly classified images."""
    # Some accelerator kernels sum in a different order each time.
    rounding = 1e-4 * np.abs(logits[np.isfinite(logits)]).max(initial=0.0)
    if not np.allclose(blocks.logits(images), logits, rtol=0, atol=rounding, equal_nan=True):
        yield Finding(
            "randomised",
            "two calls on the same images give different logits; if the network is randomised, take keys as a second "
            "argument and give version='rand'",
        )
    elif change := _change_by_company(blocks, images, logits, rounding):
        yield Finding(
            "rows_see_each_other",
            f"the logits of an image change by up to {change:.3g} with the other images of its block, so the result "
            "depends on block_size; put BatchNorm into evaluation mode, and compute nothing over the batch",
        )
    right = np.flatnonzero((logits.argmax(axis=1) == labels) & np.isfinite(logits).all(axis=1))
    if not len(right):
        return
    images, labels = images[right], labels[right]
    gradient = blocks.gradients(_margin, images, labels)
    finite = np.isfinite(gradient)
    if spoiled := int((~finite.all(axis=(1, 2, 3))).sum()):
        yield Finding(
            "non_finite_gradients",
            f"the gradient of the margin is not finite at {spoiled} of {len(right)} correctly classified images "
            f"({100 * (~finite).mean():.2g}% of the pixels); attacks take NaN as 0 and may be blind there; "
            "keep roots, logarithms and divisions away from 0",
        )
    gradient = np.where(finite, gradient, 0.0)
    length = np.sqrt(np.square(gradient, dtype=np.float64).sum(axis=(1, 2, 3)))
    if vanished := int((length == 0).sum()):
        yield Finding(
            "vanishing_gradients",
            f"the gradient of the margin vanishes at {vanished} of {len(right)} correctly classified images; "
            "attacks that use gradients are blind there",
        )
    exact = np.asarray(losses.cross_entropy(jnp.asarray(logits[right]), jnp.asarray(labels))) == 0
    if saturated := int((exact & (length > 0)).sum()):
        yield Finding(
            "saturated_loss",
            f"the gradient of the cross-entropy, unlike the margin's, vanishes at {saturated} of {len(right)} "
            "correctly classified images: the logits are so far apart that it rounds to 0; "
            "rely on the DLR attacks there",
        )
    moves = np.flatnonzero(length > 0)
    if len(moves):
        way = (gradient[moves] / length[moves, None, None, None]).astype(np.float32)
        points = (images[moves] + STEP * way, images[moves] - STEP * way)
        above, below = (np.asarray(_margin(jnp.asarray(blocks.logits(x)), jnp.asarray(labels[moves]))) for x in points)
        ratio = float(np.median((above - below) / (2 * STEP) / length[moves]))
        if not 0.5 <= ratio <= 2:
            yield Finding(
                "gradient_is_not_derivative",
                f"along its gradient the margin changes {ratio:.2g} times as fast as the gradient says (median of "
                f"{len(moves)}): the backward pass does not match the forward pass (custom rules, quantisation, a "
                "straight-through estimator)",
            )


STEP = 0.01  # L2 length; smaller steps are lost in the rounding of float32 logits


def of_attacks(
    names: Sequence[str], white_box: Sequence[bool], attempted: np.ndarray, fooled: np.ndarray
) -> Iterator[Finding]:
    """A finding if a black-box attack broke unusually many examples that earlier gradient attacks could not.

    Without masking, random search breaks a few examples just inside the boundary: up to 0.5% of those left were
    measured. A share above that by three standard deviations is reported; from a tenth on it is called masking.

    Args:
      names: names of the A attacks, in order.
      white_box: whether each attack uses gradients.
      attempted: `[A, N]` bool, the examples each attack ran on.
      fooled: `[A, N]` bool.
    """
    for number, name in enumerate(names):
        if white_box[number] or not any(white_box[:number]):
            continue
        left = attempted[number] & ~fooled[:number].any(axis=0)
        extra, count = int((fooled[number] & left).sum()), int(left.sum())
        usual = HONEST * count + 3 * (HONEST * count) ** 0.5
        if extra <= usual:
            continue
        masked = extra >= 0.1 * count
        yield Finding(
            "black_box_is_stronger",
            f"{name}, which uses no gradients, broke {extra} of the {count} examples that earlier gradient attacks "
            f"left (up to {int(usual)} are usual): "
            + (
                "gradients are likely masked and the true robust accuracy is lower; use an adaptive attack"
                if masked
                else "gradients may be masked at some images, or those attacks stopped too early; try more steps or "
                "restarts, or an adaptive attack"
            ),
        )


HONEST = 0.005  # of the examples gradient attacks leave, the share that Square breaks on networks without masking


def _change_by_company(blocks: Blocks, images: np.ndarray, logits: np.ndarray, rounding: float) -> float:
    """The largest change of a logit if half of the images are placed among inverted ones; 0 if only rounding."""
    chosen = np.random.default_rng(0).permutation(len(images))[: max(len(images) // 2, 1)]
    company = np.resize(1.0 - images, (blocks.size - len(chosen), *images.shape[1:]))
    found = blocks.logits(np.concatenate([images[chosen], company]))[: len(chosen)]
    if np.allclose(found, logits[chosen], rtol=0, atol=rounding, equal_nan=True):
        return 0.0
    return float(np.nanmax(np.abs(found - logits[chosen]), initial=np.inf if np.isnan(found).any() else 0.0))


def _margin(logits: Array, labels: Array) -> Array:
    of_label, best_other = losses.label_and_best_other(logits, labels)
    return best_other - of_label


def _scan(jaxpr: Any, reached: set[Any], found: Counter[str]) -> set[Any]:
    """Count operations on the path of the variables `reached` into `found`, and return all variables they reach."""
    made_by: dict[Any, Any] = {}
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inputs = [v for v in equation.invars if not hasattr(v, "val") and v in reached]
        made_by.update((v, equation) for v in equation.outvars)
        if name == "random_bits":
            found[name] += 1
        for inner in inner_jaxprs(equation):
            aligned = len(inner.invars) == len(equation.invars)
            pairs = zip(inner.invars, equation.invars) if aligned else ((v, None) for v in inner.invars)
            _scan(inner, {v for v, outer in pairs if (outer in inputs if aligned else inputs)}, found)
        if not inputs:
            continue
        reached.update(equation.outvars)
        if name in BLIND and not (name == "stop_gradient" and _is_maximum(inputs[0], made_by)):
            found[name] += 1
        elif name == "convert_element_type":
            before, after = inputs[0].aval.dtype, equation.outvars[0].aval.dtype
            if jnp.issubdtype(before, jnp.floating) != jnp.issubdtype(after, jnp.floating):
                found[f"{before} to {after}"] += 1
    return reached


def _is_maximum(variable: Any, made_by: dict[Any, Any]) -> bool:
    """Whether this is the maximum that a softmax subtracts, whose stopped gradient does not matter."""
    while (equation := made_by.get(variable)) is not None:
        if equation.primitive.name in ("reduce_max", "argmax"):
            return True
        if equation.primitive.name not in ("max", "broadcast_in_dim", "reshape", "select_n", "squeeze"):
            return False
        variable = next((v for v in equation.invars if not hasattr(v, "val")), None)
    return False
