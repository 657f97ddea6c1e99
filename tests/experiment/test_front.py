"""`piat_jax.train`, and what the package shows."""

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import piat_jax
from piat_jax.core.checks import InputError
from piat_jax.experiment import Listener, default_config, resolve
from piat_jax.experiment.config import load
from piat_jax.training.epoch import train_steps
from piat_jax.training.schedules import SCHEDULES, Rate

SMALL = {
    "dataset.train_examples": 16,
    "dataset.test_examples": 8,
    "model.options.width": 2,
    "model.options.stage_sizes": (1,),
    "attack.steps": 1,
    "evaluation.attacks": ("clean",),
    "evaluation.select": "clean",
    "log.tensorboard": False,
}


class Heard(Listener):
    def __init__(self):
        self.events = []

    def started(self, begun):
        self.events.append(("started", begun.at.epoch, begun.resumed, begun.examples, begun.steps))

    def epoch(self, epoch, values, images_per_second):
        self.events.append(("epoch", epoch, sorted(values)))

    def closed(self):
        self.events.append(("closed",))


def test_a_run_in_a_line_and_on_from_there(tmp_path, capsys):
    heard = Heard()
    run = piat_jax.train(
        "embedded:nmse+piat", tmp_path / "run", epochs=1, batch_size=8, overrides=SMALL, listener=heard
    )
    assert capsys.readouterr().out == ""
    assert heard.events == [
        ("started", 1, False, 16, 2),
        ("epoch", 1, ["loss", "test_clean", "train"]),
        ("closed",),
    ]
    assert [record["epoch"] for record in run.metrics()] == [1]
    assert (run.experiment().epochs, str(run.experiment().method)) == (1, "nmse+piat")
    # Its own words where nobody listens; an experiment is a config as well.
    again = piat_jax.train(run.experiment(), run.folder, epochs=2, resume=True)
    assert "epoch 2/2" in capsys.readouterr().out
    assert [record["epoch"] for record in again.metrics()] == [1, 2]
    model = piat_jax.load(run.folder, checkpoint="final")
    assert model.predict(np.zeros((2, 28, 28, 1), np.uint8)).shape == (2,)


def test_a_config_made_in_python_is_left_as_it_was():
    config = default_config("trades+awp")
    config.model.name = "mlp"
    experiment = resolve(config, {"attack.eps": 0.25, "epochs": 60})
    assert (experiment.attack.eps, experiment.evaluation.eps, experiment.model.name) == (0.25, 0.25, "mlp")
    assert experiment.optimizer.lr_epochs == (0.0, 30.0, 45.0, 60.0)
    assert (config.attack.eps, config.epochs) == (8 / 255, 120)


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        ({"epochs": 1}, {}, "config is a dict; give 'NAME:METHOD'"),
        ("embeded:piat", {}, "config='embeded' is unknown; did you mean 'embedded'"),
        ("embedded:piat", {"epoch": 1}, "config.epoch is unknown; did you mean 'epochs'"),
        ("embedded:piat", {"epochs": 1.5}, "config.epochs=1.5 is not a whole number"),
        ("embedded:piat", {"epochs": True}, "config.epochs=True is not a whole number"),
        ("embedded:piat", {"dataset": "mnist"}, "config.dataset is a group of fields"),
        ("embedded:piat", {"fsdp": 1}, "config.fsdp=1 is not true or false"),
    ],
)
def test_what_cannot_be_trained_is_named(tmp_path, config, fields, message):
    with pytest.raises(InputError, match=message):
        piat_jax.train(config, tmp_path / "run", **fields)
    assert not (tmp_path / "run").exists()


def test_the_knots_of_the_learning_rate_move_with_the_epochs_unless_given():
    assert load("embedded", {"epochs": 20}).optimizer.lr_epochs == (0.0, 10.0, 15.0, 20.0)
    given = {"epochs": 20, "optimizer.lr_epochs": "0,5,6,7"}
    assert load("embedded", given).optimizer.lr_epochs == (0.0, 5.0, 6.0, 7.0)


def test_the_package_shows_what_it_has():
    names = set(dir(piat_jax))
    assert {"train", "load", "pgd", "PIAT", "AutoAttack", "attacks", "objectives", "experiment"} <= names
    for name in names:
        assert getattr(piat_jax, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'tarin'"):
        piat_jax.tarin  # noqa: B018


def test_the_names_that_type_checkers_see_are_those_that_are_there():
    source = Path(piat_jax.__file__).read_text()
    lines = source.partition("if TYPE_CHECKING:")[2].partition("\n\n\n")[0].splitlines()
    parts = [part for line in lines if "import" in line for part in line.split("import")[1].split(",")]
    named = {part.strip() for part in parts}
    assert named == set(piat_jax._HOMES)


def test_importing_it_loads_no_jax():
    code = "import sys, piat_jax; sys.exit('jax' in sys.modules or 'flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("method", ["nmse+piat", "trades+awp+ema", "pgd_at+swa+ema"])
def test_seeds_in_one_process_compile_once(method, tmp_path):
    plain = {name: value for name, value in SMALL.items() if "options" not in name} | {"model.name": "mlp"}

    def compiled(seed, **overrides):
        fields = {**plain, "seed": seed, **{name.replace("__", "."): value for name, value in overrides.items()}}
        run = piat_jax.train(
            f"embedded:{method}", tmp_path / "run", epochs=1, batch_size=8, overwrite=True, overrides=fields
        )
        return train_steps._cache_size(), run.metrics()[-1]["train_loss"]

    first, loss = compiled(0)
    second, other = compiled(1)
    assert first == second
    assert loss != other
    assert compiled(0)[1] == loss
    assert compiled(0, optimizer__lr=0.125, optimizer__schedule="cosine")[0] == first + 1
    assert compiled(0, optimizer__momentum=0.5)[0] == first + 2
    if "ema" in method:
        group = "ema" if "swa" in method else "average"
        assert compiled(0, **{f"{group}__decay": 0.5})[0] == first + 3


def test_a_schedule_of_the_same_name_is_another_after_it_was_redefined(tmp_path):
    plain = {**SMALL, "optimizer.schedule": "mine"}
    rates, losses = [], set()

    def constant(value):
        # Not an argument with a default: that would be a field of the config, whose value differs.
        return lambda *, length: Rate(lambda step: jnp.full((), value))

    for value in (0.25, 0.5):
        SCHEDULES["mine"] = constant(value)
        run = piat_jax.train("embedded:pgd_at", tmp_path / str(value), epochs=1, batch_size=8, overrides=plain)
        rates.append(run.metrics()[-1]["learning_rate"])
        losses.add(run.metrics()[-1]["train_loss"])  # its second step comes after a step at this rate
        del SCHEDULES["mine"]
    assert rates == [0.25, 0.5]
    assert len(losses) == 2
