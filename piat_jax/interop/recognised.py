"""Which published network a file holds, by its name: RobustBench's are called by who made them."""

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
    """A network that a file was taken for."""

    name: str  # of `PUBLISHED`
    row: Published  # norm is "" where the name is that of networks against several threats
    why: str  # a sentence


def recognise(path: Path, classes: Callable[[], int]) -> Recognised | None:
    """The network of RobustBench that a file's name is that of; None where it is that of none.

    Several networks may have one name. Then the folders decide, `cifar10/Linf/NAME.pt` as RobustBench has them, and
    the classes of the file.

    Args:
      path: of the file.
      classes: how many classes the file has; asked only where that matters.

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
    """The classes of a file by its last layer; 0 where none is found.

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
    """What was taken, and that it was by the name."""
    scaled = f"mean {row.mean}, std {row.std}" if row.mean else "images in [0, 1] as they are"
    threat = f", trained against {_threat(row)}" if row.norm else ""
    return (
        f"taken for RobustBench's {_last(name)} by the name of the file: {row.model} of {row.dataset}, "
        f"{row.num_classes} classes, {scaled}{threat}"
    )
