"""Whether adversarial images obey the threat model: finite, in the ball and in the box."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from piat_jax.core.bound import Bound
from piat_jax.core.norms import Box, norm_name
from piat_jax.core.types import Array
from piat_jax.evaluation.robustness import Finding

ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}


class Threat(NamedTuple):
    """The threat model: the allowed perturbations of an image."""

    eps: Any = None  # radius, a scalar or `[B]`; None if unknown
    norm: str = "linf"
    box: Box = (0.0, 1.0)


def threat_of(attack: Any) -> Threat:
    """The threat model of an attack, from its options; for attacks not made by `bind` only the box is assumed.

    >>> from piat_jax.attacks import bind, pgd
    >>> threat_of(bind(pgd, eps=0.5, norm="L2"))
    Threat(eps=0.5, norm='l2', box=(0.0, 1.0))
    """
    options = attack.options if isinstance(attack, Bound) else {}
    if "eps" not in options or "norm" not in options:
        return Threat()
    return Threat(options["eps"], norm_name(options["norm"]), options.get("box", (0.0, 1.0)))


def measure(images: Any, clean: Any, threat: Threat) -> tuple[Any, Any]:
    """Each image's distance from its clean image, `[B]`, and whether it obeys the threat model up to rounding, `[B]`.

    Args:
      images: `[B, H, W, C]`, NumPy (measured in float64) or JAX (in its own dtype).
      clean: the clean images, likewise.
      threat: radius in the pixels' unit, norm and box.

    >>> clean = np.zeros((3, 1, 1, 1), np.float32)
    >>> measure(np.float32([[[[0.1]]], [[[0.3]]], [[[np.nan]]]]), clean, Threat(0.2))[1].tolist()
    [True, False, False]
    """
    xp = np if isinstance(images, np.ndarray) else jnp
    pixels = images[0].size if len(images) else 1
    flat = images.reshape(len(images), pixels)
    if xp is np:
        flat, clean = flat.astype(np.float64), clean.astype(np.float64)
    distances = xp.linalg.norm(flat - clean.reshape(flat.shape), ORDERS[threat.norm], axis=1)
    valid = xp.isfinite(flat).all(axis=1)
    if threat.box is not None:
        low, high = threat.box
        valid &= (flat.min(axis=1) >= low) & (flat.max(axis=1) <= high)
    if threat.eps is not None:
        # A pixel may be off by half a unit in the last place of 1, and a norm over D pixels accumulates this error.
        slack = 6e-8 * {"linf": 1.0, "l2": pixels**0.5, "l1": float(pixels)}[threat.norm]
        valid &= distances <= threat.eps * (1 + 1e-5) + slack
    return distances, valid


def of_validity(name: str, valid: np.ndarray | Array) -> list[Finding]:
    """A finding if an attack returned images that break its threat model."""
    wrong = int((~np.asarray(valid)).sum())
    if not wrong:
        return []
    return [
        Finding(
            "invalid_images",
            f"{name} returned {wrong} of {len(valid)} images that are not finite, or outside ball or box; they count "
            "as failed attacks",
        )
    ]
