"""Convert weights between formats.

    piat-convert weights.pt runs/imported --model=wrn_28_10 --num_classes=10 --config=cifar10_wrn32_10
    piat-convert model.safetensors runs/imported --model=timm:convnext_tiny.fb_in1k --config=CONFIG
    piat-convert runs/x exported --checkpoint=final --to=safetensors

SOURCE is a file of weights (.safetensors, .pt, .pth, .bin, .npz), a folder with model.safetensors, the folder of a run,
or hf:user/name, a repository of the Hugging Face hub; only the last is downloaded. --to is the form of TARGET: a run
for piat-evaluate ("run"), a folder with safetensors, config.json and a model card ("safetensors"), a state_dict for
PyTorch ("torch"), "onnx", or an exported JAX function ("jax"). Without --to, TARGET's ending decides (.pt, .pth, .onnx,
.jax); without an ending, a run becomes "safetensors" and any other source a "run".

--model is the network's name in configs, or that of published weights: timm:NAME, torchvision:NAME or robustbench:NAME.
A published name determines image size, classes, mean and std if the file does not. A file with RobustBench's name, such
as Carmon2019Unlabeled.pt, needs no --model.
"""

import ast
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from absl import flags

from piat_jax.cli import arguments, errors
from piat_jax.core.checks import InputError, check_choice
from piat_jax.core.files import command, expanded

if TYPE_CHECKING:
    from piat_jax.experiment.classifier import Classifier

FORMS = ("run", "safetensors", "torch", "onnx", "jax")
# Endings of weight files that are not among the forms that can be written.
OTHERS = (".safetensors", ".st", ".bin", ".ckpt", ".npz", ".h5", ".msgpack")
ENDINGS = {".pt": "torch", ".pth": "torch", ".onnx": "onnx", ".jax": "jax"}


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    overrides, rest = arguments.split_overrides(argv)
    values = _flags()
    positional = arguments.parse(values, rest, __doc__, positional=True)
    if len(positional) != 2:
        raise InputError(f"{len(positional)} positional arguments; give two: piat-convert SOURCE TARGET")
    source, target = (expanded(text) for text in positional)
    is_there = positional[0].startswith("hf:") or source.exists()
    is_run = (source / "checkpoints").is_dir()
    form = values.to or ENDINGS.get(target.suffix) or ("safetensors" if is_run else "run")
    check_choice("to", form, FORMS)
    if target.suffix in OTHERS:
        raise InputError(
            f"{target}: files with this ending cannot be written; safetensors and runs are folders: give a name "
            f"without ending, or with one of {', '.join(ENDINGS)}"
        )
    if target.exists():
        raise InputError(f"{target} already exists; give another name")
    if form != "run" and (overrides or (values.config and not is_run)):
        raise InputError(f"--config says how a run is evaluated; it does not go with --to={form}")
    if form == "run" and is_there and not values.config:
        raise InputError(
            "--config is missing: a run needs a config that says what to evaluate on; "
            "give one such as --config=cifar10_resnet18"
        )
    options = {
        "num_classes": values.num_classes,
        "options": dict(_option(text) for text in values.option),
        "mean": _numbers("mean", values.mean),
        "std": _numbers("std", values.std),
        "image_shape": _shape(values.image_shape),
    }

    from piat_jax.experiment import config
    from piat_jax.experiment.console import note
    from piat_jax.experiment.loading import load
    from piat_jax.interop.published import is_published, published
    from piat_jax.interop.tensors import import_torch

    if is_run and values.config:
        config.read(values.config)  # it may define the run's method
    if form == "torch":
        import_torch(f"writing {target.name}")
    if is_published(values.model):  # its images are evaluated on
        overrides = {"model.name": values.model, **overrides}
    is_new = form == "run" and is_there
    experiment = config.load(values.config, overrides, trains=False, note=note) if is_new else None
    loaded = load(
        positional[0],
        checkpoint=values.checkpoint,
        model=values.model,
        adapt=values.adapt,
        unsafe_pickle=values.unsafe_pickle,
        **options,
    )
    if loaded.origin.why:
        print(f"{loaded.origin.why}; --model names another")
        if experiment:  # its images are evaluated on
            overrides = {"model.name": loaded.origin.published, **overrides}
            experiment = config.load(values.config, overrides, trains=False, note=note)
    _print(loaded, quiet=values.quiet)
    if is_published(values.model):
        print(f"published for images of {published(values.model)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    if experiment:
        loaded.to_run(target, experiment)
        print(f"wrote {target}; evaluate with: {command('piat-evaluate', workdir=target)}")
        return
    if form == "onnx":
        loaded.to_onnx(target, nchw=values.nchw)
    else:
        {"safetensors": loaded.to_safetensors, "torch": loaded.to_torch, "jax": loaded.to_jax}[form](target)
    if form == "torch" and getattr(loaded.model.module, "mean", ()):
        print("a state_dict holds no normalisation: in PyTorch, apply mean and std before the network or in it")
    print(f"wrote {target}")


def _flags() -> Any:
    """The command's flags; their values have no static type."""
    values = arguments.new_flags()
    flags.DEFINE_string(
        "model",
        "",
        "The network's name in configs, or timm:NAME, torchvision:NAME, robustbench:NAME.",
        flag_values=values,
    )
    flags.DEFINE_integer("num_classes", 0, "Number of classes.", flag_values=values)
    flags.DEFINE_multi_string("option", [], "Option of the network, NAME=VALUE: width=4.", flag_values=values)
    flags.DEFINE_string(
        "mean", "", "Input normalisation, one per channel: 0.49,0.48,0.45; or none.", flag_values=values
    )
    flags.DEFINE_string("std", "", "Standard deviation, in the same form as --mean.", flag_values=values)
    flags.DEFINE_string(
        "image_shape", "", "height,width,channels; 32,32,3 unless the source says otherwise.", flag_values=values
    )
    flags.DEFINE_string("to", "", f"Form of TARGET: {', '.join(FORMS)}.", flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "Of a run: best, final, or final:swa for an average.", flag_values=values)
    about_config = "For --to=run: data and attacks for evaluation; for a run, the file that defines its method."
    flags.DEFINE_string("config", "", about_config, flag_values=values)
    flags.DEFINE_boolean("adapt", False, "Adapt patches, positions and head that do not fit.", flag_values=values)
    flags.DEFINE_boolean("unsafe_pickle", False, "Run any code that a PyTorch file holds.", flag_values=values)
    flags.DEFINE_boolean("nchw", False, "Channels first in the ONNX model's input.", flag_values=values)
    flags.DEFINE_boolean("quiet", False, "Print only the summary.", flag_values=values)
    return values


def _numbers(flag: str, text: str) -> tuple[float, ...] | None:
    if text in ("", "none"):
        return None if not text else ()
    try:
        return tuple(float(Fraction(part.strip())) for part in text.strip("()").split(",") if part.strip())
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"{flag}={text!r} is not a list of numbers; give one per channel: 0.49,0.48,0.45") from error


def _option(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise InputError(f"option={text!r} is not NAME=VALUE with a number or a tuple: width=4") from error


def _shape(text: str) -> tuple[int, ...] | None:
    if not text:
        return None
    shape = tuple(int(part) for part in text.split(",") if part.strip().isdigit())
    if len(shape) != 3:
        raise InputError(f"image_shape={text!r} is not height,width,channels, such as 32,32,3")
    return shape


def _print(loaded: "Classifier", *, quiet: bool) -> None:
    """Print the mapping of tensors to parameters, and the normalisation."""
    report = loaded.origin.report
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
        print("normalisation: none, images are used in [0, 1]; --mean and --std give one")


def entry() -> None:
    """The console entry point."""
    errors.leave(errors.run(main))


if __name__ == "__main__":
    entry()
