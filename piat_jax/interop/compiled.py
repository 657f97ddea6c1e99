"""A network as an exported function in a file, in JAX's export format."""

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
    """Write `logits_fn` with its weights to one file that needs neither Flax nor this library.

    The function takes any batch size, runs on CPU, CUDA and TPU, and has a first derivative, so that it can be
    attacked. JAX guarantees that such files stay readable for six months; keep the weights for longer use.

    Args:
      path: the file.
      logits_fn: images `[B, H, W, C]` in [0, 1] to logits `[B, K]`.
      image_shape: `(height, width, channels)`.

    Raises:
      InputError: the package flatbuffers, which JAX needs for such files, is not installed.
    """
    _check_flatbuffers()
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
    with jax.default_matmul_precision("highest"):
        exported = export.export(jax.jit(lambda images: logits_fn(images)), platforms=PLATFORMS)(images)
        content = bytes(exported.serialize(vjp_order=1))
    write_file(path, lambda file: file.write(content + _trailer(content)))


def read_exported(path: str | Path) -> LogitsFn:
    """Read the function in a file that `write_exported` wrote.

    Raises:
      InputError: the file does not exist, is not an exported function of JAX, or is damaged.
    """
    path = expanded(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file; piat-convert --to=jax writes one")
    _check_flatbuffers()
    content = path.read_bytes()
    body, mark, _ = content.rpartition(MARK)
    if mark and content != body + _trailer(body):
        raise InputError(f"{path} is damaged: its checksum differs; write it again")
    try:
        return export.deserialize(bytearray(body if mark else content)).call
    except Exception as error:  # the parser raises many types
        raise InputError(f"{path} is not an exported function of JAX, or is too old: {error}") from error


def _trailer(content: bytes) -> bytes:
    """The checksum after the function in a file; JAX's format ignores it and has none itself."""
    return MARK + f"{zlib.crc32(content):08x}".encode()


def _check_flatbuffers() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError("JAX's export format needs the package flatbuffers: pip install 'piat_jax[export]'")
