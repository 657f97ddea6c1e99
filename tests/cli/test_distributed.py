import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.checkpoint import Checkpoints
from piat_jax.cli import arguments, distributed, errors, evaluate, train
from piat_jax.core.checks import InputError
from piat_jax.core.sharding import data_mesh
from piat_jax.evaluation.robustness import Robustness
from piat_jax.experiment import Run
from piat_jax.loggers import read_metrics
from tests.cli.two_processes import EVALUATE, TRAIN

SCRIPT = Path(__file__).with_name("two_processes.py")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def weights(folder):
    net = Run(folder).experiment().build_model(10)
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    return Checkpoints(folder / "checkpoints").load_variables("last", like)


def found(folder):
    """Scores of every epoch, accuracies of the evaluation, and the flags of its Square Attack."""
    scores = [[value for name, value in row.items() if name.startswith("test_")] for row in read_metrics(folder)]
    flags = [Robustness.load(folder / "robustness" / f"{name}-square3") for name in ("best", "final")]
    return (
        scores,
        json.loads((folder / "evaluation.json").read_text()),
        [(f.fooled.tolist(), f.queries.tolist()) for f in flags],
    )


def test_two_processes_are_as_one(tmp_path):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = {**os.environ, **cache, "PYTHONPATH": "."}
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(free_port())]
    options = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, number], **options) for number in "01"]
    try:
        alone = tmp_path / "alone"
        assert errors.run(train.main, [*TRAIN, f"--workdir={alone}"]) == 0
        assert errors.run(evaluate.main, [*EVALUATE, f"--workdir={alone}"]) == 0
        # The second is killed, which the first has to notice by itself.
        (out, err), (quiet, other) = (process.communicate(timeout=240) for process in processes)
    finally:
        for process in processes:
            process.kill()
    said = f"{out}\n{err}\n{other}"
    assert "saved in epoch 1 after 5 of 5 steps" in err, said
    assert (err + other).count("all is well") == 2, said
    assert [process.returncode for process in processes] == [1, -signal.SIGKILL], said
    assert "robust accuracy" in out
    assert "robust accuracy" not in quiet
    assert "error: workdir=" in err
    assert "error: the first process has stopped with an error" in other

    together = tmp_path / "run"
    assert found(together) == found(alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), weights(together), weights(alone))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--coordinator=node1"], "coordinator='node1' must be HOST:PORT"),
        (["--coordinator=node1:1234", "--num_processes=2"], "needs --num_processes and --process_id"),
        (["--coordinator=node1:1234", "--num_processes=2", "--process_id=2"], r"process_id=2 must be in \[0, 2\)"),
        (["--process_id=1"], "need --coordinator"),
        (["--distributed"], "finds no job to join"),
    ],
)
def test_who_is_who(given, message, monkeypatch):
    def initialize(*arguments, **options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    values = arguments.new_flags()
    distributed.define_flags(values)
    arguments.parse(values, given, "")
    with pytest.raises(InputError, match=message):
        distributed.start(values)


def test_each_process_gives_as_many_devices():
    class Device:
        def __init__(self, process_index):
            self.process_index = process_index

    devices = [Device(0), Device(0), Device(0), Device(1), Device(1)]
    chosen = data_mesh(8, devices).devices.tolist()
    assert [device.process_index for device in chosen] == [0, 0, 1, 1]
    assert data_mesh(6, devices).size == 2
    with pytest.raises(InputError, match="batch_size=7 cannot be divided among 2 processes"):
        data_mesh(7, devices)
