"""RobustBench's model_info.json."""

import json
import shutil
import types

import numpy as np
import pytest

from piat_jax.attacks.ensemble import ensemble
from piat_jax.cli import errors, evaluate, train
from piat_jax.data import KNOWN, Split
from piat_jax.evaluation import AutoAttack, Robustness
from piat_jax.experiment import config
from piat_jax.experiment.model_info import is_for_robustbench, is_whole, model_info
from tests.cli.test_train_evaluate import TINY

# The order of the fields in RobustBench's own files.
FIELDS = [
    *("link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture", "eps"),
    *("clean_acc", "reported", "autoattack_acc", "unreliable"),
]


def found(**settings):
    settings = {"version": "standard", "norm": "linf", "eps": 8 / 255} | settings
    return types.SimpleNamespace(clean_accuracy=0.92441, accuracy=0.6731, findings=(), settings=settings)


def test_what_is_known_is_filled_in():
    experiment = config.load("cifar10_resnet18:nmse+piat")
    info = model_info(experiment, "cifar10", found())
    assert list(info) == FIELDS
    assert info == {
        "link": "",
        "name": "",
        "authors": "",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "",
        "architecture": "ResNet-18",
        "eps": "8/255",
        "clean_acc": "92.44",
        "reported": "",
        "autoattack_acc": "67.31",
        "unreliable": False,
    }
    wide = config.load("cifar100_wrn32_10:pgd_at").with_fields({"dataset.extra": "x.npz", "model.weights": "w.pt"})
    result = found(norm="l2", eps=0.5)
    result.findings = ("a finding",)
    info = model_info(wide, "cifar100", result)
    assert [*info] == [*FIELDS[:-1], "footnote", FIELDS[-1]]
    assert (info["architecture"], info["eps"], info["additional_data"]) == ("WideResNet-32-10", "0.5", "")
    assert info["footnote"] == (
        "It uses generated images in training, 70% of each batch. It starts from pretrained weights."
    )
    assert info["unreliable"] is True


def test_which_results_count():
    assert is_for_robustbench(found(), whole=True)
    assert is_for_robustbench(found(norm="l2"), whole=True)
    assert not is_for_robustbench(found(), whole=False)
    for other in ({"version": "plus"}, {"norm": "l1"}, {"attack_precision": "bfloat16"}, {"attack_network": "another"}):
        assert not is_for_robustbench(found(**other), whole=True)
    some = Split(np.zeros((KNOWN["cifar10"].test, 1, 1, 1), np.uint8), np.zeros(KNOWN["cifar10"].test, np.int32))
    assert is_whole("cifar10", some, limited=True)  # the first ten thousand are all
    assert not is_whole("cifar10", Split(some.images[1:], some.labels[1:]), limited=False)
    assert is_whole("mine", some, limited=False)
    assert not is_whole("mine", some, limited=True)
    for count, whole in ((5000, True), (4999, False), (10000, False)):  # of a list of ImageNet's
        assert is_whole("in1k", Split(some.images[:count], some.labels[:count]), limited=False, listed=True) == whole


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert errors.run(train.main, ["--config=embedded:pgd_at", f"--workdir={folder}", *TINY, "--config.epochs=1"]) == 0
    return folder


def test_it_is_written_where_the_whole_test_set_was_attacked(run, tmp_path, capsys, monkeypatch):
    """Neither on the first n test images nor where AutoAttack had fewer than the others."""
    quick = {"steps": 1, "queries": 1, "targets": 1, "restarts": 1}
    monkeypatch.setattr(AutoAttack, "members", lambda self: ensemble(norm=self.norm, **quick))
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    path = folder / "robustness" / "final-aa" / "model_info.json"
    arguments = [f"--workdir={folder}", "--checkpoint=final", "--attacks=aa"]
    assert errors.run(evaluate.main, arguments) == 0  # on the 20 of TINY
    assert not path.exists()
    whole = [*arguments, "--config.dataset.test_examples=0", "--overwrite", "--config.evaluation.batch_size=500"]
    capsys.readouterr()
    assert errors.run(evaluate.main, [*whole, "--aa_examples=10"]) == 0
    assert not path.exists()
    assert errors.run(evaluate.main, whole) == 0
    info, result = json.loads(path.read_text()), Robustness.load(path.parent)
    assert len(result.labels) == 1000
    assert (info["dataset"], info["eps"]) == ("embedded", "0.1")
    assert info["autoattack_acc"] == f"{100 * result.accuracy:.2f}"
    assert f"note: {path} is for RobustBench's model_info/embedded/Linf/NAME.json" in capsys.readouterr().err
