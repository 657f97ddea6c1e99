"""Evaluation by minimum-norm attacks: the median norm, and accuracy against the radius."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from piat_jax import losses
from piat_jax.core.bound import Bound
from piat_jax.core.checks import InputError, check_count, check_range
from piat_jax.core.forward import as_argument
from piat_jax.core.norms import norm_name
from piat_jax.core.pixels import as_float
from piat_jax.core.sharding import gather, replicate, split_batch
from piat_jax.core.types import Array, LogitsFn
from piat_jax.evaluation.robustness import Finding
from piat_jax.evaluation.sanity import are_probabilities, of_probabilities
from piat_jax.evaluation.sending import sent_blocks
from piat_jax.evaluation.validity import Threat, measure, of_validity
from piat_jax.programs.jit import program_jit

STRETCHES = (0.0, 1e-3, 1e-2)
"""By how much perturbations are lengthened if the judge does not accept them: they end exactly at the boundary, where
two programs of one network may round to different sides."""
POINTS = 101


@dataclasses.dataclass(frozen=True)
class MinimumNormAttack:
    """A minimum-norm attack with its options, and the radius at which its accuracy is compared with other attacks.

    >>> from piat_jax.attacks import bind, fmn
    >>> MinimumNormAttack(bind(fmn, norm="l2"), eps=0.5).norm
    'l2'
    """

    attack: Bound
    eps: float

    def __post_init__(self) -> None:
        check_range("eps", self.eps, 0, float("inf"), open_low=True)

    @property
    def norm(self) -> str:
        """The norm that the attack minimises."""
        return norm_name(self.attack.options["norm"])


@dataclasses.dataclass(frozen=True)
class MinimumNorms:
    """The distance of each of N examples to the nearest misclassified image that was found."""

    norm: str
    labels: np.ndarray  # [N] int32
    clean: np.ndarray  # [N] bool, correct on the clean image
    distances: np.ndarray  # [N] float64, 0 if the clean image is misclassified, inf if none was found

    @property
    def median(self) -> float:
        """The median over the examples with a correct clean image; inf if none was found for half of them."""
        return float(np.median(self.distances[self.clean])) if self.clean.any() else 0.0

    @property
    def found(self) -> float:
        """The share of examples with a correct clean image for which a misclassified image was found."""
        return float(np.isfinite(self.distances[self.clean]).mean()) if self.clean.any() else 1.0

    def robust_at(self, eps: float) -> np.ndarray:
        """Whether the clean image is correct and no misclassified image was found within `eps`, `[N]` bool."""
        return self.clean & (self.distances > eps)

    def curve(self, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
        """Radii, 0 and then quantiles of the norms found, in increasing order, and the accuracy at each radius.

        Quantiles keep the curve fine even if a few norms are very large.
        """
        found = self.distances[self.clean & np.isfinite(self.distances)]
        ranks = np.linspace(0.0, 1.0, points - 1)
        norms = np.quantile(found, ranks, method="higher") if len(found) else np.zeros(points - 1)
        radii = np.concatenate([[0.0], norms])
        return radii, np.array([self.robust_at(eps).mean() for eps in radii])

    def summary(self) -> dict[str, Any]:
        """The numbers to save as JSON, with six significant digits; a median that is not finite is null."""
        radii, accuracy = self.curve()
        return {
            "norm": self.norm,
            "median": self.median if np.isfinite(self.median) else None,
            "found": self.found,
            "curve": {"eps": _rounded(radii), "accuracy": _rounded(accuracy)},
        }

    def to_csv(self) -> str:
        """The curve as CSV, one line per radius."""
        return "eps,accuracy\n" + "".join(f"{eps:.6g},{share:.6g}\n" for eps, share in zip(*self.curve()))

    def __str__(self) -> str:
        median = f"{self.median:.6g}" if np.isfinite(self.median) else "none"
        return f"median {self.norm} norm {median} over {int(self.clean.sum())} examples, {100 * self.found:.2f}% found"


def minimum_norms(
    logits_fn: Any,
    images: Any,
    labels: Any,
    attack: Bound,
    *,
    key: Array,
    batch_size: int = 250,
    mesh: Mesh | None = None,
    on_block: Callable[[], None] = lambda: None,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> MinimumNorms:
    """The distances to the nearest misclassified images that a minimum-norm attack finds, BatchNorm in evaluation mode.

    The attack's images go through the same forward as the clean ones, and their distances are measured on the host. If
    that forward does not misclassify an image, its perturbation is lengthened by a thousandth, then by a hundredth. An
    image that is not finite or outside the box does not count as found.

    Args:
      attack: one of `attacks.MINIMUM_NORM` with its options bound, or another attack with the same signature that
        returns `attacks.Nearest`.
      logits_fn, images, labels, key, batch_size, mesh, on_block, on_finding: as in `correct_under_attack`.

    Raises:
      InputError: an attack that was not made by `bind`, or without a norm.

    >>> import jax
    >>> from piat_jax.attacks import bind, fmn
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)) - 1.5, jnp.zeros(len(x))], axis=1)
    >>> images = jnp.full((2, 1, 4, 1), 0.5)
    >>> found = minimum_norms(logits_fn, images, jnp.array([0, 1]), bind(fmn, norm="l2"), key=jax.random.key(0))
    >>> found.distances.round(3).tolist(), round(found.median, 3), found.robust_at(0.2).tolist()
    ([0.25, 0.0], 0.25, [True, False])
    """
    logits_fn = as_argument(logits_fn)
    if not isinstance(attack, Bound) or "norm" not in attack.options:
        raise InputError(f"attack={attack!r} is not a minimum-norm attack; give one, such as bind(fmn, norm='l2')")
    check_count("batch_size", batch_size, 1)
    of_classes = np.asarray(labels)
    count, norm = len(labels), norm_name(attack.options["norm"])
    logits_fn, key = replicate((logits_fn, key), mesh)
    clean, distances, kept, softmax = [], [], [], []
    for block in sent_blocks(images, labels, batch_size, mesh):
        on_block()
        how = {"sent": True} if block.sent else {}
        x, right, found, wrong, looks = gather(_nearest_block(logits_fn, *block[:3], attack, key, mesh, **how))
        away, valid = measure(found, x, Threat(None, norm))
        clean.append(right)
        distances.append(np.where(right, np.where(wrong & valid, away, np.inf), 0.0))
        kept.append(valid)
        softmax.append(looks)
    valid, looks = (np.concatenate(parts)[:count] for parts in (kept, softmax))
    for finding in (*of_validity(str(attack), valid), *of_probabilities(looks)):
        on_finding(finding)
    clean, distances = (np.concatenate(parts)[:count] for parts in (clean, distances))
    return MinimumNorms(norm, of_classes, clean, distances)


@program_jit(static_argnames=("mesh", "sent"))
def _nearest_block(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    indices: Array,
    attack: Bound,
    key: Array,
    mesh: Mesh | None,
    sent: bool = False,
) -> tuple[Array, Array, Array, Array, Array]:
    """Clean images, whether they are correct, the nearest images found, whether these are judged misclassified, and
    whether the outputs look like probabilities.

    Images and labels are all of the set, or only the block's if `sent`.
    """
    x, y = (images, labels) if sent else (images[indices], labels[indices])
    x, y, indices = split_batch((as_float(x), y, indices), mesh)
    logits = logits_fn(x)
    right = losses.correct(logits, y)
    nearest = attack(logits_fn, x, y, key=key, indices=indices, active=right).images
    found, wrong = nearest, jnp.full(y.shape, False)
    for stretch in STRETCHES:
        longer = nearest + stretch * (nearest - x)
        # Clip only pixels that were inside: an attack's pixels outside the box must be detected.
        longer = jnp.where((nearest >= 0) & (nearest <= 1), jnp.clip(longer, 0.0, 1.0), nearest)
        fools = losses.misclassified(logits_fn(longer), y) & ~wrong
        found = jnp.where(fools[:, None, None, None], longer, found)
        wrong = wrong | fools
    return x, right, found, wrong, are_probabilities(logits)


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
