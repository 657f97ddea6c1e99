"""Recognise a published network by its file's name, such as RobustBench's names after the authors."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from piat_jax.core.checks import InputError
from piat_jax.interop.card import radius
from piat_jax.interop.lookalike import is_head_key
from piat_jax.interop.published import PUBLISHED, Published
from piat_jax.interop.tensors import Tensors
from piat_jax.interop.weights import strip_prefixes

SOURCE = "robustbench:"
ENDINGS = (".tar", ".pt", ".pth", ".bin", ".ckpt", ".safetensors")


class Recognised(NamedTuple):
    """The network that a file was recognised as."""

    name: str  # of `PUBLISHED`
    row: Published  # norm is "" if networks for several threat models have this name
    why: str  # a sentence for the user


def recognise(path: Path, classes: Callable[[], int]) -> Recognised | None:
    """Recognise RobustBench's network by a file's name; None if no network has this name.

    Several networks may have the same name. Then the folders decide (`cifar10/Linf/NAME.pt`, as in RobustBench), and
    the number of classes in the file.

    Args:
      path: of the file.
      classes: returns the file's number of classes; called only if necessary.

    Raises:
      InputError: networks of several architectures have this name.

    >>> recognise(Path("Carmon2019Unlabeled.pt"), lambda: 10).row.model
    'wrn_28_10'
    >>> recognise(Path("models/cifar10/L2/Rice2020Overfitting.pt"), lambda: 10).row.model
    'preact_resnet18'
    >>> recognise(Path("weights.pt"), lambda: 10)
    """
    stem = _stem(path)
    found = [name for name in PUBLISHED if name.startswith(SOURCE) and _last(name) == stem]
    folders = [part.lower() for part in path.parent.parts[-2:]]
    found = [name for name in found if PUBLISHED[name].dataset in folders] or found
    found = [name for name in found if PUBLISHED[name].norm in folders] or found
    if len({PUBLISHED[name].num_classes for name in found}) > 1:
        count = classes()
        found = [name for name in found if PUBLISHED[name].num_classes == count] or found
    if not found:
        return None
    rows = [PUBLISHED[name] for name in found]
    if len(rows) == 1:
        return Recognised(found[0], rows[0], _why(found[0], rows[0]))
    if len({repr(dataclasses.replace(row, norm="", eps=0.0)) for row in rows}) > 1:
        known = " or ".join(f"--model={name}" for name in found)
        raise InputError(f"{path}: several published networks have the name {stem}; give {known}")
    row = dataclasses.replace(rows[0], norm="", eps=0.0)
    threats = " or ".join(_threat(each) for each in rows)
    return Recognised(found[0], row, f"{_why(found[0], row)}, trained against {threats}")


def count_classes(path: Path, tensors: Tensors) -> int:
    """The number of classes in a file, from its last layer; 0 if none is found.

    >>> import numpy as np
    >>> count_classes(Path("x.pt"), Tensors({"module.fc.weight": np.zeros((100, 8))}, ()))
    100
    """
    arrays = strip_prefixes(path, tensors.arrays)
    return next((len(values) for key, values in arrays.items() if is_head_key(key) and values.ndim == 2), 0)


def _stem(path: Path) -> str:
    name = path.name
    while ending := next((ending for ending in ENDINGS if name.endswith(ending)), ""):
        name = name.removesuffix(ending)
    return name


def _last(name: str) -> str:
    return name.removeprefix(SOURCE).rpartition("/")[2]


def _threat(row: Published) -> str:
    return f"{row.norm}, eps {radius(row.eps)}"


def _why(name: str, row: Published) -> str:
    """A sentence that says what the file was recognised as, and that its name decided."""
    scaled = f"mean {row.mean}, std {row.std}" if row.mean else "images in [0, 1] without normalisation"
    threat = f", trained against {_threat(row)}" if row.norm else ""
    return (
        f"taken for RobustBench's {_last(name)} by the name of the file: {row.model} of {row.dataset}, "
        f"{row.num_classes} classes, {scaled}{threat}"
    )
