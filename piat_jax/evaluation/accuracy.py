"""Accuracy under attack, per example."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from piat_jax import losses
from piat_jax.core.checks import InputError, check_count
from piat_jax.core.forward import as_argument, make_logits_fn
from piat_jax.core.pixels import as_float
from piat_jax.core.renamed import warn
from piat_jax.core.sharding import gather, keep_replicated, replicate, split_batch
from piat_jax.core.types import Array, Attack, LogitsFn, Variables
from piat_jax.evaluation.robustness import Finding
from piat_jax.evaluation.sanity import are_probabilities, of_probabilities
from piat_jax.evaluation.sending import sent_blocks
from piat_jax.evaluation.validity import measure, of_validity, threat_of
from piat_jax.programs.jit import program_jit

MOST_SHOWN = 32
SHOWN_BYTES = 8 * 2**20
"""The most bytes of float32 images that `judge_under_attack` returns."""


class Judged(NamedTuple):
    """The judgement of N examples."""

    correct: np.ndarray  # [N] bool
    predicted: np.ndarray  # [N] int32, the predicted class of each image; -1 if a logit is not finite
    images: np.ndarray  # [M, H, W, C] float32, the judged images of the first few examples


def correct_under_attack(
    logits_fn: Any,
    images: Any,
    labels: Any,
    attack: Any,
    *earlier: Any,
    source: Any = None,
    key: Array,
    batch_size: int = 250,
    mesh: Mesh | None = None,
    on_block: Callable[[], None] = lambda: None,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> np.ndarray:
    """Which examples are still classified correctly after the attack, BatchNorm in evaluation mode.

    Args:
      logits_fn: images `[B, H, W, C]` in [0, 1] to logits `[B, K]`. The result of `make_logits_fn`, or another pytree,
        passes its weights as arguments, so that other weights need no compilation; weights that a function closes over
        are constants.
      images: `[N, H, W, C]` uint8, or floats in [0, 1]; may be a memory map. NumPy images larger than
        `evaluation.sending.ON_DEVICE_BYTES` stay on the host and are sent block by block.
      labels: `[N]`.
      attack: an attack with its hyper-parameters bound, or None for clean images.
      source: the network to attack, called like `logits_fn`, for transfer attacks. Default: `logits_fn`.
      key: the randomness of example i derives from key and i, so the result does not depend on the batch size.
      batch_size: examples per compiled call; the last block is padded, so there is one compilation.
      mesh: devices that share each block (`core/sharding.py`); None for one device.
      on_block: called before each block; an exception from it ends the evaluation.
      on_finding: called with reasons to doubt the result: invalid images from the attack, or outputs that look like
        probabilities.

    Returns:
      `[N]` bool. An adversarial image that is not finite, or outside the attack's ball or box, does not count as
      success: the clean image is classified in its place. The ball is known only for attacks made by `bind`.

    >>> from piat_jax.models import create
    >>> model = create("mlp", num_classes=2, hidden=(4,))
    >>> images = jnp.zeros((3, 2, 2, 1), jnp.uint8)
    >>> variables = model.init(jax.random.key(0), as_float(images))
    >>> network = make_logits_fn(model, variables)
    >>> correct_under_attack(network, images, jnp.zeros(3, int), None, key=jax.random.key(0)).shape
    (3,)
    """
    if isinstance(images, Variables):  # (model, variables, images, labels, attack), as before
        warn(
            "correct_under_attack(model, variables, ...)", "correct_under_attack(make_logits_fn(model, variables), ...)"
        )
        logits_fn, images, labels, attack = make_logits_fn(logits_fn, images), labels, attack, *earlier
    elif earlier:
        raise InputError(f"correct_under_attack takes four arguments before key=, but got {4 + len(earlier)}")
    how: dict[str, Any] = {"source": source, "key": key, "batch_size": batch_size, "mesh": mesh, "show": False}
    return judge_under_attack(
        logits_fn, images, labels, attack, **how, on_block=on_block, on_finding=on_finding
    ).correct


def judge_under_attack(
    logits_fn: Any,
    images: Any,
    labels: Any,
    attack: Any,
    *,
    source: Any = None,
    key: Array,
    batch_size: int = 250,
    mesh: Mesh | None = None,
    on_block: Callable[[], None] = lambda: None,
    on_finding: Callable[[Finding], None] = lambda finding: None,
    show: bool = True,
) -> Judged:
    """Which examples are still classified correctly after the attack, their predictions, and the first images.

    Args:
      logits_fn, images, labels, attack, source, key, batch_size, mesh, on_block, on_finding: as in
        `correct_under_attack`.
      show: whether to return images; the host then waits for the first block.

    Returns:
      Flags, classes and images. The images are from the first block, at most `MOST_SHOWN` and at most `SHOWN_BYTES`.
      The clean image replaces an invalid adversarial one.

    >>> from piat_jax.models import create
    >>> model = create("mlp", num_classes=2, hidden=(4,))
    >>> images = jnp.zeros((3, 2, 2, 1), jnp.uint8)
    >>> network = make_logits_fn(model, model.init(jax.random.key(0), as_float(images)))
    >>> found = judge_under_attack(network, images, jnp.zeros(3, int), None, key=jax.random.key(0))
    >>> found.predicted.shape, found.images.shape
    ((3,), (3, 2, 2, 1))
    """
    logits_fn, count = as_argument(logits_fn), len(labels)
    extra = {} if source is None else {"source": replicate(as_argument(source), mesh)}
    check_count("batch_size", batch_size, 1)
    logits_fn, key = replicate((logits_fn, key), mesh)
    results, shown = [], np.zeros((0, *images.shape[1:]), np.float32)
    for block in sent_blocks(images, labels, batch_size, mesh):
        on_block()
        how = extra | ({"sent": True} if block.sent else {})
        *found, judged = _correct_block(logits_fn, *block[:3], attack, key, mesh, **how)
        results.append(found)
        if show and len(results) == 1:
            shown = gather(_first(judged, mesh))[:count]
        del judged  # frees the images on the device
        jax.block_until_ready(results[-2:-1])  # at most one block ahead, so that signals are handled in between
    correct, predicted, valid, softmax = (np.concatenate(part)[:count] for part in zip(*gather(results)))
    findings = of_validity(str(attack), valid)
    if attack is not None and source is None:
        findings += of_probabilities(softmax)
    for finding in findings:
        on_finding(finding)
    return Judged(correct, predicted, shown)


def worst_class(correct: Array | np.ndarray, labels: Array | np.ndarray, num_classes: int) -> Array:
    """The lowest accuracy of any class; classes without examples do not count.

    Args:
      correct: `[N]` bool, as `correct_under_attack` returns it.
      labels: `[N]`.
      num_classes: K.

    >>> worst_class(jnp.array([True, True, False, True]), jnp.array([0, 1, 1, 3]), num_classes=4).item()
    0.5
    """
    total = jnp.zeros(num_classes).at[labels].add(1.0)
    right = jnp.zeros(num_classes).at[labels].add(jnp.asarray(correct, jnp.float32))
    return jnp.min(jnp.where(total > 0, right / jnp.maximum(total, 1.0), 1.0))


@program_jit(static_argnames=("mesh", "sent"))
def _correct_block(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    indices: Array,
    attack: Attack | None,
    key: Array,
    mesh: Mesh | None,
    source: LogitsFn | None = None,
    sent: bool = False,
) -> tuple[Array, Array, Array, Array, Array]:
    """For a block: which examples are correct, their predictions, which images are valid, whose outputs look like
    probabilities, and the judged images.

    Images and labels are all of the set, or only the block's if `sent`.
    """
    x, y = (images, labels) if sent else (images[indices], labels[indices])
    x, y, indices = split_batch((as_float(x), y, indices), mesh)
    valid = jnp.full(y.shape, True)
    if attack is not None:
        clean, x = x, attack(logits_fn if source is None else source, x, y, key=key, indices=indices)
        valid = measure(x, clean, threat_of(attack))[1]
        x = jnp.where(valid[:, None, None, None], x, clean)
    logits = logits_fn(x)
    predicted = jnp.where(jnp.all(jnp.isfinite(logits), axis=-1), jnp.argmax(logits, axis=-1), -1).astype(jnp.int32)
    return losses.correct(logits, y), predicted, valid, are_probabilities(logits), x


@program_jit(static_argnames="mesh")
def _first(x: Array, mesh: Mesh | None) -> Array:
    """The images of a block to show, on every device; a separate program, so that other blocks gather no images."""
    return keep_replicated(x[: _shown(x.shape)], mesh)


def _shown(shape: tuple[int, ...]) -> int:
    """The number of images of a block to return.

    >>> _shown((250, 32, 32, 3)), _shown((250, 224, 224, 3)), _shown((5, 32, 32, 3))
    (32, 13, 5)
    """
    return min(shape[0], MOST_SHOWN, max(1, SHOWN_BYTES // (4 * math.prod(shape[1:]))))
