"""Grids of images: clean, adversarial, and their difference."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from piat_jax.analysis.curves import COLORS, STYLE, plain, shortened
from piat_jax.core.checks import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PIXELS = 96
"""Maximum side of a drawn image; for larger images, every n-th pixel is drawn."""
COLUMN = 0.78  # inches
ROWS = ("clean", "adversarial", "difference")


def draw_grid(
    clean: np.ndarray,
    attacked: np.ndarray,
    *,
    eps: float | None = None,
    true: Sequence[str] = (),
    predicted: Sequence[str] = (),
    predicted_attacked: Sequence[str] = (),
) -> "Figure":
    """Draw one column per image: clean, adversarial, and the difference, where gray means none.

    Args:
      clean: `[N, H, W, C]` uint8, or floats in [0, 1]; one channel is gray, three are colours, else the first is drawn.
      attacked: `[N, H, W, C]` floats in [0, 1].
      eps: the change that is drawn black or white; by default the largest change in each image.
      true: names of the true classes, above the clean images.
      predicted: names of the classes predicted for the clean images, shown below the true class if they differ.
      predicted_attacked: names of the classes predicted for the adversarial images; coloured if they differ from the
        true classes, or without these from `predicted`.

    Raises:
      InputError: there are no images, shapes differ, or there is not one name per image.
    """
    clean = _as_float(clean)
    attacked = _as_float(attacked)
    if clean.ndim != 4 or clean.shape != attacked.shape or not len(clean):
        raise InputError(
            f"images have the shapes {clean.shape} and {attacked.shape}; give both as [N, H, W, C], N at least 1"
        )
    names = {"true": true, "predicted": predicted, "predicted_attacked": predicted_attacked}
    for argument, given in names.items():
        if len(given) not in (0, len(clean)):
            raise InputError(f"{argument} has {len(given)} names for {len(clean)} images; give one for each")
    import matplotlib

    from piat_jax.analysis.picture import Picture

    change = attacked - clean
    bounds = np.abs(change).max(axis=(1, 2, 3)) if eps is None else np.full(len(clean), eps)
    shown = 0.5 + change / (2 * np.maximum(bounds, 1e-9)[:, None, None, None])
    right = true or predicted
    with matplotlib.rc_context(STYLE):
        size = (0.35 + COLUMN * len(clean), 3 * COLUMN + (0.5 if len(predicted_attacked) else 0.35))
        figure = Picture(figsize=size, layout="constrained")
        panels = figure.subplots(3, len(clean), squeeze=False)
        for row, (label, images) in enumerate(zip(ROWS, (clean, attacked, shown))):
            for column, axes in enumerate(panels[row]):
                picture, gray = _picture(images[column])
                axes.imshow(picture, cmap="gray" if gray else None, vmin=0, vmax=1, interpolation="none")
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_visible(False)
            panels[row][0].set_ylabel(label, fontsize=8)
        for column in range(len(clean)):
            _title(panels[0][column], _clean_title(column, true, predicted), True)
            if len(predicted_attacked):
                name = predicted_attacked[column]
                _title(panels[1][column], shortened(name), not len(right) or name == right[column])
    return figure


def _clean_title(column: int, true: Sequence[str], predicted: Sequence[str]) -> str:
    """The true class, and below it the predicted class if it differs."""
    first, *others = dict.fromkeys(each[column] for each in (true, predicted) if len(each)) or [""]
    return "\n".join([shortened(first), *(f"({shortened(other)})" for other in others)])


def _title(axes: "Axes", text: str, right: bool) -> None:
    axes.set_title(plain(text), fontsize=6.5, pad=2, color="#000000" if right else COLORS[1])


def _as_float(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    return images.astype(np.float32) / (255 if images.dtype == np.uint8 else 1)


def _picture(image: np.ndarray) -> tuple[np.ndarray, bool]:
    """An image for matplotlib, reduced to the drawn size, and whether it is gray."""
    step = max(1, -(-max(image.shape[:2]) // MOST_PIXELS))
    image = np.clip(image[::step, ::step], 0, 1)
    return (image, False) if image.shape[-1] == 3 else (image[..., 0], True)
