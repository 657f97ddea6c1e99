"""Catastrophic overfitting (Wong et al., 2020): one-step training that ends robust to its own attack alone."""

import json

import pytest

import piat_jax

SMALL = {
    "dataset.train_examples": 256,
    "dataset.test_examples": 200,
    "model.options.width": 8,
    "attack.start": "none",
    "attack.step_size": 0.3,
    "evaluation.attacks": ("clean", "pgd10"),
    "evaluation.select": "pgd10",
    "evaluation.every_epochs": 20,
    "checkpoint.every_epochs": 20,
    "log.tensorboard": False,
}


def trained(folder, **changed):
    fields = {name: value for name, value in (SMALL | changed).items() if value is not None}
    piat_jax.train("embedded_fast:pgd_at", workdir=folder, epochs=20, overrides=fields)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {name: last[name] for name in ("train_adversarial_accuracy", "test_clean", "test_pgd10")}


@pytest.fixture(scope="module")
def fgsm(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "fgsm")


def test_fgsm_is_robust_to_its_own_step_and_to_nothing_else(fgsm):
    assert fgsm["train_adversarial_accuracy"] > 0.45
    assert fgsm["test_clean"] > 0.4
    assert fgsm["test_pgd10"] < 0.06


def test_n_fgsm_does_not_collapse(fgsm, tmp_path):
    n_fgsm = trained(tmp_path / "run", **{"attack.name": "n_fgsm", "attack.start": None, "attack.step_size": None})
    assert n_fgsm["test_clean"] > 0.4
    assert n_fgsm["test_pgd10"] > 0.12 + fgsm["test_pgd10"]
