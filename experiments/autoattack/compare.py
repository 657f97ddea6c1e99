"""Ours against PyTorch: AutoAttack's standard version on one trained network, flags and seconds, in one process.

    python -m experiments.autoattack.compare runs/x --examples=1000 --rounds=2 --out=autoattack

Needs PyTorch. The two take turns, ours first; what ours compiles is counted in its first round and told apart. Writes
result.json and table.md.
"""

import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import markdown
from piat_jax.cli import arguments, errors
from piat_jax.core.checks import InputError, check_at_least
from piat_jax.core.cores import use_one_device_a_core
from piat_jax.core.files import expanded
from piat_jax.core.forward import make_logits_fn
from piat_jax.data import load
from piat_jax.evaluation import AutoAttack, Robustness
from piat_jax.evaluation.blocks import Blocks
from piat_jax.experiment import Run
from piat_jax.experiment.provenance import describe_run
from piat_jax.experiment.run import ON_DISK


def main(argv: Sequence[str]) -> None:
    """The command."""
    use_one_device_a_core()
    values = arguments.new_flags()
    flags.DEFINE_integer("examples", 1000, "The first n test examples.", flag_values=values)
    flags.DEFINE_integer("block_size", 256, "Examples at once, for both.", flag_values=values)
    flags.DEFINE_integer("rounds", 2, "How often each runs.", flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "best or final.", flag_values=values)
    flags.DEFINE_string("out", "", "Folder to write to; by default nothing is written.", flag_values=values)
    folders = arguments.parse(values, argv, __doc__, positional=True)
    if len(folders) != 1:
        raise InputError("give the folder of one run")
    check_at_least("rounds", values.rounds, 1)
    folder = expanded(folders[0])
    run = Run(folder)
    experiment = run.experiment()
    if not experiment.model.name.startswith(("small_resnet", "resnet")):
        raise InputError(
            f"model.name={experiment.model.name!r} has no counterpart in torch_model.py; give a ResNet's run"
        )
    data = load(experiment.dataset.name, data_dir=experiment.dataset.data_dir, test_examples=values.examples)
    images, labels = np.asarray(data.test.images) / np.float32(255), np.asarray(data.test.labels)
    net = experiment.build_model(data.num_classes, dtype="float32")
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *images.shape[1:])))
    variables = run.checkpoints.load_variables(ON_DISK[values.checkpoint], like)
    ours = AutoAttack(eps=experiment.evaluation.eps, norm=experiment.evaluation.norm, block_size=values.block_size)
    module = _module(net, variables, images)
    logits_fn = make_logits_fn(net, variables)

    _same_logits(logits_fn, module, images[: values.block_size])
    rounds: list[dict[str, Any]] = []
    for number in range(values.rounds):
        began = time.perf_counter()
        result = ours.run(logits_fn, images, labels)
        rounds.append({"ours": dict(result.seconds), "ours_total": time.perf_counter() - began})
        print(f"round {number + 1}\n{result}", flush=True)
        began = time.perf_counter()
        theirs = _torch(module, images, labels, ours)
        rounds[-1] |= {"torch": theirs.seconds, "torch_total": time.perf_counter() - began}
        print(f"PyTorch: {theirs.accuracy}, {rounds[-1]['torch_total']:.1f} seconds", flush=True)
        report = _report(result, theirs, rounds, folder, values)
        print(_table(report), flush=True)
        if values.out:
            out = expanded(values.out)
            out.mkdir(parents=True, exist_ok=True)
            (out / "result.json").write_text(json.dumps(report, indent=2) + "\n")
            (out / "table.md").write_text(_table(report))


def _module(net: Any, variables: Any, images: np.ndarray) -> Any:
    from experiments.autoattack.torch_model import ResNet, load

    fields = net.module
    module = ResNet(
        fields.num_classes,
        channels=images.shape[-1],
        stage_sizes=tuple(fields.stage_sizes),
        width=fields.width,
        stem_stride=fields.stem_stride,
        mean=tuple(fields.mean),
        std=tuple(fields.std),
        channels_last=True,
    )
    return load(module, variables).to(_device())


def _device() -> str:
    import torch  # pyright: ignore[reportMissingImports]

    return "cuda" if torch.cuda.is_available() else "cpu"


def _tensor(images: np.ndarray) -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    return torch.tensor(images.transpose(0, 3, 1, 2).copy(), device=_device())


def _torch(module: Any, images: np.ndarray, labels: np.ndarray, ours: AutoAttack) -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    from experiments.autoattack.torch_attacks import autoattack

    return autoattack(
        module,
        _tensor(images),
        torch.tensor(labels.astype(np.int64), device=_device()),
        eps=float(ours.eps),
        norm=ours.norm,
        batch_size=ours.block_size,
    )


def _same_logits(logits_fn: Any, module: Any, images: np.ndarray) -> None:
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        theirs = module(_tensor(images)).cpu().numpy()
    ours = Blocks(logits_fn, len(images), jax.local_devices(), "highest").logits(images)
    np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=1e-4)


def _report(result: Robustness, theirs: Any, rounds: list[dict[str, Any]], folder: Path, values: Any) -> dict[str, Any]:
    import torch  # pyright: ignore[reportMissingImports]

    robust, about = theirs.robust.cpu().numpy(), describe_run()
    return {
        "run": folder.name,
        "examples": len(robust),
        "eps": result.settings["eps"],
        "norm": result.settings["norm"],
        "block_size": values.block_size,
        "agreement": float((robust == result.robust).mean()),
        "ours_accuracy_after": result.accuracy_after,
        "torch_accuracy_after": theirs.accuracy,
        "ours_accuracy": result.accuracy,
        "torch_accuracy": float(robust.mean()),
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "torch": torch.__version__},
        "devices": [device.device_kind for device in jax.local_devices()],
        "machine": about["machine"],
        "commit": about["commit"],
    }


def _table(report: dict[str, Any]) -> str:
    """Markdown: accuracy after each attack and seconds, the last round's, with the first's for compilation."""
    first, last = report["rounds"][0], report["rounds"][-1]
    heads = ("attack", "ours, after", "PyTorch, after", "ours, s (first round)", "ours, s", "PyTorch, s", "ratio")
    rows = []
    for name, accuracy in report["ours_accuracy_after"].items():
        theirs = report["torch_accuracy_after"].get(name)
        seconds = last["torch"].get(name)
        shown = f"{100 * theirs:.2f}%" if theirs is not None else ""
        ratio = (f"{seconds:.1f}", f"{seconds / last['ours'][name]:.2f}") if seconds is not None else ("", "")
        ours = (f"{first['ours'][name]:.1f}", f"{last['ours'][name]:.1f}")
        rows.append([name, f"{100 * accuracy:.2f}%", shown, *ours, *ratio])
    accuracies = (f"{100 * report[side]:.2f}%" for side in ("ours_accuracy", "torch_accuracy"))
    totals = (f"{each:.1f}" for each in (first["ours_total"], last["ours_total"], last["torch_total"]))
    rows.append(["all", *accuracies, *totals, f"{last['torch_total'] / last['ours_total']:.2f}"])
    same = f"Same flag on {100 * report['agreement']:.2f}% of {report['examples']} examples"
    return f"{markdown.table(heads, rows)}\n\n{same}; {report['norm']}, eps {report['eps']:.6g}.\n"


if __name__ == "__main__":
    errors.leave(errors.run(main))
