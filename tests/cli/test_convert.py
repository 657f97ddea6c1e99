"""piat-convert as a user runs it: weights become a run, a run becomes weights, and everything done wrong."""

import json
import shlex
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.cli import convert, errors, evaluate
from piat_jax.core.checks import InputError
from piat_jax.core.types import Variables
from piat_jax.experiment import Run, loading
from piat_jax.interop import load_weights, read_exported, state_dict
from piat_jax.interop.tensors import write_safetensors
from piat_jax.models import create
from tests.models.torch_reference import filled

OPTIONS = {"width": 2, "stage_sizes": (1,)}
MODEL = create("small_resnet", num_classes=10, **OPTIONS)
SHAPE = (28, 28, 1)
NETWORK = ["--model=small_resnet", "--num_classes=10", "--option=width=2", "--option=stage_sizes=(1,)"]
CONFIG = ["--config=configs/embedded.py", "--config.evaluation.final_attacks=clean,fgsm"]


def command(*arguments):
    return errors.run(convert.main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert")
    variables = Variables(*filled(MODEL, jnp.zeros((1, *SHAPE))))
    write_safetensors(folder / "net.safetensors", state_dict(MODEL, variables))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    assert (
        command(
            folder / "net.safetensors",
            folder / "run",
            *NETWORK,
            *CONFIG,
            "--image_shape=28,28,1",
            "--mean=1/4",
            "--std=0.5",
        )
        == 0
    )
    return folder / "run"


def test_weights_become_a_run_that_is_evaluated(run, capsys):
    assert errors.run(evaluate.main, [f"--workdir={run}", "--num_examples=20", "--checkpoint=best"]) == 0
    assert "best (epoch 0)  fgsm" in capsys.readouterr().out
    config = json.loads((run / "config.json").read_text())
    assert config["model"] == {
        "name": "small_resnet",
        "dtype": "float32",
        "mean": [0.25],
        "std": [0.5],
        "bn_momentum": 0.1,
        "bn_groups": 1,
        "weights": "",
        "options": {"width": 2, "stage_sizes": [1]},
    }
    # The weights are there once, under both names.
    best, last = (
        {p.stat().st_ino for p in (run / "checkpoints" / name).rglob("*") if p.is_file()} for name in ("best", "last")
    )
    assert best == last


def test_a_run_becomes_safetensors_and_a_run_again(run, tmp_path, capsys):
    assert command(run, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "params/" not in printed  # a run's names are ours
    assert "normalisation (from the run): mean (0.25,), std (0.5,)" in printed
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| Made from | net.safetensors |" in card
    assert "pgd_at" not in card
    # The folder says which network it is of; back again, it is the same run.
    assert command(tmp_path / "out", tmp_path / "again", "--quiet", *CONFIG) == 0
    printed = capsys.readouterr().out
    assert "params/" not in printed
    assert "tensors mapped" in printed
    first, second = (load_weights(folder, MODEL, SHAPE) for folder in (run, tmp_path / "again"))
    jax.tree.map(np.testing.assert_array_equal, tuple(second.variables), tuple(first.variables))
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model"]["mean"] == [0.25]


def test_a_function_of_jax(run, tmp_path):
    pytest.importorskip("flatbuffers")
    assert command(run, tmp_path / "net.jax", "--quiet") == 0
    assert read_exported(tmp_path / "net.jax")(jnp.zeros((3, *SHAPE))).shape == (3, 10)


def test_the_size_of_the_images_is_known_or_asked_for(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    for name, size in (("tiny_imagenet", 64), ("embedded", 28), ("cifar10", 32)):
        assert loading._known_shape(name, 3) == (size, size, 3)
    config["dataset"]["name"] = "./own.npz"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    (tmp_path / "run" / "data.json").unlink(missing_ok=True)
    assert command(tmp_path / "run", tmp_path / "out") == 2
    assert "image_shape is missing: the run does not store it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert command(tmp_path / "run", tmp_path / "out", "--image_shape=28,28,1", "--quiet") == 0


def test_the_patches_of_a_vision_transformer_are_read_off_the_file(tmp_path, capsys):
    options = {"width": 8, "depth": 1, "heads": 2}
    model, shape = create("vit", num_classes=3, patch_size=16, **options), (48, 48, 3)
    variables = model.init(jax.random.key(0), jnp.zeros((1, *shape)))
    write_safetensors(tmp_path / "vit.safetensors", state_dict(model, variables))
    network = ["--model=vit", "--num_classes=3", *(f"--option={name}={value}" for name, value in options.items())]
    assert command(tmp_path / "vit.safetensors", tmp_path / "out", "--to=safetensors", *network) == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["piat_jax"]["options"] == {**options, "patch_size": 16}
    assert written["pretrained_cfg"]["input_size"] == [3, 48, 48]
    # What is asked for counts, and says what is there.
    small = [*network, "--option=patch_size=4", "--image_shape=32,32,3"]
    assert command(tmp_path / "vit.safetensors", tmp_path / "other", "--to=safetensors", *small) == 2
    told = capsys.readouterr().err
    assert "its patches have 16 pixels: give the model patch_size=16 (--option=patch_size=16)" in told
    assert command(tmp_path / "vit.safetensors", tmp_path / "other", "--to=safetensors", *small, "--adapt") == 0


def test_what_is_printed_to_be_run_is_quoted_and_needs_no_attack_of_training(folder, tmp_path, capsys):
    target = tmp_path / "my run"
    arguments = (*NETWORK, *CONFIG, "--image_shape=28,28,1", "--config.evaluation.norm=l1")
    # DDN has no L1; what is evaluated during training is of no interest here.
    assert command(folder / "net.safetensors", target, *arguments, "--config.evaluation.final_attacks=aa") == 0
    printed = capsys.readouterr().out
    assert f"evaluate with: piat-evaluate '--workdir={target}'" in printed
    assert shlex.split(printed.rpartition("evaluate with: ")[2]) == ["piat-evaluate", f"--workdir={target}"]
    config = evaluate.experiment_of(Run(target), None, {})
    assert (config.evaluation.norm, config.evaluation.final_attacks) == ("l1", ("aa",))
    with pytest.raises(InputError, match="norm"):
        evaluate.experiment_of(Run(target), None, {"evaluation.final_attacks": "ddn20"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["net.safetensors"], "1 positional arguments; give two"),
        (["run", "run"], "already exists; give another name"),
        (["run", "x.safetensors"], "files with this ending cannot be written"),
        (["absent.pt", "x", *NETWORK], "is not a file or a folder"),
        (["net.safetensors", "x", *NETWORK], "--config is missing: a run needs a config"),
        (["net.safetensors", "x", "--to=onxx"], "to='onxx' is unknown; did you mean 'onnx'?"),
        (["net.safetensors", "x.jax", "--config.seed=1"], "it does not go with --to=jax"),
        (["net.safetensors", "x.jax"], "model is missing"),
        (["net.safetensors", "x.jax", "--model=small_resnet"], "num_classes is missing"),
        (["net.safetensors", "x.jax", *NETWORK, "--mean=a"], "mean='a' is not a list of numbers"),
        (["net.safetensors", "x.jax", *NETWORK, "--option=width"], "option='width' is not NAME=VALUE"),
        (["net.safetensors", "x.jax", *NETWORK, "--image_shape=28"], "is not height,width,channels"),
        (["net.safetensors", "x.jax", *NETWORK], "conv1.weight: (3, 3, 1, 2) in the file, (3, 3, 3, 2) in the model"),
        (["run", "x", "--model=resnet18"], "model='resnet18' does not go with a run"),
        (["run", "x", "--checkpoint=lost"], "checkpoint='lost' is unknown"),
    ],
)
def test_what_is_refused(arguments, message, run, capsys):
    before = sorted(run.parent.iterdir())
    where = [argument if argument.startswith("-") else run.parent / argument for argument in arguments]
    assert command(*where) == 2
    assert message in capsys.readouterr().err
    assert sorted(run.parent.iterdir()) == before
