"""Runs of a method that the user's own config file defines."""

import json
import shlex
import subprocess
import sys

import pytest

import piat_jax
from piat_jax.cli import errors, evaluate, sweep, train
from piat_jax.core.checks import InputError
from piat_jax.experiment.config import read
from piat_jax.objectives import METHODS

MINE = """
from piat_jax import losses
from piat_jax.configs import common
from piat_jax.objectives import AttackedObjective, method
from piat_jax.objectives.base import Terms


@method("squeeze", summary="Cross-entropy.", paper="nobody")
class Squeeze(AttackedObjective):
    def terms(self, outputs, objective_state, context):
        return Terms(losses.cross_entropy(outputs.logits["adversarial"], outputs.batch.clean.labels))


def get_config(method="squeeze"):
    config = common.get_config(method)
    config.dataset.name = "embedded"
    config.dataset.train_examples, config.dataset.test_examples = 16, 8
    config.model.name = "mlp"
    config.batch_size, config.epochs = 8, 1
    config.evaluation.attacks, config.evaluation.select = ("clean",), "clean"
    config.evaluation.final_attacks = ("clean", "pgd1")
    config.log.tensorboard = False
    return config
"""
OVERRIDES = ["--config.attack.eps=0.05", "--config.model.options.hidden=3", "--config.attack.steps=1"]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    METHODS.pop("squeeze", None)


@pytest.fixture
def trained(mine, capsys):
    assert errors.run(train.main, ["--config=mine.py:squeeze", "--workdir=runs/x", *OVERRIDES]) == 0
    return mine / "runs" / "x"


def test_the_command_that_training_prints_evaluates_with_the_run_s_values(mine, capsys):
    assert errors.run(train.main, ["--config=mine.py:squeeze", "--workdir=runs/x", *OVERRIDES]) == 0
    shown = capsys.readouterr().out.split("evaluate with: ")[1]
    del METHODS["squeeze"]
    assert errors.run(evaluate.main, shlex.split(shown)[1:]) == 0
    assert capsys.readouterr().err == ""
    settings = json.loads((mine / "runs/x/evaluation.json").read_text())["settings"]
    assert settings["eps"] == 0.05


def test_it_is_resumed_with_the_run_s_values(trained, capsys):
    del METHODS["squeeze"]
    again = ["--resume", "--config=mine.py:squeeze", "--workdir=runs/x", "--config.epochs=2"]
    assert errors.run(train.main, again) == 0
    saved = json.loads((trained / "config.json").read_text())
    assert (saved["attack"]["eps"], saved["epochs"], saved["model"]["options"]) == (0.05, 2, {"hidden": [3]})


@pytest.mark.parametrize("command", [train, evaluate])
def test_another_method_of_the_file_is_refused(trained, command, capsys):
    resume = ["--resume"] if command is train else []
    assert errors.run(command.main, [*resume, "--config=mine.py:squeeze+piat", "--workdir=runs/x"]) == 2
    told = capsys.readouterr().err
    assert "the run in 'runs/x' has the method 'squeeze'; give --config=mine.py" in told


def test_python_loads_it_with_its_file_and_never_executes_one_by_itself(trained):
    del METHODS["squeeze"]
    with pytest.raises(InputError, match=r'import the file, or give config="FILE" \(--config=FILE\)'):
        piat_jax.load(trained)
    assert "squeeze" not in METHODS
    assert piat_jax.load(trained, config="mine.py").about.method == "squeeze, 1 epochs"
    del METHODS["squeeze"]
    with pytest.raises(InputError, match=r"config='other.py' is not a config file"):
        piat_jax.load(trained, config="other.py")
    with pytest.raises(InputError, match="has the method 'squeeze'"):
        piat_jax.load(trained, config="mine.py:squeeze+piat")


@pytest.mark.parametrize("first", ["import mine", "pass"])
def test_a_file_that_is_imported_too_is_the_same_file(mine, first):
    code = f"{first}; from piat_jax.experiment.config import read; read('mine.py:squeeze'); import mine"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_a_program_that_trains_its_own_method_is_not_started_again(mine):
    program = MINE + "print('once')\nfrom piat_jax.experiment.config import read\nread('mine.py:squeeze')\n"
    (mine / "mine.py").write_text(program)
    ran = subprocess.run([sys.executable, "mine.py"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "once\n"), ran.stderr


def test_a_sweep_evaluates_it(mine, capsys):
    assert errors.run(sweep.main, ["--config=mine.py", "--methods=squeeze", "--workdir=runs", "--list"]) == 0
    line = capsys.readouterr().out
    assert "piat-evaluate --workdir=runs/squeeze-seed0" in line
    assert line.rstrip().endswith("--config=mine.py:squeeze --resume")


def test_a_file_that_ignores_the_method_is_refused(mine):
    (mine / "ign.py").write_text(MINE.replace("get_config(method)", "get_config('pgd_at')"))
    with pytest.raises(InputError, match=r"get_config\('squeeze'\) returned a config of the method 'pgd_at'; pass"):
        read("ign.py:squeeze")
    read("ign.py")
    del METHODS["squeeze"]
    assert str(read("mine.py:squeeze").method) == "squeeze"
    assert str(read("mine.py:piat").method) == "pgd_at+piat"


def test_a_method_that_the_file_does_not_register_is_named(mine):
    (mine / "mine.py").write_text(MINE.replace('@method("squeeze", summary="Cross-entropy.", paper="nobody")', ""))
    with pytest.raises(InputError, match=r"^mine.py registers no method 'squeeze'; decorate the class with @method"):
        read("mine.py:squeeze+piat")
    with pytest.raises(InputError, match="'tradse' is unknown; did you mean 'trades'"):
        read("mine.py:tradse")
