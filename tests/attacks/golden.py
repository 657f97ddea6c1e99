"""The toy network whose attack by the PyTorch reference is recorded in autoattack_golden.json, as NumPy arrays."""

import json
from pathlib import Path

import numpy as np

GOLDEN = json.loads((Path(__file__).parent / "autoattack_golden.json").read_text())
LABELS = np.array(GOLDEN["labels"], np.int32)


def _images():
    n, h, w, c = np.ogrid[:8, :8, :8, :3]
    return (0.5 + 0.45 * np.sin(1.7 * n + 0.9 * c + 0.31 * h + 0.53 * w + 0.07 * h * w)).astype(np.float32)


def _weights():
    i, j, k = np.arange(192)[:, None], np.arange(32)[None], np.arange(10)[None]
    first = 2 * np.sin(0.013 * (i + 1) * (j + 1) + 0.5 * j) / np.sqrt(192)
    second = 3 * np.cos(0.7 * (j.T + 1) * (k + 1) + 0.3 * k) / np.sqrt(32)
    return [w.astype(np.float32) for w in (first, 0.1 * np.cos(j), second, 0.02 * k)]


IMAGES, WEIGHTS = _images(), _weights()  # [8, 8, 8, 3]


def network(x, tanh, weights=WEIGHTS):
    """Logits of channels-last images; `tanh` and `weights` are those of the framework that runs it."""
    first, first_bias, second, second_bias = weights
    # The reference flattens channels first.
    return (
        tanh((4 * x.swapaxes(2, 3).swapaxes(1, 2).reshape(len(x), -1) - 2) @ first + first_bias) @ second + second_bias
    )
