"""A published network is evaluated on the crop that it was published for, which is said."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from piat_jax import models
from piat_jax.cli import convert, errors, train
from piat_jax.core.checks import InputError
from piat_jax.experiment import Run, config
from piat_jax.experiment.loading import load
from piat_jax.interop import state_dict
from piat_jax.interop.published import PUBLISHED, published
from piat_jax.interop.tensors import write_safetensors
from tests.data.encoded_sets import write_set

ENCODED = {"dataset.name": "a/folder", "dataset.image_size": "224", "dataset.crop_padding": "0"}


def crop(name, **fields):
    """The three fields, and what is said."""
    told = []
    changes = {**ENCODED, "model.name": name, **{f"dataset.{each}": value for each, value in fields.items()}}
    dataset = config.load("embedded:pgd_at", changes, checked=False, note=told.append).dataset
    return (dataset.resize, dataset.resizing, dataset.interpolation), told


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:resnet50.a1_in1k", (235, "short", "bicubic")),
        ("timm:resnet50.tv_in1k", (256, "short", "bilinear")),
        ("torchvision:resnet50", (232, "short", "bilinear")),
        ("robustbench:Singh2023Revisiting_ConvNeXt-T-ConvStem", (256, "short", "bicubic")),
        ("robustbench:Mo2022When_Swin-B", (224, "both", "bilinear")),
    ],
)
def test_the_crop_is_the_row_s(name, expected):
    found, told = crop(name)
    assert found == expected
    assert told == [f"{name} was published for images of {published(name)}, and is evaluated on these"]


def test_nothing_is_resized_where_nothing_was():
    found, _ = crop("robustbench:Wong2020Fast", image_size="288")
    assert found == (0, "none", "bilinear")


def test_what_is_set_stays_and_is_said():
    name = "timm:resnet50.a1_in1k"
    row = f"{name} was published for images of {published(name)}"
    for given, stays in (("bilinear", "; dataset.interpolation=bilinear of the config stays"), ("bicubic", "")):
        found, told = crop(name, interpolation=given)
        assert found == (235, "short", given)
        assert told == [row + (stays or ", and is evaluated on these")]
    assert crop(name, resize="300") == ((300, "short", "bicubic"), [f"{row}; dataset.resize=300 of the config stays"])
    # What is resized and to what belong together.
    row = f"robustbench:Mo2022When_Swin-B was published for images of {published('robustbench:Mo2022When_Swin-B')}"
    said = f"{row}; dataset.resize=300, dataset.resizing=short of the config stays"
    assert crop("robustbench:Mo2022When_Swin-B", resize="300") == ((300, "short", "bilinear"), [said])
    found, _ = crop("robustbench:Wong2020Fast", image_size="288", resize="300")
    assert found == (300, "short", "bilinear")
    # So does what a config file sets; there the default is nothing that was set.
    written = config.read("embedded:pgd_at")
    written.model.name, written.dataset.image_size, written.dataset.resize = name, 224, 240
    dataset = config.resolve(written, checked=False).dataset
    assert (dataset.resize, dataset.interpolation) == (240, "bicubic")


def test_images_of_another_size_are_said_and_cropped_as_the_config_says():
    name = "timm:resnet50.a1_in1k"
    found, told = crop(name, image_size="160")
    assert found == (0, "short", "bilinear")
    assert told == [
        f"{name} was published for images of {published(name)}; with dataset.image_size=160 the crop is the config's"
    ]


def test_images_of_one_size_have_no_crop():
    assert crop("timm:resnet50.a1_in1k", image_size="0") == ((0, "short", "bilinear"), [])
    with pytest.raises(InputError, match=r"config.dataset.image_size='x' is not a whole number"):
        crop("timm:resnet50.a1_in1k", image_size="x")
    # Nor is anything said of a network that nobody published.
    assert crop("resnet18") == ((0, "short", "bilinear"), [])


def test_the_commands_say_it_and_a_run_keeps_it(tmp_path, monkeypatch, capsys):
    name, options = "robustbench:Mo2022When_Swin-B", {"widths": (4, 6), "depths": (1, 1)}
    net = models.create("convnext", num_classes=3, **options)
    row = dataclasses.replace(published(name), model="convnext", options=options, num_classes=3, size=16, resize=20)
    monkeypatch.setitem(PUBLISHED, name, row)
    variables = net.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    write_safetensors(tmp_path / "w.safetensors", state_dict(net, variables))
    folder = write_set(tmp_path / "set", "folders", train=6, test=3)
    fields = [f"--config.dataset.name={folder}", "--config.dataset.image_size=16", "--config.dataset.crop_padding=0"]
    said = f"note: {name} was published for images of {row}, and is evaluated on these"

    assert errors.run(train.main, ["--config=embedded:pgd_at", f"--config.model.name={name}", *fields, "--show"]) == 0
    out, err = capsys.readouterr()
    assert said in err
    assert (json.loads(out)["dataset"]["resize"], json.loads(out)["dataset"]["resizing"]) == (20, "both")

    arguments = [
        str(tmp_path / "w.safetensors"),
        str(tmp_path / "run"),
        f"--model={name}",
        "--config=embedded:pgd_at",
        *fields,
    ]
    assert errors.run(convert.main, [*arguments, "--quiet"]) == 0
    assert said in capsys.readouterr().err
    kept = Run(tmp_path / "run").experiment()
    assert (kept.model.name, kept.dataset.resize, kept.dataset.resizing) == ("convnext", 20, "both")

    # From Python: of a config by name, whose images are encoded.
    (tmp_path / "mine.py").write_text(
        "from piat_jax.configs.embedded import get_config as embedded\n"
        "def get_config(method='pgd_at'):\n"
        "    config = embedded(method)\n"
        f"    config.dataset.name, config.dataset.image_size = {str(folder)!r}, 16\n"
        "    return config\n"
    )
    load(tmp_path / "w.safetensors", model=name).to_run(tmp_path / "other", str(tmp_path / "mine.py"))
    kept = Run(tmp_path / "other").experiment()
    assert (kept.dataset.resize, kept.dataset.resizing) == (20, "both")
