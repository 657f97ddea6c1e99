"""A network as a compiled function in a file: JAX's own export format."""

import importlib.util
import zlib
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded, write_file
from piat_jax.core.types import LogitsFn

MARK = b"piat_jax.crc32="
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
        content = bytes(exported.serialize(vjp_order=1))
    write_file(path, lambda file: file.write(content + _trailer(content)))


def read_exported(path: str | Path) -> LogitsFn:
    """The function in a file that `write_exported` wrote.

    Raises:
      InputError: there is no such file, it is none of JAX's, or it is damaged.
    """
    path = expanded(path)
    if not path.is_file():
        raise InputError(f"{path} is no file; piat-convert --to=jax writes one")
    _check_flatbuffers()
    content = path.read_bytes()
    body, mark, _ = content.rpartition(MARK)
    if mark and content != body + _trailer(body):
        raise InputError(f"{path} is not what was written: its checksum differs; write it again")
    try:
        return export.deserialize(bytearray(body if mark else content)).call
    except Exception as error:  # the parser's own, of many kinds
        raise InputError(f"{path} is no exported function of JAX, or too old a one: {error}") from error


def _trailer(content: bytes) -> bytes:
    """What follows the function in a file: JAX's format does not mind, and has no checksum of its own."""
    return MARK + f"{zlib.crc32(content):08x}".encode()


def _check_flatbuffers() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError("JAX's export format needs the package flatbuffers: pip install 'piat_jax[export]'")
