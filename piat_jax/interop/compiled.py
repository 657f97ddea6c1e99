"""A network as a compiled function in a file: JAX's own export format."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from piat_jax.core.checks import InputError
from piat_jax.core.files import write_file
from piat_jax.core.types import LogitsFn

PLATFORMS = ("cpu", "cuda", "tpu")


def write_exported(path: Path, logits_fn: LogitsFn, image_shape: Sequence[int]) -> None:
    """Write `logits_fn` with its weights as one file that needs neither Flax nor this library to run.

    It takes any batch size, runs on CPU, CUDA and TPU, and has a first derivative, so that it can be attacked. JAX
    keeps such files readable for six months; keep the weights for longer.

    Args:
      path: the file.
      logits_fn: images `[B, H, W, C]` in [0, 1] to logits `[B, K]`.
      image_shape: `(height, width, channels)`.

    Raises:
      InputError: the package flatbuffers, which JAX writes such files with, is not installed.
    """
    _check_flatbuffers()
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
    with jax.default_matmul_precision("highest"):
        exported = export.export(jax.jit(lambda images: logits_fn(images)), platforms=PLATFORMS)(images)
        content = exported.serialize(vjp_order=1)
    write_file(path, lambda file: file.write(content))


def read_exported(path: str | Path) -> LogitsFn:
    """The function in a file that `write_exported` wrote.

    Raises:
      InputError: there is no such file, or it is none of JAX's.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path} is no file; piat-convert --to=jax writes one")
    _check_flatbuffers()
    try:
        return export.deserialize(bytearray(path.read_bytes())).call
    except Exception as error:  # the parser's own, of many kinds
        raise InputError(f"{path} is no exported function of JAX, or too old a one: {error}") from error


def _check_flatbuffers() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError("JAX's export format needs the package flatbuffers: pip install 'piat_jax[export]'")
