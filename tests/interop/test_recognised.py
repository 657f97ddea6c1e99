"""Files that are called as RobustBench calls them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import piat_jax
from piat_jax.cli import convert, errors
from piat_jax.core.checks import InputError
from piat_jax.experiment import config
from piat_jax.interop import state_dict
from piat_jax.interop.published import PUBLISHED
from piat_jax.interop.recognised import recognise
from piat_jax.interop.robustbench import CIFAR10, CIFAR100, DEEPMIND100, KINDS
from piat_jax.interop.tensors import write_safetensors
from tests.interop.test_published import assert_same, network

SMALL = ("wide_resnet", {"blocks_per_group": 1, "widen_factor": 1})


def never():
    raise AssertionError("the file was read")


@pytest.mark.parametrize(
    ("path", "model", "dataset", "norm", "eps", "mean"),
    [
        ("Carmon2019Unlabeled.pt", "wrn_28_10", "cifar10", "linf", 8 / 255, ()),
        ("a/b/Wang2020Improving.pth.tar", "wrn_28_10", "cifar10", "linf", 8 / 255, ()),
        ("Rony2019Decoupling.safetensors", "wrn_28_10", "cifar10", "l2", 0.5, (0.491, 0.482, 0.447)),
        ("models/cifar10/Linf/Rice2020Overfitting.pt", "wrn_34_20", "cifar10", "linf", 8 / 255, CIFAR10[0]),
        ("models/cifar10/L2/Rice2020Overfitting.pt", "preact_resnet18", "cifar10", "l2", 0.5, CIFAR10[0]),
        ("cifar100/Rebuffi2021Fixing_R18_ddpm.pt", "dm_preact_resnet18", "cifar100", "linf", 8 / 255, DEEPMIND100[0]),
        ("cifar10/L2/Wang2023Better_WRN-70-16.pt", "dm_wrn_70_16", "cifar10", "l2", 0.5, CIFAR10[0]),
        ("Salman2020Do_R18.pt", "resnet18_imagenet", "imagenet", "linf", 4 / 255, (0.485, 0.456, 0.406)),
        ("imagenet/Linf/Wong2020Fast.pt", "resnet50_imagenet", "imagenet", "linf", 4 / 255, (0.485, 0.456, 0.406)),
        ("cifar10/Linf/Wong2020Fast.pt", "preact_resnet18_v1", "cifar10", "linf", 8 / 255, CIFAR10[0]),
        ("cifar100/Debenedetti2022Light_XCiT-S12.pth", "xcit_s12", "cifar100", "linf", 8 / 255, CIFAR100[0]),
    ],
)  # fmt: skip
def test_a_name_says_network_normalisation_and_threat(path, model, dataset, norm, eps, mean):
    found = recognise(Path(path), never)
    assert (found.row.model, found.row.dataset, found.row.norm, found.row.eps) == (model, dataset, norm, eps)
    assert found.row.mean == mean
    assert PUBLISHED[found.name] == found.row
    assert f": {model} of {dataset}, {found.row.num_classes} classes, " in found.why


@pytest.mark.parametrize(("classes", "model"), [(10, "preact_resnet18_v1"), (1000, "resnet50_imagenet")])
def test_where_a_name_is_of_several_data_sets_the_file_s_classes_decide(classes, model):
    assert recognise(Path("Wong2020Fast.pt"), lambda: classes).row.model == model


def test_where_it_is_of_several_threats_but_one_network_the_threat_is_left_open():
    found = recognise(Path("x/Rade2021Helper_R18_ddpm.pt"), lambda: 10)
    assert (found.row.model, found.row.norm, found.row.eps) == ("dm_preact_resnet18", "", 0.0)
    assert found.why.endswith("trained against linf, eps 8/255 or l2, eps 0.5")


def test_where_it_is_of_several_networks_nothing_is_guessed():
    with pytest.raises(InputError) as told:
        recognise(Path("Rice2020Overfitting.pt"), lambda: 10)
    assert str(told.value) == (
        "Rice2020Overfitting.pt: several published networks have the name Rice2020Overfitting; give "
        "--model=robustbench:cifar10/Linf/Rice2020Overfitting or --model=robustbench:cifar10/L2/Rice2020Overfitting"
    )
    assert recognise(Path("Rice2020Overfitting.pt"), lambda: 100).row.dataset == "cifar100"


@pytest.mark.parametrize("name", ["Carmon2019Unlabelled.pt", "model.pt", "Standard.pt", "resnet50.pth", ".pt", "tar"])
def test_other_names_say_nothing(name):
    assert recognise(Path(name), never) is None


def test_no_name_is_there_twice():
    names = [(kind.dataset, kind.threat, name) for kind in KINDS for name in kind.names.split()]
    assert len(names) == len(set(names)) > 80


def narrow(monkeypatch, name, model, **options):
    """The table with a small network in the place of a published one's."""
    monkeypatch.setitem(PUBLISHED, name, dataclasses.replace(PUBLISHED[name], model=model, options=options))


def test_load_and_convert_take_the_network_by_the_file_s_name(tmp_path, monkeypatch, capsys):
    narrow(monkeypatch, "robustbench:cifar10/Linf/Carmon2019Unlabeled", *SMALL[:1], **SMALL[1])
    model, variables = network(*SMALL, side=32, num_classes=10)
    file = tmp_path / "Carmon2019Unlabeled.safetensors"
    write_safetensors(file, state_dict(model, variables))
    loaded = piat_jax.load(file)
    assert_same(loaded.variables, variables)
    assert (loaded.about.dataset, loaded.about.threat, loaded.about.num_classes) == ("cifar10", "linf, eps 8/255", 10)
    assert loaded.origin.published == "robustbench:cifar10/Linf/Carmon2019Unlabeled"
    assert errors.run(convert.main, [str(file), str(tmp_path / "out"), "--to=safetensors", "--quiet"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(
        "taken for RobustBench's Carmon2019Unlabeled by the name of the file: wide_resnet of cifar10, 10 classes, "
        "images in [0, 1] without normalisation, trained against linf, eps 8/255; --model names another\n"
    )
    fields, loads, load = ["--config=cifar10_resnet18", "--quiet"], [], config.load
    monkeypatch.setattr(
        config, "load", lambda text, given, **options: loads.append(given) or load(text, given, **options)
    )
    assert errors.run(convert.main, [str(file), str(tmp_path / "run"), *fields]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["name"] == "wide_resnet"
    assert loads[-1] == {"model.name": loaded.origin.published}  # which says the crop of encoded images
    # What is given goes before the name.
    other = piat_jax.load(file, model="wide_resnet", num_classes=10, options=SMALL[1])
    assert (other.origin.published, other.origin.why, other.about.dataset) == ("", "", "")


def test_an_l2_network_is_evaluated_under_l2(tmp_path, monkeypatch):
    narrow(monkeypatch, "robustbench:cifar10/L2/Rony2019Decoupling", *SMALL[:1], **SMALL[1])
    model, variables = network(*SMALL, side=32, num_classes=10)
    write_safetensors(tmp_path / "Rony2019Decoupling.safetensors", state_dict(model, variables))
    loaded = piat_jax.load(tmp_path / "Rony2019Decoupling.safetensors")
    fields = loaded.origin.experiment.evaluation
    assert (fields.norm, fields.eps, fields.step_size) == ("l2", 0.5, 0.125)
    assert loaded.model.module.mean == (0.491, 0.482, 0.447)
    images = np.full((1, 32, 32, 3), 128, np.uint8)
    moved = loaded.attack(images, [0], "pgd2") - 128 / 255
    assert 0 < np.linalg.norm(moved) <= 0.5 + 1e-5


def test_a_network_that_normalises_by_itself_gets_the_row_s_numbers(tmp_path, monkeypatch):
    """DeepMind's networks have CIFAR-10's mean unless told otherwise, and those of CIFAR-100 have another."""
    name = "robustbench:cifar100/Linf/Rebuffi2021Fixing_28_10_cutmix_ddpm"
    narrow(monkeypatch, name, "dm_wide_resnet", **SMALL[1])
    model, variables = network("dm_wide_resnet", SMALL[1], side=32, num_classes=100)
    folder = tmp_path / "cifar100" / "Linf"
    folder.mkdir(parents=True)
    file = folder / "Rebuffi2021Fixing_28_10_cutmix_ddpm.safetensors"
    write_safetensors(file, state_dict(model, variables))
    loaded = piat_jax.load(file)
    assert (loaded.model.module.mean, loaded.model.module.std) == DEEPMIND100
    assert loaded.origin.report.normalization == "name"
    assert piat_jax.load(file, mean=(0.5,) * 3, std=(0.5,) * 3).model.module.mean == (0.5, 0.5, 0.5)
    plain = piat_jax.load(file, model="dm_wide_resnet", num_classes=100, options=SMALL[1])
    assert (plain.model.module.mean, plain.origin.report.normalization) == (CIFAR10[0], "model")


def test_a_file_that_is_not_what_its_name_says_is_told_with_why(tmp_path):
    model, variables = network(*SMALL, side=32, num_classes=10)
    file = tmp_path / "Wang2020Improving.safetensors"
    write_safetensors(file, state_dict(model, variables))
    with pytest.raises(InputError) as told:
        piat_jax.load(file)
    assert "it was taken for RobustBench's Wang2020Improving by the name of the file: wrn_28_10 of" in str(told.value)
    assert str(told.value).endswith("; model= (--model) names another")
    file.rename(tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="model is missing: weights do not say which network they are of"):
        piat_jax.load(tmp_path / "weights.safetensors")
