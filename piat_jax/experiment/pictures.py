"""A picture of a few test images for the loggers: clean, adversarial, and their difference."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.core.bound import Bound
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.pixels import as_float
from piat_jax.core.rng import named_key
from piat_jax.core.types import LogitsFn, Model, Variables
from piat_jax.data import Split
from piat_jax.evaluation import AutoAttack
from piat_jax.evaluation.blocks import Blocks, Rows
from piat_jax.experiment.evaluation import evaluation_attack
from piat_jax.experiment.experiment import Experiment

BORDER = 1


@dataclasses.dataclass(frozen=True)
class Picture:
    """A grid of images as one image, `[H, W, C]` uint8, with a caption."""

    image: np.ndarray
    caption: str


def painter(experiment: Experiment, net: Model, split: Split) -> Callable[[Variables], Picture]:
    """A function that draws the first `log.images` images of a split, attacked on given weights.

    The attack is `evaluation.select`'s with the evaluation's random draws, so these are the images that the evaluation
    counted. "clean", and attacks without a radius and steps, leave the images unchanged.

    Args:
      experiment: says which attack.
      net: the network, with float32 activations.
      split: images, uint8 or floats in [0, 1], and labels.
    """
    count = min(experiment.log.images, len(split.labels))
    pixels = np.asarray(as_float(jnp.asarray(np.asarray(split.images[:count]))))
    labels, name = np.asarray(split.labels[:count], np.int32), experiment.evaluation.select
    attack = evaluation_attack(experiment, name)

    def paint(variables: Variables) -> Picture:
        logits_fn = make_logits_fn(net, variables)
        blocks = Blocks(logits_fn, count, jax.devices(), experiment.evaluation.precision)
        found = _attacked(attack, blocks, logits_fn, pixels, labels, experiment.seed)
        classes = [blocks.logits(images).argmax(axis=1) for images in (pixels, found)]
        each = ", ".join(f"{label}: {clean} {fooled}" for label, clean, fooled in zip(labels, *classes))
        caption = f"rows: clean, {name}, difference (grey is none); label: class of clean and of {name}: {each}"
        return Picture(picture(pixels, found), caption)

    return paint


def _attacked(
    attack: Any, blocks: Blocks, logits_fn: LogitsFn, pixels: np.ndarray, labels: np.ndarray, seed: int
) -> np.ndarray:
    if isinstance(attack, AutoAttack):
        return np.asarray(attack.run(logits_fn, pixels, labels).images)
    if not isinstance(attack, Bound):
        return pixels
    indices = np.arange(len(labels), dtype=np.uint32)
    rows = Rows(pixels, labels, indices, np.ones(len(labels), bool), None)
    key = named_key(jax.random.key(seed), "evaluate")
    return np.asarray(blocks.attack(attack, rows, key, attack.options["eps"], attack.options["norm"]).images)


def picture(clean: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    """Three rows: clean, adversarial, and their difference d as 1/2 + d / (2 max |d|), with white lines between.

    Args:
      clean: `[N, H, W, C]` in [0, 1]; C is 1 or 3, else the first channel is shown.
      adversarial: the same.

    Returns:
      `[3 (H + 1) + 1, N (W + 1) + 1, C]` uint8.

    >>> picture(np.zeros((2, 4, 4, 1)), np.full((2, 4, 4, 1), 0.5))[:, 1, 0].tolist()
    [255, 0, 0, 0, 0, 255, 128, 128, 128, 128, 255, 255, 255, 255, 255, 255]
    """
    if clean.shape[-1] not in (1, 3):
        clean, adversarial = clean[..., :1], adversarial[..., :1]
    difference = np.asarray(adversarial, np.float64) - clean
    largest = np.abs(difference).max()
    rows = (clean, adversarial, 0.5 + difference / (2 * largest) if largest else np.full_like(difference, 0.5))
    framed = [np.pad(row, ((0, 0), (BORDER, 0), (BORDER, 0), (0, 0)), constant_values=1.0) for row in rows]
    tiled = np.concatenate([np.concatenate(list(row), axis=1) for row in framed], axis=0)
    tiled = np.pad(tiled, ((0, BORDER), (0, BORDER), (0, 0)), constant_values=1.0)
    return np.round(255 * tiled).astype(np.uint8)
