"""Load weights into a model: from PyTorch's files, safetensors, Google's .npz and this library's runs."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.checkpoint import Checkpoints
from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded
from piat_jax.core.shards import check_shards
from piat_jax.core.types import Variables
from piat_jax.interop.dialects import translated
from piat_jax.interop.lookalike import lookalike, read_sizes
from piat_jax.interop.names import flatten, from_torch, is_head, network_of, torch_key, unflatten
from piat_jax.interop.tensors import Tensors, read_safetensors, read_tensors
from piat_jax.models import LinenModel

PREFIXES = ("module.", "model.", "_orig_mod.", "1.")
"""Prefixes that DataParallel, wrappers, torch.compile and Sequential(normalize, model) put before the names."""
NORMALIZATION = re.compile(r"(?:.*\.)?(?:new_)?(mean|mu|std|sigma)")
# Step counters; the unused copy of the first group in TRADES' WideResNets; buffers that are recomputed; the pre-logits
# layer and the second head, which timm's networks also drop; a copy of the network inside an attacker.
IGNORED = re.compile(
    r"(?:.*\.)?(num_batches_tracked|rel_indices|relative_position_index|attn_mask)"
    r"|(sub_block1|pre_logits|head_dist|attacker)\..*"
)
GOOGLE = re.compile(r".*encoderblock.*")
PATCHES = "params/patch_embed/proj/kernel"
PLACES = "params/pos_embed"  # identifies a Vision Transformer
TABLE = "relative_position_bias_table"  # of Swin, one per block
CONFIG, SAFETENSORS = "config.json", "model.safetensors"


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """How the content of a file was used."""

    mapped: tuple[tuple[str, str, tuple[int, ...]], ...]  # key in the file, our path, shape there
    dropped: tuple[str, ...]  # not needed: counters, unused copies, optimizer state
    adapted: tuple[str, ...]  # descriptions of how weights were adapted
    normalization: str  # the source of mean and std: "file", "run", "model", (published) "name", or "none"

    def __str__(self) -> str:
        adapted = "".join(f"; {line}" for line in self.adapted)
        return f"{len(self.mapped)} tensors mapped, {len(self.dropped)} dropped{adapted}"


class Loaded(NamedTuple):
    """A network with its weights; attacks take `make_logits_fn(loaded.model, loaded.variables)`."""

    model: LinenModel  # including the file's normalisation
    variables: Variables
    report: LoadReport


def load_weights(
    path: str | Path,
    model: LinenModel,
    image_shape: Sequence[int],
    *,
    adapt: bool = False,
    unsafe_pickle: bool = False,
    checkpoint: str = "best",
    average: str = "",
    normalization: tuple[tuple[float, ...], ...] = (),
    tensors: Tensors | None = None,
) -> Loaded:
    """Load the weights in `path` as variables of `model`; every tensor in the file is used, or dropped for a reason.

    Args:
      path: a file (.safetensors, .pt, .pth, .bin, .ckpt, .npz), a folder with model.safetensors as on the hubs, or the
        folder of a run of this library.
      model: the network. Mean and std from the file, or from a config.json next to it, are put into the model. If the
        model already has them, they must equal the file's, and have priority over config.json's.
      image_shape: `(height, width, channels)`.
      adapt: adapt a Vision Transformer's weights if patch size, position grid or classes differ (a new head is
        random); for Swin, patches, windows and head; for other networks, a new head.
      unsafe_pickle: read a PyTorch file that holds more than tensors. This may run any code in the file.
      checkpoint: "best" or "last", for a run.
      average: for a run, the further average with this name; "" = the weights that its method evaluates.
      normalization: mean and std if neither the model nor the file has any, such as those of a published name.
      tensors: the result of `read_weights` for `path`, if it has already been read.

    Returns:
      The model with the file's normalisation, its variables in float32, and a report.

    Raises:
      InputError: the file cannot be read, or does not fit; the message then lists every key that is missing, unexpected
        or has another shape.

    Source: prefixes, wrappers and keys as in the published checkpoints of RobustBench and timm.
    """
    path = expanded(path)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    if (path / Checkpoints.FOLDER).is_dir():
        variables, _ = Checkpoints.of_run(path).load_evaluated(checkpoint, like, average=average)
        mapped = tuple((name, name, leaf.shape) for name, leaf in flatten(variables).items())
        model, origin = _with_normalization(path, model, _of_run(path))
        return Loaded(model, variables, LoadReport(mapped, (), (), "run" if origin == "file" else origin))
    arrays, dropped = tensors or read_weights(path, unsafe_pickle=unsafe_pickle)
    arrays = strip_prefixes(path, arrays)
    model, origin = _with_normalization(path, model, _found_normalization(path, arrays))
    if origin == "model" and _normalization(model.module) == _normalization(type(model.module)):
        origin = "default"
    if origin in ("none", "default") and normalization and normalization[0] and _configured(path) is None:
        mean, std = normalization
        model, origin = dataclasses.replace(model, module=model.module.clone(mean=mean, std=std)), "name"
    origin = "model" if origin == "default" else origin
    arrays = {name: values for name, values in arrays.items() if not NORMALIZATION.fullmatch(name)}
    ignored = [name for name in arrays if IGNORED.fullmatch(name)]
    used = {k: v for k, v in arrays.items() if k not in ignored}
    leaves, names = _named(network_of(model), used, like)
    adapted: list[str] = []
    _check_network(path, network_of(model), leaves, names, like, used, adapt=adapt)
    if adapt:
        leaves, adapted = _adapt(model, leaves, like, image_shape)
    _check_fit(path, network_of(model), leaves, names, like)
    mapped = tuple((names[ours], ours, arrays.get(names.get(ours, ours), leaves[ours]).shape) for ours in flatten(like))
    report = LoadReport(mapped, (*dropped, *ignored), tuple(adapted), origin)
    return Loaded(model, unflatten(leaves, like), report)


def sizes_of(path: str | Path, network: str, tensors: Tensors) -> tuple[dict[str, Any], int]:
    """A network's options of `models.create`, including num_classes, and its image size, from a file's tensors.

    Args:
      path: of the file, for messages.
      network: the class of the network.
      tensors: the result of `read_weights` for the file.

    Returns:
      The options, and the image size or 0 if the file does not determine it.
    """
    arrays, _ = translated(network, strip_prefixes(expanded(path), tensors.arrays))
    return read_sizes(network, {key: tuple(values.shape) for key, values in arrays.items()})


def read_weights(path: str | Path, *, unsafe_pickle: bool = False) -> Tensors:
    """Read the tensors in a file or in a folder's file.

    Args:
      path: as for `load_weights`, except runs.
      unsafe_pickle: as for `load_weights`.

    Raises:
      InputError: the file cannot be read, or the folder holds no weights.
    """
    path = expanded(path)
    if not path.is_dir():
        return read_tensors(path, unsafe_pickle=unsafe_pickle)
    whole = path / SAFETENSORS
    if parts := [whole] if whole.exists() else sorted(path.glob("model-*.safetensors")):
        check_shards(parts)
        return Tensors({name: values for part in parts for name, values in read_safetensors(part).items()}, ())
    for name in ("pytorch_model.bin", "model.pt"):
        if (path / name).exists():
            return read_tensors(path / name, unsafe_pickle=unsafe_pickle)
    raise InputError(f"{path} holds no weights; give a file, a folder with {SAFETENSORS}, or the folder of a run")


def strip_prefixes(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Remove all prefixes that wrappers put before the tensors' names.

    >>> sorted(strip_prefixes(Path("x.pt"), {"module.1.fc.bias": np.zeros(2), "module.0.mean": np.zeros(3)}))
    ['0.mean', 'fc.bias']
    """
    stripped: dict[str, np.ndarray] = {}
    for name, values in arrays.items():
        short = name
        while prefix := next((p for p in PREFIXES if short.startswith(p)), ""):
            short = short.removeprefix(prefix)
        if short in stripped:
            raise InputError(f"{path} has {short!r} twice under different prefixes; save only one network")
        stripped[short] = values
    return stripped


def _found_normalization(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[tuple[float, ...], ...] | None:
    """(mean, std) in the file's buffers."""
    found: dict[str, set[tuple[float, ...]]] = {"mean": set(), "std": set()}
    for name, values in arrays.items():
        if match := NORMALIZATION.fullmatch(name):
            # The shortest decimals for this float32: 0.4914, not 0.4914000034.
            numbers = tuple(float(str(np.float32(value))) for value in np.ravel(values))
            found["mean" if match[1] in ("mean", "mu") else "std"].add(numbers)
    if not any(found.values()):
        return None
    if {len(values) for values in found.values()} != {1}:
        raise InputError(
            f"{path} has no single mean and std: {found}; remove them from the file and give them to the model"
        )
    return found["mean"].pop(), found["std"].pop()


def _of_run(path: Path) -> tuple[tuple[float, ...], ...] | None:
    """(mean, std) of a run's network."""
    fields = read_config(path).get("model", {})
    return (tuple(fields["mean"]), tuple(fields["std"])) if {"mean", "std"} <= set(fields) else None


def _configured(path: Path) -> tuple[tuple[float, ...], ...] | None:
    """(mean, std) in the config.json next to the weights, as timm and `save_safetensors` write it; 0 and 1 = none."""
    config = read_config(path)
    fields = config.get("pretrained_cfg", config)
    mean, std = tuple(fields.get("mean") or ()), tuple(fields.get("std") or ())
    if not mean or not std:
        return None
    return (mean, std) if any(mean) or set(std) != {1} else ((), ())


def read_config(path: Path) -> dict[str, Any]:
    """The config.json in the folder `path`, or next to the file; {} if there is none."""
    file = (path if path.is_dir() else path.parent) / CONFIG
    if not file.exists() or (path.is_file() and path.suffix != ".safetensors"):
        return {}
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{file} is not JSON ({error})") from error


def _normalization(module: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(getattr(module, name, ())) for name in ("mean", "std"))


def _with_normalization(
    path: Path, model: LinenModel, found: tuple[tuple[float, ...], ...] | None
) -> tuple[LinenModel, str]:
    """The model with the file's mean and std, and their source.

    Values in buffers are part of the network. The model's values have priority over those in config.json, as
    fine-tuning may change them.
    """
    given, beside = _normalization(model.module), _configured(path)
    chosen = bool(given[0]) and given != _normalization(type(model.module))  # not the network's default
    if found is None and (chosen or beside is None):
        return model, "model" if given[0] else "none"
    found = found or beside or ((), ())
    origin = "file" if found[0] else "none"
    if [len(part) for part in given] == [len(part) for part in found] and np.allclose(given, found, atol=1e-6):
        return model, origin
    if chosen:
        raise InputError(
            f"{path} normalises by mean={found[0]}, std={found[1]} and the model by mean={given[0]}, std={given[1]}; "
            "make the model without mean and std"
        )
    return dataclasses.replace(model, module=model.module.clone(mean=found[0], std=found[1])), origin


def _named(
    network: str, arrays: Mapping[str, np.ndarray], like: Variables
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors by our paths in our layout, and the file's name of each path; unknown tensors keep their names."""
    if any(GOOGLE.fullmatch(name) for name in arrays):
        from piat_jax.interop.vit_weights import google_npz_to_tree

        leaves = {_under_params(name): values for name, values in google_npz_to_tree(dict(arrays)).items()}
        return leaves, {path: path for path in (*flatten(like), *leaves)}
    arrays, keys = translated(network, arrays)
    names = {path: torch_key(path, network) for path in flatten(like)}
    paths = {key: path for path, key in names.items()}
    leaves = {paths.get(key, key): from_torch(paths.get(key, key), values) for key, values in arrays.items()}
    return leaves, {path: keys.get(key, key) for path, key in names.items()}


def _under_params(path: str) -> str:
    return path if path.startswith("params/") else f"params/{path}"


def _adapt(
    model: LinenModel, leaves: Mapping[str, np.ndarray], like: Variables, image_shape: Sequence[int]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Adapt patches, positions and head; also returns descriptions of the changes."""
    wanted = {path: leaf.shape for path, leaf in flatten(like).items()}
    if PLACES in wanted:
        from piat_jax.interop.vit_weights import adapt_vit

        shapes = {path.removeprefix("params/"): shape for path, shape in wanted.items()}
        weights = {path.removeprefix("params/"): values for path, values in leaves.items()}
        adapted = {_under_params(k): v for k, v in adapt_vit(weights, shapes, key=jax.random.key(0)).items()}
    else:
        adapted = {path: _fitted(path, leaf, wanted.get(path, leaf.shape)) for path, leaf in leaves.items()}
        if any(path in leaves and leaves[path].shape != shape for path, shape in wanted.items() if is_head(path)):
            fresh = model.init(jax.random.key(0), jnp.zeros((1, *image_shape)))
            adapted |= {path: np.asarray(leaf) for path, leaf in flatten(fresh).items() if is_head(path)}
    before = {path: values.shape for path, values in leaves.items()}
    changed = {path: shape for path, shape in wanted.items() if path in adapted and before.get(path) != shape}
    return adapted, [f"{path} {before.get(path, 'new')} -> {shape}" for path, shape in changed.items()]


def _fitted(path: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Adapt Swin's patches and tables to other images; anything else is unchanged."""
    from piat_jax.interop.vit_weights import adapt_bias_table, adapt_patch_kernel

    if values.shape == shape:
        return values
    if path.endswith(TABLE):
        return adapt_bias_table(values, shape[0])
    return adapt_patch_kernel(values, shape[0]) if path == PATCHES else values


def _check_network(
    path: Path,
    network: str,
    leaves: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    like: Variables,
    arrays: Mapping[str, np.ndarray],
    *,
    adapt: bool,
) -> None:
    """Raise InputError with one line if the tensors belong to another supported network."""
    wanted = {ours: leaf.shape for ours, leaf in flatten(like).items()}
    adaptable = (PATCHES, PLACES) if adapt else ()
    shared = [
        ours
        for ours in leaves.keys() & wanted.keys()
        if not is_head(ours) and ours not in adaptable and not (adapt and ours.endswith(TABLE))
    ]
    if (leaves.keys() == wanted.keys() and all(leaves[ours].shape == wanted[ours] for ours in shared)) or _hint(
        *_apart(leaves, wanted, names)
    ):
        return
    found = lookalike(arrays)
    if found and (found.names or found.network != network):
        raise InputError(f"{path} does not fit {network}; {found}")


def _apart(
    leaves: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]], names: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """The unexpected and the missing tensors of a file."""
    missing = sorted(names[ours] for ours in wanted.keys() - leaves.keys())
    return sorted(leaves.keys() - wanted.keys()), missing


def _check_fit(
    path: Path, network: str, leaves: Mapping[str, np.ndarray], names: Mapping[str, str], like: Variables
) -> None:
    """Raise InputError with everything that does not fit or is not finite."""
    wanted = {ours: leaf.shape for ours, leaf in flatten(like).items()}
    unexpected, missing = _apart(leaves, wanted, names)
    other = [ours for ours, shape in wanted.items() if ours in leaves and leaves[ours].shape != shape]
    if not unexpected and not missing and other and all(is_head(ours) for ours in other):
        classes, expected = (shapes[other[0]][-1] for shapes in ({k: v.shape for k, v in leaves.items()}, wanted))
        if classes != expected:
            raise InputError(
                f"{path} has {classes} classes and the model {expected}; give num_classes={classes}, "
                "or adapt=True (--adapt) for a new head"
            )
    lines = [
        f"{title}: {', '.join(keys)}" for title, keys in (("unexpected", unexpected), ("missing", missing)) if keys
    ]
    lines += [
        f"{names[ours]}: {leaves[ours].shape} in the file, {wanted[ours]} in the model (our layout)" for ours in other
    ]
    if lines:
        counts = f"{len(unexpected)} unexpected, {len(missing)} missing and {len(other)} of another shape"
        hint = _hint(unexpected, missing) or _patch_hint(leaves, wanted) or _window_hint(leaves, wanted)
        raise InputError("\n".join([f"{path} does not fit {network}: {counts}{hint}", *lines]))
    for ours, values in leaves.items():
        if not np.isfinite(np.asarray(values, np.float32)).all():
            raise InputError(f"{path}: {names[ours]} holds values that are not finite; fetch the file again")


def _patch_hint(leaves: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """A hint on the option for a Vision Transformer with other patches."""
    there, here = (leaves[PATCHES].shape if PATCHES in leaves else ()), wanted.get(PATCHES, ())
    if len(there) != 4 or there == here:
        return ""
    return (
        f"; its patches have {there[0]} pixels: give the model patch_size={there[0]} (--option=patch_size={there[0]})"
    )


def _window_hint(leaves: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """A hint on the option for a Swin with other windows."""
    tables = [path for path in wanted if path.endswith(TABLE) and path in leaves]
    rows = max((len(leaves[path]) for path in tables), default=0)
    if rows == max((wanted[path][0] for path in tables), default=0):
        return ""
    window = (math.isqrt(rows) + 1) // 2
    return (
        f"; its windows have {window} tokens: give the model window={window} (--option=window={window}), or "
        "adapt=True (--adapt)"
    )


def _hint(unexpected: Sequence[str], missing: Sequence[str]) -> str:
    """A hint if the file is of the other PreActResNet-18, which differs in one layer."""
    last = {f"bn.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")}
    if set(missing) == last and not unexpected:
        return "; it has the weights of preact_resnet18_v1"
    return "; it has the weights of preact_resnet18" if set(unexpected) == last and not missing else ""
