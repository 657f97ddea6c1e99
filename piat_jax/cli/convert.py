"""Weights from one form into another.

    piat-convert weights.pt runs/imported --model=wrn_28_10 --num_classes=10 --config=configs/cifar10_wrn32_10.py
    piat-convert runs/x exported --checkpoint=final --to=safetensors

SOURCE is a file of weights (.safetensors, .pt, .pth, .bin, .npz), a folder that holds model.safetensors, or the folder
of a run. TARGET is what --to says: a run that piat-evaluate takes ("run"), a folder with safetensors, config.json and a
model card ("safetensors"), a state_dict for PyTorch ("torch"), "onnx", or a compiled function of JAX ("jax"). Without
--to its ending decides (.pt, .pth, .onnx, .jax); without one it is "safetensors" for a run, "run" for anything else.
"""

import ast
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict

from piat_jax import models
from piat_jax.checkpoint import Checkpoints
from piat_jax.cli import arguments, build, errors, run_folder
from piat_jax.cli.config import Config, parse_value, split_overrides
from piat_jax.cli.evaluate import CHECKPOINTS
from piat_jax.cli.problems import problems
from piat_jax.cli.train import read_config
from piat_jax.core.checks import InputError, check_choice
from piat_jax.core.files import command, expanded
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.types import TrainState
from piat_jax.data.dataset_info import KNOWN
from piat_jax.interop import About, Loaded, load_weights, save_safetensors, save_torch, write_exported, write_onnx
from piat_jax.interop.names import HEADS
from piat_jax.interop.tensors import import_torch
from piat_jax.interop.weights import read_config as read_export
from piat_jax.interop.weights import transformer_sizes

FORMS = ("run", "safetensors", "torch", "onnx", "jax")
# Endings of files that hold weights, and that none of these forms is.
OTHERS = (".safetensors", ".st", ".bin", ".ckpt", ".npz", ".h5", ".msgpack")
ENDINGS = {".pt": "torch", ".pth": "torch", ".onnx": "onnx", ".jax": "jax"}


class Source(NamedTuple):
    """The network that the weights are for, and what is known of it."""

    model: models.LinenModel
    about: About


def main(argv: Sequence[str]) -> None:
    """The command."""
    overrides, rest = split_overrides(argv)
    values = _flags()
    positional = arguments.parse(values, rest, __doc__, folders=True)
    if len(positional) != 2:
        raise InputError(f"{len(positional)} positional arguments; give two: piat-convert SOURCE TARGET")
    source, target = (expanded(text) for text in positional)
    is_run = (source / run_folder.CHECKPOINTS).is_dir()
    form = values.to or ENDINGS.get(target.suffix) or ("safetensors" if is_run else "run")
    check_choice("to", form, FORMS)
    if target.suffix in OTHERS:
        raise InputError(
            f"{target}: nothing is written with this ending; safetensors and runs are folders: give a name without, "
            f"or with one of {', '.join(ENDINGS)}"
        )
    if target.exists():
        raise InputError(f"{target} exists; give a name that is free")
    if not source.exists():
        raise InputError(f"{source} is no file and no folder; give weights or a run")
    check_choice("checkpoint", values.checkpoint, (*CHECKPOINTS, "last"))
    if form != "run" and (overrides or values.config):
        raise InputError(f"--config says what a run is evaluated on; it does not go with --to={form}")
    if form == "torch":
        import_torch(f"writing {target.name}")
    config = _target_config(values, overrides) if form == "run" else None
    found = _of_run(source, values) if is_run else _of_file(source, values)
    loaded = load_weights(
        source,
        found.model,
        found.about.image_shape,
        adapt=values.adapt,
        unsafe_pickle=values.unsafe_pickle,
        checkpoint=_on_disk(values.checkpoint),
    )
    _print(loaded, quiet=values.quiet)
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(form, target, loaded, found.about, config, nchw=values.nchw)


def _flags() -> Any:
    """The command's flags; what one holds has no static type."""
    values = arguments.new_flags()
    flags.DEFINE_string("model", "", "The network, as configs call it; a run knows its own.", flag_values=values)
    flags.DEFINE_integer("num_classes", 0, "Classes of the network.", flag_values=values)
    flags.DEFINE_multi_string("option", [], "Of the network, NAME=VALUE: width=4.", flag_values=values)
    flags.DEFINE_string(
        "mean", "", "Of the input normalisation, one for each channel: 0.49,0.48,0.45; or none.", flag_values=values
    )
    flags.DEFINE_string("std", "", "The same for the standard deviation.", flag_values=values)
    flags.DEFINE_string(
        "image_shape", "", "height,width,channels; 32,32,3 unless a run knows better.", flag_values=values
    )
    flags.DEFINE_string("to", "", f"What TARGET becomes: {', '.join(FORMS)}.", flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "Of a run: best or final.", flag_values=values)
    flags.DEFINE_string(
        "config", "", "Config file for --to=run: data and attacks to evaluate with.", flag_values=values
    )
    flags.DEFINE_boolean("adapt", False, "Make patches, positions and head fit where they differ.", flag_values=values)
    flags.DEFINE_boolean("unsafe_pickle", False, "Run what code a PyTorch file may hold.", flag_values=values)
    flags.DEFINE_boolean("nchw", False, "Channels come first in the ONNX model's input.", flag_values=values)
    flags.DEFINE_boolean("quiet", False, "Print the summary alone.", flag_values=values)
    return values


def _target_config(values: Any, overrides: dict[str, str]) -> Config:
    if not values.config:
        raise InputError(
            "--config is missing: a run needs a config, which says what to evaluate on; "
            "give one such as --config=configs/cifar10_resnet18.py"
        )
    return read_config(values.config, overrides, trains=False)


def _on_disk(checkpoint: str) -> str:
    return CHECKPOINTS.get(checkpoint, checkpoint)


def _of_run(folder: Path, values: Any) -> Source:
    """What a run's config and files say."""
    for flag in ("model", "num_classes", "mean", "std", "option"):
        if values[flag].value:
            raise InputError(f"--{flag} does not go with a run, whose config says it")
    config = run_folder.read_config(folder)
    kept = _on_disk(values.checkpoint)
    info = Checkpoints(folder / run_folder.CHECKPOINTS).info(kept)
    classes, channels = _sizes(info["shapes"])
    written = folder / run_folder.EVALUATION
    results = run_folder.read_json(written) if written.exists() else {}
    name = next(name for name, on_disk in CHECKPOINTS.items() if on_disk == kept)
    result = results.get("checkpoints", {}).get(name, {})
    known = result.get("epoch") == info["epoch"]
    fields = config.attack
    # Of weights that were imported, the config says what they are evaluated on, not how they were trained.
    trained = "source" not in info
    about = About(
        model=config.model.name,
        num_classes=classes,
        image_shape=_shape(values) or (*_size(config.dataset.name), channels),
        options=dict(config.model.options.items()),
        dataset=config.dataset.name,
        method=f"{config.method}, {config.epochs} epochs" if trained else "",
        threat=f"{fields.norm}, eps {fields.eps:.4g} ({255 * fields.eps:.3g}/255), {fields.steps} steps"
        if trained
        else "",
        checkpoint=f"{name}, epoch {info['epoch']}" if trained else "",
        accuracy=result.get("accuracy", {}) if known else {},
        num_examples=results.get("num_examples", 0),
        source=info.get("source", ""),
    )
    return Source(build.model(config, classes, dtype="float32"), about)


def _size(dataset: str) -> tuple[int, int]:
    """Height and width of the images of a data set that is known by name."""
    dataset = "fashion_mnist" if dataset == "embedded" else dataset
    if dataset not in KNOWN:
        raise InputError(
            f"--image_shape is missing: the run was trained on {dataset!r}, whose images are of no known size; "
            "give height,width,channels, such as 32,32,3"
        )
    return KNOWN[dataset].image_shape[:2]


def _sizes(shapes: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """Classes and channels of a network, from its first and last layer."""
    kernels = {path.split("/")[1]: shape for path, shape in shapes.items() if path.endswith("/kernel")}
    classes = next((shape[-1] for name, shape in kernels.items() if name in HEADS), 0)
    stems = ("conv1", "init_conv", "conv_2d", "patch_embed")
    channels = next((shape[2] for name, shape in kernels.items() if name in stems), 3)
    return classes, channels


def _of_file(source: Path, values: Any) -> Source:
    """What the flags say, or the config.json beside the weights."""
    written = read_export(source) if source.exists() else {}
    ours = written.get("piat_jax", {})
    name, classes = values.model or ours.get("model", ""), values.num_classes or written.get("num_classes", 0)
    if not name:
        raise InputError("--model is missing: weights do not say which network they are of; see --help")
    if not classes:
        raise InputError("--num_classes is missing; give the number of classes, such as 10")
    options: dict[str, Any] = ours.get("options", {}) if name == ours.get("model") else {}
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    options |= dict(_option(text) for text in values.option)
    mean, std = _numbers("mean", values.mean), _numbers("std", values.std)
    given = values.mean or values.std
    normalization: dict[str, Any] = {"mean": mean, "std": std} if given else {}
    size = written.get("pretrained_cfg", {}).get("input_size", (3, 32, 32))
    image_shape = _shape(values) or (size[1], size[2], size[0])
    if not values.adapt and "patch_size" not in options and _has_patches(name):
        patch_size, side = transformer_sizes(source, unsafe_pickle=values.unsafe_pickle)
        options |= {"patch_size": patch_size} if patch_size else {}
        if side and "pretrained_cfg" not in written and not values.image_shape:
            image_shape = (side, side, 3)
    about = About(
        model=name,
        num_classes=classes,
        image_shape=image_shape,
        options=options,
        source=source.name,
    )
    return Source(models.create(name, num_classes=classes, **normalization, **options), about)


def _has_patches(model: str) -> bool:
    return model in models.MODELS and "patch_size" in models.MODELS[model][0].__dataclass_fields__  # type: ignore[attr-defined]


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    if text == "none":
        return ()
    try:
        return parse_value(text, (0.5,))
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"{flag}={text!r} is no list of numbers; give one for each channel: 0.49,0.48,0.45") from error


def _option(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise InputError(f"option={text!r} is not NAME=VALUE with a number or a tuple: width=4") from error


def _shape(values: Any) -> tuple[int, int, int] | None:
    if not values.image_shape:
        return None
    shape = tuple(int(part) for part in values.image_shape.split(",") if part.strip().isdigit())
    if len(shape) != 3:
        raise InputError(f"image_shape={values.image_shape!r} is not height,width,channels, such as 32,32,3")
    return shape


def _print(loaded: Loaded, *, quiet: bool) -> None:
    """What went where."""
    report = loaded.report
    if not quiet and any(key != path for key, path, _ in report.mapped):  # a run's names are ours
        width = [max(len(row[column]) for row in report.mapped) for column in (0, 1)]
        for key, path, shape in report.mapped:
            print(f"{key:{width[0]}}  {path:{width[1]}}  {shape}")
        if report.dropped:
            print(f"dropped: {', '.join(report.dropped)}")
    print(report)
    mean, std = (getattr(loaded.model.module, name, ()) for name in ("mean", "std"))
    if mean:
        print(f"normalisation (from the {report.normalization}): mean {mean}, std {std}")
    else:
        print("normalisation: none, images go in as they are in [0, 1]; --mean and --std give one")


def _write(form: str, target: Path, loaded: Loaded, about: About, config: Config | None, *, nchw: bool) -> None:
    model, variables, _ = loaded
    logits_fn = make_logits_fn(model, variables)
    if form == "run":
        _write_run(target, loaded, about, config)
        print(f"wrote {target}; evaluate with: {command('piat-evaluate', workdir=target)}")
        return
    if form == "safetensors":
        save_safetensors(target, model, variables, about)
    elif form == "torch":
        save_torch(target, model, variables)
        if getattr(model.module, "mean", ()):
            print("a state_dict holds no normalisation: in PyTorch, mean and std stand before the network or in it")
    elif form == "onnx":
        write_onnx(target, logits_fn, about.image_shape, nchw=nchw)
    else:
        write_exported(target, logits_fn, about.image_shape)
    print(f"wrote {target}")


def _write_run(target: Path, loaded: Loaded, about: About, config: Config) -> None:
    """A run of no epochs: the config with this network, and its weights as the best and the last checkpoint."""
    with config.unlocked():
        config.model.name = about.model
        config.model.mean = tuple(getattr(loaded.model.module, "mean", ()))
        config.model.std = tuple(getattr(loaded.model.module, "std", ()))
        config.model.options = ConfigDict(dict(about.options))
    if found := problems(config, trains=False):
        raise InputError("\n".join(found))
    # Beside it first: a run without its weights would be one that was stopped.
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    run_folder.open_folder(partial, config, overwrite=False)
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(step=zero, epoch=zero, **loaded.variables._asdict(), opt_state={}, objective_state={})
    info = {"epoch": 0, "method": config.method, "scores": {}, "source": about.source}
    checkpoints = Checkpoints(partial / run_folder.CHECKPOINTS)
    checkpoints.save_async(state, info, best=True)
    checkpoints.wait()
    partial.rename(target)


def entry() -> None:
    """Console entry point."""
    sys.exit(errors.run(main))


if __name__ == "__main__":
    entry()
