"""Read and write files of named tensors (safetensors, PyTorch, NumPy) as plain NumPy arrays."""

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.files import write_file

# Type names in a safetensors file. The library looks up types in NumPy; those that NumPy lacks are decoded here.
BY_LIBRARY = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
BY_HAND = {"F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2}
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
SUFFIXES = (".safetensors", ".npz", *TORCH_SUFFIXES)
# Where checkpoints keep the weights; if there is a last and a best one, the published numbers are of the last.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "params", "last", "best")


# Key in a safetensors file's metadata: the CRC-32 of the header without the metadata and of the data.
CHECKSUM = "piat_jax.crc32"


class Tensors(NamedTuple):
    """The content of a file."""

    arrays: dict[str, np.ndarray]
    dropped: tuple[str, ...]  # other content: epoch, optimizer, ...


def read_tensors(path: Path, *, unsafe_pickle: bool = False) -> Tensors:
    """Read the tensors in a file; its suffix decides the format.

    Args:
      path: one of `SUFFIXES`.
      unsafe_pickle: read a PyTorch file that holds more than tensors; this may run any code in the file.

    Raises:
      InputError: the file does not exist, has another format, or is damaged.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a file of weights ({', '.join(SUFFIXES)})")
    if path.suffix == ".safetensors":
        return Tensors(read_safetensors(path), ())
    if path.suffix == ".npz":
        return Tensors(_read_npz(path), ())
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path, unsafe_pickle)
    raise InputError(f"{path} has an unknown format; give a file that ends with {', '.join(SUFFIXES)}")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors in a .safetensors file.

    Raises:
      InputError: the file is incomplete, has an unsupported type, or is damaged (files of `write_safetensors` have a
        checksum).
    """
    from safetensors import SafetensorError, safe_open

    try:
        # The NumPy interface, as that for Flax reduces 64-bit numbers to 32 bits. JAX registers BF16's name in NumPy.
        with safe_open(path, framework="np") as file:
            header, data = _parts(np.memmap(path, np.uint8, "r"))
            arrays = {name: _tensor(path, name, file, header[name], data) for name in file.keys()}  # noqa: SIM118
            if (file.metadata() or {}).get(CHECKSUM, found := _checksum(header, data)) != found:
                raise InputError(f"{path} is damaged: its checksum differs; fetch it again")
    except SafetensorError as error:
        raise InputError(f"{path} is not a complete safetensors file ({error}); fetch it again") from error
    return arrays


def _tensor(path: Path, name: str, file: Any, entry: Mapping[str, Any], data: np.ndarray) -> np.ndarray:
    code = entry["dtype"]
    if code in BY_LIBRARY:
        return file.get_tensor(name)
    if code in BY_HAND:
        begin, end = entry["data_offsets"]  # the library has checked them
        return np.array(data[begin:end]).view(BY_HAND[code]).reshape(entry["shape"])
    raise InputError(f"{path}: {name!r} is stored as {code}, which is not supported; save it as F32")


def _parts(content: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """A complete file's header without its metadata, and its data."""
    end = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:end].tobytes())
    header.pop("__metadata__", None)
    return header, content[end:]


def _checksum(header: Mapping[str, Any], data: np.ndarray) -> str:
    # The format has no checksum, so the library does not detect a flipped bit.
    return f"{zlib.crc32(data.data, zlib.crc32(json.dumps(header, separators=(',', ':')).encode())):08x}"


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a .safetensors file atomically."""
    from safetensors.numpy import save

    # In C order, as the library writes the raw memory of an array.
    arrays = {name: np.asarray(values, order="C") for name, values in arrays.items()}
    checksum = _checksum(*_parts(np.frombuffer(save(arrays), np.uint8)))
    content = save(arrays, {"format": "pt", CHECKSUM: checksum})
    write_file(path, lambda file: file.write(content))


def write_torch(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a state_dict as torch.save does, atomically."""
    torch = import_torch(f"writing {path.name}")
    state = {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}
    write_file(path, lambda file: torch.save(state, file))


def import_torch(purpose: str) -> Any:
    """Import PyTorch, or raise an InputError that says why it is needed."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(f"{purpose} needs PyTorch: pip install torch; safetensors files need none") from error
    return torch


def with_bfloat16(values: np.ndarray) -> np.ndarray:
    """The array, as bfloat16 if NumPy, which lacks this type, saved it as raw pairs of bytes."""
    return values.view(jnp.bfloat16) if values.dtype == "V2" else values


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: with_bfloat16(values) for name, values in file.items()}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a complete .npz of arrays ({error}); fetch it again") from error


def _read_torch(path: Path, unsafe_pickle: bool) -> Tensors:
    import pickle

    torch = import_torch(f"reading {path.name}")
    check_zip(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=not unsafe_pickle)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors, and reading it may run any code in the file; if you trust its source, "
            "give unsafe_pickle=True (--unsafe_pickle)"
        ) from error
    except Exception as error:  # a damaged file can raise almost any exception
        raise InputError(f"{path} cannot be read: {str(error).strip().partition(chr(10))[0]}") from error
    if not isinstance(content, Mapping) and hasattr(content, "state_dict"):
        content = content.state_dict()
    dropped = []
    while isinstance(content, Mapping):
        wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if wrapper is None:
            break
        dropped += [str(name) for name in content if name != wrapper]
        content = content[wrapper]
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state_dict; save model.state_dict()")
    arrays = dict(_arrays(content))
    return Tensors(arrays, (*dropped, *(str(name) for name in content if str(name) not in arrays)))


def check_zip(path: Path) -> None:
    """Raise InputError if a zip file, such as PyTorch's, has an entry with a wrong checksum: PyTorch does not check.

    PyTorch can also write files without checksums; then all of them are wrong, and the file is accepted.
    """
    if not zipfile.is_zipfile(path):
        return
    wrong, right = [], 0
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            try:
                with archive.open(entry) as file:
                    while file.read(1 << 22):
                        pass
                right += 1
            except (zipfile.BadZipFile, zlib.error, EOFError):
                wrong.append(entry.filename)
    if wrong and right:
        raise InputError(f"{path} is damaged: the checksum of {wrong[0]} differs; fetch it again")


def _arrays(state: Mapping[Any, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for name, values in state.items():
        if hasattr(values, "detach"):
            values = values.detach().cpu()
            yield str(name), (values.float() if values.is_floating_point() else values).numpy()
