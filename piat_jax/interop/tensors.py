"""Files of named tensors: safetensors, PyTorch's, NumPy's. What is read are plain NumPy arrays."""

import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.files import write_file

TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
CODES = {np.dtype(kind): code for code, kind in TYPES.items()}
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
SUFFIXES = (".safetensors", ".npz", *TORCH_SUFFIXES)
# Where checkpoints keep the weights; of a last and a best one the published numbers are those of the last.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "params", "last", "best")


# Key in a safetensors file's metadata: the CRC-32 of the header without the metadata and of the data.
CHECKSUM = "piat_jax.crc32"


class Tensors(NamedTuple):
    """What a file holds."""

    arrays: dict[str, np.ndarray]
    dropped: tuple[str, ...]  # what stands beside the weights: epoch, optimizer, ...


def read_tensors(path: Path, *, unsafe_pickle: bool = False) -> Tensors:
    """The tensors of a file, by its ending.

    Args:
      path: one of `SUFFIXES`.
      unsafe_pickle: read a PyTorch file that holds more than tensors, which may run any code that is in it.

    Raises:
      InputError: there is no such file, it is of another kind, or it is damaged.
    """
    if not path.is_file():
        raise InputError(f"{path} is no file; give a file of weights ({', '.join(SUFFIXES)})")
    if path.suffix == ".safetensors":
        return Tensors(read_safetensors(path), ())
    if path.suffix == ".npz":
        return Tensors(_read_npz(path), ())
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path, unsafe_pickle)
    raise InputError(f"{path} is of an unknown kind; give a file that ends with {', '.join(SUFFIXES)}")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file: eight bytes with the header's length, the header in JSON, the data.

    Raises:
      InputError: it is not whole, has a type that is not read here, or is damaged, which what `write_safetensors` wrote
        shows by its checksum.

    Source: the format's description, huggingface/safetensors.
    """
    content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    try:
        length = int.from_bytes(content[:8].tobytes(), "little")
        header = json.loads(content[8 : 8 + length].tobytes())
        metadata = header.pop("__metadata__", None) or {}
        data = content[8 + length :]
        tensors = {name: _tensor(path, name, data, **entry) for name, entry in header.items()}
        if metadata.get(CHECKSUM, found := _checksum(header, [data])) != found:
            raise InputError(f"{path} is not what was written: its checksum differs; fetch it again")
        return tensors
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); fetch it again") from error


def _tensor(
    path: Path, name: str, data: np.ndarray, *, dtype: str, shape: list[int], data_offsets: list[int]
) -> np.ndarray:
    if dtype not in TYPES:
        raise InputError(f"{path}: {name!r} is stored as {dtype}, which is not read here; save it as F32")
    begin, end = data_offsets
    kind = np.dtype(TYPES[dtype])
    if not 0 <= begin <= end <= len(data) or end - begin != kind.itemsize * math.prod(shape):
        raise ValueError(f"{end - begin} bytes from {begin} on for {dtype}{shape}, {len(data)} there")
    return np.frombuffer(data[begin:end].tobytes(), kind).reshape(shape)


def _checksum(header: Mapping[str, Any], data: Iterable[np.ndarray]) -> str:
    total = zlib.crc32(_json(header))
    for part in data:
        total = zlib.crc32(part.data, total)
    return f"{total:08x}"


def _json(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a .safetensors file whole or not at all."""
    arrays = {name: np.ascontiguousarray(values).reshape(values.shape) for name, values in arrays.items()}
    header: dict[str, Any] = {}
    offset = 0
    for name, values in arrays.items():
        offsets = [offset, offset + values.nbytes]
        header[name] = {"dtype": CODES[values.dtype], "shape": list(values.shape), "data_offsets": offsets}
        offset += values.nbytes
    checksum = _checksum(header, (values.reshape(-1).view(np.uint8) for values in arrays.values()))
    text = _json({"__metadata__": {"format": "pt", CHECKSUM: checksum}, **header})
    text += b" " * (-len(text) % 8)

    def fill(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for values in arrays.values():
            file.write(values.tobytes())

    write_file(path, fill)


def write_torch(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a state_dict as torch.save does, whole or not at all."""
    torch = import_torch(f"writing {path.name}")
    state = {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}
    write_file(path, lambda file: torch.save(state, file))


def import_torch(purpose: str) -> Any:
    """PyTorch, or an InputError that says what it is needed for."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(f"{purpose} needs PyTorch: pip install torch; safetensors files need none") from error
    return torch


def with_bfloat16(values: np.ndarray) -> np.ndarray:
    """The array, as bfloat16 where NumPy, which does not know it, has saved its two bytes as they are."""
    return values.view(jnp.bfloat16) if values.dtype == "V2" else values


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: with_bfloat16(values) for name, values in file.items()}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a whole .npz of arrays ({error}); fetch it again") from error


def _read_torch(path: Path, unsafe_pickle: bool) -> Tensors:
    import pickle

    torch = import_torch(f"reading {path.name}")
    check_zip(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=not unsafe_pickle)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors, and reading that may run any code which is in the file; if you trust "
            "where it is from, give unsafe_pickle=True (--unsafe_pickle)"
        ) from error
    except Exception as error:  # a damaged file may fail anywhere in it
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
        raise InputError(f"{path} holds a {type(content).__name__}, no state_dict; save model.state_dict()")
    arrays = dict(_arrays(content))
    return Tensors(arrays, (*dropped, *(str(name) for name in content if str(name) not in arrays)))


def check_zip(path: Path) -> None:
    """Raise InputError where a zip file, as PyTorch's are, has an entry whose checksum is wrong: PyTorch does not look.

    It can also be told to write none; then no entry's is right.
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
