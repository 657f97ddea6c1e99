"""A run that version 0.1.0 wrote (commit d8eb941) is resumed, evaluated, reported and loaded as if it were of today."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import piat_jax
from piat_jax.cli import errors, evaluate, report, train
from piat_jax.data import load
from piat_jax.experiment import Run

ARCHIVE = Path(__file__).with_name("golden") / "run_d8eb941.tar.gz"
# What that version went on with, on two cores: the third epoch.
THIRD = {
    "step": 6,
    "learning_rate": 0.2,
    "train_loss": 2.3070647716522217,
    "train_divergence_from_average": 0.039942434057593346,
    "averaged_states": 6,
}


@pytest.fixture
def run(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return Run(tmp_path / "run")


def test_it_is_resumed_where_it_was(run, capsys):
    assert errors.run(train.main, ["--resume", str(run.folder), "--config.epochs=3"]) == 0
    printed = capsys.readouterr()
    assert "from epoch 3" in printed.out
    third = run.metrics()[-1]
    for name, value in THIRD.items():
        assert third[name] == pytest.approx(value, rel=1e-3), name  # up to rounding
    # The knots of its learning rate stay where they were.
    assert run.experiment().optimizer.lr_epochs == (0.0, 50.0, 75.0, 100.0)


def test_the_command_it_was_begun_with_resumes_it_too(run, capsys):
    config = json.loads((run.folder / "run.json").read_text())["command"]
    fields = [argument for argument in config if argument.startswith(("--config", "--noconfig"))]
    assert errors.run(train.main, [*fields, f"--workdir={run.folder}", "--resume"]) == 0
    assert "from epoch 3" in capsys.readouterr().out


def test_it_is_evaluated_reported_and_loaded(run, tmp_path, capsys):
    known = run.evaluation()["checkpoints"]
    assert errors.run(evaluate.main, [str(run.folder), "--attacks=clean,pgd2", "--overwrite"]) == 0
    now = run.evaluation()["checkpoints"]
    assert all(set(point.pop("by_class")) == {"clean", "pgd2"} for point in now.values())  # which came later
    assert now == known
    assert errors.run(report.main, [str(run.folder), f"--out={tmp_path / 'report'}"]) == 0
    assert "PIAT+TRADES+ReBAT+EMA" in capsys.readouterr().out
    model = piat_jax.load(run.folder, checkpoint="final")
    test = load("embedded", test_examples=16).test
    found = np.mean(model.predict(test.images) == test.labels)
    assert found == known["final"]["accuracy"]["clean"]
