"""Fields that come with an optimizer, a schedule or an attack: in files, on the command line, and in old runs."""

import json
import re

import pytest

from piat_jax.core.checks import InputError
from piat_jax.experiment import Run
from piat_jax.experiment.chosen import completed, rest_fields
from piat_jax.experiment.config import load, resolve
from piat_jax.experiment.experiment import Experiment
from piat_jax.experiment.methods import parse_method

BODY = """from piat_jax.configs import embedded

def get_config(method="trades"):
    config = embedded.get_config(method)
"""


def file_with(tmp_path, *lines):
    path = tmp_path / "mine.py"
    path.write_text(BODY + "".join(f"    config.{line}\n" for line in lines) + "    return config\n")
    return str(path)


def test_a_name_brings_its_fields_and_takes_others_away():
    before, after = load("embedded"), load("embedded", {"optimizer.name": "adamw", "optimizer.b2": "0.95"})
    assert "momentum" in before.optimizer.rest
    assert "momentum" not in after.optimizer.rest
    assert (after.optimizer.b1, after.optimizer.b2, after.optimizer.lr_values) == (
        0.9,
        0.95,
        before.optimizer.lr_values,
    )
    other = load("embedded", {"optimizer.schedule": "one_cycle", "optimizer.momentum": 0.5})
    assert other.optimizer.momentum == 0.5
    assert "lr_epochs" not in other.optimizer.rest
    attack = load("embedded:trades", {"attack.name": "apgd", "attack.steps": 2}).attack
    assert (attack.steps, attack.start, attack.eps) == (2, "random", 0.1)


def test_what_both_have_keeps_a_value_that_was_changed():
    cosine = load("embedded", {"optimizer.schedule": "cosine", "optimizer.lr": 0.5, "optimizer.lr_every": "step"})
    linear = resolve(cosine, {"optimizer.schedule": "linear"})
    assert (linear.optimizer.lr, linear.optimizer.lr_every) == (0.5, "step")
    sgd = {"name": "sgd", "schedule": "piecewise_linear", "nesterov": False}
    muon = {**sgd, "name": "muon"}
    assert completed("optimizer", muon, sgd)["nesterov"] is True  # muon's own
    assert completed("optimizer", {**muon, "b1": 0.5}, {**sgd, "b1": 0.9}).get("b1") is None
    adam = completed("optimizer", {**sgd, "name": "adam", "nesterov": True}, sgd)
    assert adam["nesterov"] is True


def test_files_set_names_and_then_fields(tmp_path):
    lines = ("optimizer.name = 'lion'", "optimizer.schedule = 'cosine'", "optimizer.lr = 0.01", "attack.name = 'cw'")
    experiment = load(file_with(tmp_path, *lines, "attack.steps = 7"))
    assert (experiment.optimizer.lr, experiment.optimizer.b2, experiment.attack.steps) == (0.01, 0.99, 7)
    assert Experiment.from_plain(json.loads(json.dumps(experiment.plain()))).plain() == experiment.plain()


def test_a_schedules_own_places_are_of_the_run():
    assert load("embedded", {"optimizer.schedule": "one_cycle"}).optimizer.lr_peak == 30  # 36 of 120, of 100 epochs
    assert load("embedded", {"optimizer.schedule": "one_cycle", "epochs": 10}).optimizer.lr_peak == 3
    given = load("embedded", {"optimizer.schedule": "step", "optimizer.lr_drops": "4,8", "epochs": 10})
    assert given.optimizer.lr_drops == (4.0, 8.0)
    shares = {"optimizer.schedule": "step", "optimizer.lr_unit": "shares", "optimizer.lr_drops": "0.5,0.9"}
    assert load("embedded", {**shares, "epochs": 10}).optimizer.lr_drops == (0.5, 0.9)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer.name": "admw"}, "optimizer.name='admw' is unknown; did you mean 'adamw'?"),
        ({"optimizer.schedule": "cosin"}, "optimizer.schedule='cosin' is unknown; did you mean 'cosine'?"),
        ({"attack.name": "pdg"}, "attack.name='pdg' is unknown; did you mean 'pgd'?"),
        ({"optimizer.name": "adamw", "optimizer.momentum": 0.5}, "config.optimizer.momentum is unknown"),
        ({"optimizer.schedule": "cosine", "optimizer.lr_values": "1,2"}, "config.optimizer.lr_values is unknown"),
        ({"optimizer.name": "lbfgs"}, "optimizer 'lbfgs' cannot be used here"),
        ({"optimizer.name": "prodigy", "optimizer.weight_decay_on": "matrices"}, "prodigy decays all parameters"),
        ({"optimizer.layer_decay": 0.0}, "optimizer.layer_decay=0.0 must be in (0, 1]"),
        ({"optimizer.name": "adafactor", "piat.momentum": "reset"}, "finds no momentum in the optimizer's state"),
        ({"optimizer.name": "sign_sgd", "optimizer.schedule": "triangular"}, "sign_sgd has no momentum"),
        ({"attack.name": "n_fgsm", "attack.norm": "l2"}, "norm='l2'"),
        ({"evaluation.final_attacks": "clean,n_fgsm"}, "attack 'n_fgsm' is for training only"),
        ({"attack.sparsity": 0.0}, "attack.sparsity=0.0 must be in (0, 1]"),
        ({"model.bn_momentum": 0.0}, "bn_momentum=0.0 must be in (0, 1]"),
    ],
)
def test_what_does_not_go_is_said_before_anything_runs(overrides, message):
    with pytest.raises(InputError, match=re.escape(message)):
        load("embedded:piat", overrides)


def test_a_run_of_before_goes_on(tmp_path):
    plain = load("embedded:trades").plain()
    for group, name in (
        ("optimizer", "name"),
        ("optimizer", "schedule"),
        ("optimizer", "nesterov"),
        ("attack", "name"),
    ):
        del plain[group][name]
    for name in ("weight_decay_on", "layer_decay", "lr_unit", "lr_every"):
        del plain["optimizer"][name]
    (tmp_path / "config.json").write_text(json.dumps(plain))
    assert Run(tmp_path).experiment().plain() == load("embedded:trades").plain()
    Run(tmp_path).check_free(load("embedded:trades"), resume=True, overwrite=False)


def test_an_experiment_by_hand_has_the_fields_of_its_choices():
    experiment = Experiment(method=parse_method("piat"))
    assert experiment.optimizer.rest == rest_fields("optimizer", {})
    assert experiment.attack.steps == 10
    assert not hasattr(experiment.attack, "stepps")


@pytest.mark.parametrize("method", ["trades+lbgat", "generalist"])
@pytest.mark.parametrize("fields", [{"optimizer.name": "adamw"}, {"optimizer.layer_decay": 0.5}])
def test_a_second_network_learns_by_sgd_alone(method, fields):
    with pytest.raises(InputError, match="trains a second network by SGD at the run's rate"):
        load(f"embedded:{method}", fields)
    assert load(f"embedded:{method}").optimizer.name == "sgd"
