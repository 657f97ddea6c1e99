"""piat-plan: what it prints and writes, and how it refuses."""

import dataclasses
import json

import jax
import pytest

from piat_jax.cli import errors, plan
from piat_jax.plan import targets

SMALL = [
    "epochs=1",
    "batch_size=8",
    "attack.steps=1",
    "dataset.train_examples=16",
    "dataset.test_examples=8",
    "model.options.width=2",
    "model.options.stage_sizes=1,",
]
FIELDS = [f"--config.{field}" for field in SMALL]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The command sets these for its own process."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture
def here(monkeypatch):
    """This machine's CPU in place of an H100, for which XLA's compiler may not be installed."""
    find = targets.find_target

    def found(text, devices=0):
        target, grid = find(text, devices)
        return dataclasses.replace(target, platform="cpu"), grid

    monkeypatch.setattr(targets, "find_target", found)
    monkeypatch.setattr(targets, "devices_of", lambda target, grid, devices: jax.devices()[: devices or 1])


def test_a_plan_is_printed_and_written(here, capsys, tmp_path):
    flags = ["--config=embedded:nmse", "--target=h100", "--price=2.5", "--what=train,evaluate", "--kernels=2"]
    files = [f"--json={tmp_path / 'plan.json'}", f"--hlo={tmp_path / 'deep' / 'hlo'}"]
    assert errors.run(plan.main, [*flags, *files, "--config.evaluation.attacks=clean,pgd1",
                                  "--config.evaluation.select=pgd1", "--config.evaluation.final_attacks=clean",
                                  *FIELDS]) == 0  # fmt: skip
    printed = capsys.readouterr()
    assert "compiling train for 1 x NVIDIA H100 SXM 80 GB" in printed.err
    for text in ("nmse: small_resnet", "evaluate pgd1", "at least us", "dollars", "is a lower bound, not a prediction"):
        assert text in printed.out
    written = json.loads((tmp_path / "plan.json").read_text())
    assert [each["name"] for each in written["programs"]] == ["train", "evaluate clean", "evaluate pgd1"]
    assert sorted(path.name for path in (tmp_path / "deep" / "hlo").iterdir()) == [
        "evaluate_clean.hlo",
        "evaluate_pgd1.hlo",
        "train.hlo",
    ]


def test_other_batches(here, capsys):
    assert errors.run(plan.main, ["--config=embedded:nmse", "--target=h100", "--batches=4,16", *FIELDS]) == 0
    assert "largest that fits, of those compiled: 16" in capsys.readouterr().out


GOOD = {"config": "embedded:nmse", "target": "h100"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"config": ""}, "--config is missing"),
        ({"target": ""}, "--target is missing"),
        ({"target": "h101"}, "target='h101' is unknown; there are a100, a100-40, h100, h200, b200, v5e, v5p, v6e"),
        ({"target": "v5e:3"}, "target='v5e:3': give 2 numbers, such as v5e:4x4"),
        ({"what": "training"}, "what='training' is unknown; did you mean 'train'?"),
        ({"what": ""}, "--what is empty"),
        ({"devices": "-1"}, "devices=-1 must be at least 0"),
        ({"kernels": "-1"}, "kernels=-1 must be at least 0"),
        ({"batches": "64,big"}, "batches='big' must be whole numbers from 1 on"),
        ({"batches": "0"}, "batches='0' must be whole numbers from 1 on"),
        ({"price": "-1"}, "price=-1.0 must be at least 0"),
        ({"robust": "1.5"}, "robust=1.5 must be in [0, 1]"),
        ({"config": "embeded"}, "did you mean"),
        ({"config.attack.steps": "0"}, "steps=0 must be at least 1"),
    ],
)
def test_wrong_use_is_one_sentence(flags, said, capsys):
    given = [f"--{name}={value}" for name, value in {**GOOD, **flags}.items()]
    assert errors.run(plan.main, given) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert len(printed.err.splitlines()) == 1


def test_without_the_compiler_the_packages_are_named(capsys, monkeypatch):
    monkeypatch.setattr(targets, "_is_installed", lambda module: False)
    assert errors.run(plan.main, ["--config=embedded:nmse", "--target=v5e"]) == 2
    assert "pip install 'piat_jax[plan-tpu]'" in capsys.readouterr().err


def test_folders_and_files_that_cannot_be_written(here, capsys, tmp_path):
    (tmp_path / "file").touch()
    flags = ["--config=embedded:nmse", "--target=h100", *FIELDS]
    assert errors.run(plan.main, [*flags, f"--hlo={tmp_path / 'file' / 'x'}"]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert errors.run(plan.main, [*flags, f"--json={tmp_path / 'file' / 'x.json'}"]) == 2
    printed = capsys.readouterr()
    assert "cannot be written" in printed.err
    assert "compiling" not in printed.err  # it is found out before minutes are spent
