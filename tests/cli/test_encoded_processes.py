import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

import piat_jax
from piat_jax.cli import errors, train
from piat_jax.experiment import Run
from tests.cli.test_distributed import free_port
from tests.cli.two_encoded import TRAIN
from tests.data.encoded_sets import write_set

SCRIPT = Path(__file__).with_name("two_encoded.py")


def test_two_processes_and_then_one_train_as_one(tmp_path):
    """Two begin, are stopped in the middle of an epoch, and one alone goes on from there."""
    name = f"--config.dataset.name={write_set(tmp_path / 'set', 'tar', train=40, test=6)}"
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(free_port())]
    options = {"env": {**os.environ, "PYTHONPATH": "."}, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, number], **options) for number in "01"]
    try:
        assert errors.run(train.main, [*TRAIN, name, f"--workdir={tmp_path / 'alone'}"]) == 0
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert "saved in epoch 2 after 2 of 5 steps" in said[0], said
    assert errors.run(train.main, [*TRAIN, name, f"--workdir={tmp_path / 'run'}", "--resume"]) == 0
    alone, together = (piat_jax.load(tmp_path / run, checkpoint="final").variables for run in ("alone", "run"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), alone, together)
    scores = [[row["test_clean"] for row in Run(tmp_path / run).metrics()] for run in ("alone", "run")]
    assert scores[0] == scores[1]
