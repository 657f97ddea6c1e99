"""Which runs are there already, and which are others."""

import signal
import subprocess
import sys

import jax.numpy as jnp
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.types import TrainState
from piat_jax.experiment.config import load as read_config
from piat_jax.experiment.evaluation import settings_of
from piat_jax.experiment.sweep import Job, _commands, check, is_trained

OVERRIDES = {"epochs": "2", "seed": "3"}
CONFIG = "configs/embedded.py:pgd_at"


def leave(job, **info):
    """What piat-train leaves after two epochs."""
    config = read_config(job.config, dict(job.overrides))
    job.run.open(config)
    zero = jnp.int32(0)
    state = TrainState(
        step=zero, epoch=zero, params={"w": jnp.zeros(2)}, model_state={}, opt_state=(), objective_state=()
    )
    job.run.checkpoints.save("last", state, {"epoch": 2, **info})
    return config


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path / "run", CONFIG, OVERRIDES, ("clean", "aa"), 5)


def test_a_run_is_trained_after_the_last_look_of_its_last_epoch(job):
    assert not is_trained(job)
    leave(job, position={"epoch": 2, "steps": 16})
    assert not is_trained(job)
    assert [command[0] for command in _commands(job, overwrite=False)] == [
        "piat_jax.cli.train",
        "piat_jax.cli.evaluate",
    ]
    job.run.checkpoints.discard("last")
    leave(job)
    assert is_trained(job)
    (evaluate,) = _commands(job, overwrite=False)
    assert evaluate[0] == "piat_jax.cli.evaluate"


@pytest.mark.parametrize(
    "field", ["epochs", "evaluation.restarts", "evaluation.eps", "evaluation.every_epochs", "batch_size"]
)
def test_a_run_of_other_settings_is_not_taken_for_it(job, field):
    leave(job)
    value = {"evaluation.eps": "0.2", "batch_size": "16"}.get(field, "7")
    other = job._replace(overrides={**OVERRIDES, field: value})
    with pytest.raises(InputError, match=f"holds another run .*{field}"):
        is_trained(other)
    assert is_trained(job._replace(overrides={**OVERRIDES, "log.steps_per_chunk": "7", "checkpoint.every_epochs": "1"}))


def test_what_could_not_be_evaluated_is_not_trained(job):
    few = job._replace(overrides={**OVERRIDES, "dataset.test_examples": "4"})
    with pytest.raises(InputError, match=r"dataset\.test_examples=4 is less than aa_examples=5 in run"):
        check([few])
    check([few._replace(attacks=("clean",)), few._replace(aa_examples=4), job])


def test_what_was_evaluated_is_left_alone(job):
    config = leave(job)
    accuracy = {"clean": 0.5, "aa": 0.25}
    points = {name: {"epoch": epoch, "accuracy": accuracy} for name, epoch in (("best", 1), ("final", 2))}
    content = {"num_examples": 10, "aa_examples": 5, "settings": settings_of(config), "checkpoints": points}
    job.run.write_evaluation(content)
    assert _commands(job, overwrite=False) == []
    job.run.write_evaluation(content | {"aa_examples": 6})
    assert len(_commands(job, overwrite=False)) == 1


CHILD = """
import pathlib, signal, sys, time

def saved(number, frame):
    pathlib.Path(sys.argv[1]).write_text(str(number))
    sys.exit(75)

for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, saved)
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import signal, sys
from pathlib import Path
from piat_jax.cli import errors
from piat_jax.experiment import sweep

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
sweep._commands = lambda job, **options: [["child", str(job.folder)], ["child", str(job.folder) + "-next"]]
jobs = [sweep.Job(Path(name), "embedded:pgd_at", {}) for name in ("a", "b", "c")]
sys.exit(errors.run(lambda arguments: sweep.run_jobs(jobs, at_once=2)))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_running_commands_and_starts_no_other(tmp_path, number):
    (tmp_path / "child.py").write_text(CHILD)
    ran = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with ran:
        assert sorted(ran.stdout.readline() for _ in range(2)) == ["a  ready\n", "b  ready\n"]
        ran.send_signal(number)
        told = ran.communicate()[1]
    assert ran.returncode == 75, told
    assert "stopped; the same command continues" in told
    assert {path.name: path.read_text() for path in tmp_path.glob("[a-c]*") if path.suffix == ""} == {
        "a": str(int(number)),
        "b": str(int(number)),
    }
