"""What a method makes its loss of, and the loss's terms, with checks of what methods declare."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError, described
from piat_jax.core.types import AdversarialBatch, Array, Variables


class Outputs(NamedTuple):
    """The inputs of `terms`: the logits of the step's forwards, and the batch and variables behind them.

    Attributes:
      logits: `[B, K]` by kind of image: "clean", "adversarial" or a wrapper's.
      batch: the adversarial batch.
      variables: the differentiated weights, and the running statistics before the forwards.
      target: `[B]` or `[B, K]`, the target of the loss: the batch's, smoothed as the method says.
    """

    logits: Mapping[str, Array]  # [B, K] by kind of image: "clean", "adversarial" or a wrapper's
    batch: AdversarialBatch
    variables: Variables  # the differentiated weights, and the running statistics before the forwards
    target: Array  # [B] or [B, K], the target of the loss: the batch's, smoothed as the method says


class Terms(NamedTuple):
    """A loss per example, in two parts; training minimises the mean of their sum over the batch.

    Attributes:
      adversarial: `[B]`, the part that instance weights multiply (MAIL, GAIRAT, LAS-AT's beta).
      other: `[B]`, or the number 0.0.
      metrics: scalars to log in addition to loss and accuracy.
    """

    adversarial: Array  # [B], the part that instance weights multiply (MAIL, GAIRAT, LAS-AT's beta)
    other: Array | float = 0.0  # [B]
    metrics: Mapping[str, Array] = {}  # scalars to log in addition to loss and accuracy


@jax.tree_util.register_pytree_node_class
class Forwarded(dict[str, Array]):
    """Logits by kind of image; asking for a kind that was not forwarded is a clear error.

    >>> Forwarded(adversarial=1)["natural"]
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: logits['natural']: only 'adversarial' was forwarded; add the kind to forwards
    """

    def __missing__(self, kind: object) -> Array:
        """Say which kinds there are."""
        listed = ", ".join(map(repr, self)) or "nothing"
        was = "were" if len(self) > 1 else "was"
        raise InputError(f"logits[{kind!r}]: only {listed} {was} forwarded; add the kind to forwards")

    def tree_flatten(self) -> tuple[tuple[Array, ...], tuple[str, ...]]:
        """The logits, and their kinds."""
        return tuple(self.values()), tuple(self)

    @classmethod
    def tree_unflatten(cls, kinds: tuple[str, ...], logits: tuple[Array, ...]) -> Self:
        """The inverse of `tree_flatten`."""
        return cls(zip(kinds, logits))


def checked_forwards(of: Any, images: Mapping[str, Array]) -> tuple[str, ...]:
    """`of.forwards`, after a check that they are names of `images`."""
    forwards, name = of.forwards, type(of).__name__
    if isinstance(forwards, str) or not isinstance(forwards, Sequence) or not forwards:
        first = forwards if isinstance(forwards, str) else "adversarial"
        raise InputError(f"{name}.forwards is {forwards!r}; give a tuple of kinds of images, such as ({first!r},)")
    for kind in forwards:
        if kind not in images:
            raise InputError(
                f"{name}.forwards names {kind!r}, but inputs gives {', '.join(map(repr, images))}; name one of these, "
                "or add the images to inputs"
            )
    return tuple(forwards)


def checked_terms(of: Any, terms: Any, outputs: Outputs) -> Terms:
    """What `of.terms(outputs, ...)` returned, after a check of its type and shapes.

    Args:
      of: the method or wrapper whose code made the terms.
      terms: the result.
      outputs: what it was made of.

    Raises:
      InputError: it is not `Terms`, or a part is not `[B]`. (`other` may be the number 0.0, or a wrapper's multiple.)
    """
    name = f"{type(of).__name__}.terms"
    if not isinstance(terms, Terms):
        raise InputError(f"{name} returned {described(terms)}; give Terms(adversarial, other), each [B]")
    rows = outputs.target.shape[0]
    for part in ("adversarial", "other"):
        value = getattr(terms, part)
        if part == "other" and isinstance(value, (int, float)) and value == 0:
            continue
        if part == "other" and hasattr(of, "inner") and jnp.shape(value) == ():
            continue  # a wrapper's factor times the method's 0.0
        if jnp.shape(value) != (rows,):
            raise InputError(
                f"{name} returned Terms with {part} {described(value)}; give one value per example, [{rows}]"
            )
    return terms
