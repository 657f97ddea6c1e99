"""`piat-train --fields` and `--show`."""

import json

import pytest

from piat_jax.averaging import AVERAGES
from piat_jax.cli import errors, train
from piat_jax.core.nested import leaves
from piat_jax.experiment import config
from piat_jax.experiment.listing import meanings
from piat_jax.objectives import METHODS, WRAPPERS


@pytest.mark.parametrize("method", [*METHODS, *WRAPPERS, *AVERAGES, "piat"])
@pytest.mark.parametrize("name", ["cifar10_resnet18"])
def test_every_field_has_a_meaning(name, method):
    experiment = config.load(f"{name}:{method}", checked=False)
    told = meanings(experiment)
    assert [path for path in leaves(experiment.plain()) if not told.get(path)] == []


@pytest.mark.parametrize("name", config.names())
def test_every_option_of_every_network_has_one(name):
    experiment = config.load(name)
    told = meanings(experiment)
    assert [path for path in leaves(experiment.plain()) if not told.get(path)] == []


def test_the_list_and_the_config_are_printed_and_nothing_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert errors.run(train.main, ["--config=embedded:trades+awp", "--config.attack.eps=4/255", "--fields"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("attack.eps = 0.0156863 (4/255)")
    assert lines[at + 1] == "        radius, for pixels in [0, 1]; write 8/255 on the command line"
    assert any(line.startswith("awp.gamma = 0.005") for line in lines)
    assert errors.run(train.main, ["--config=embedded:trades+awp", "--config.attack.eps=4/255", "--show"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["method"], shown["attack"]["eps"], shown["epochs"]) == ("trades+awp", 4 / 255, 100)
    assert list(tmp_path.iterdir()) == []
