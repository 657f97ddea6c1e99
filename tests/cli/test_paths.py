"""`~` stands for one's home wherever a path is given: a shell leaves it as it is behind the = of a flag."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.checkpoint import Checkpoints
from piat_jax.cli import benchmark, convert, data, errors, evaluate, report, sweep, train
from piat_jax.core.checks import InputError
from piat_jax.data import load
from piat_jax.data.npz import read_examples
from piat_jax.evaluation.journal import Journal
from piat_jax.evaluation.robustness import Robustness
from piat_jax.experiment.config import read as read_config
from piat_jax.experiment.loading import load as load_classifier
from piat_jax.interop import About, load_weights, read_exported, save_safetensors
from piat_jax.interop.tensors import write_safetensors
from piat_jax.loggers import MetricsWriter, read_metrics
from piat_jax.models import create

CONFIG = "--config=configs/embedded.py:piat"


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "file").write_text("")
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.mark.parametrize(
    ("main", "given"),
    [
        (train.main, [CONFIG, "--workdir=~/file"]),
        (train.main, ["--config=~/x.py", "--workdir=~/new"]),
        (evaluate.main, ["--workdir=~/absent"]),
        (evaluate.main, ["~/absent"]),
        (evaluate.main, ["--checkpoint=~/absent/checkpoints/best"]),
        (report.main, ["~/absent"]),
        (convert.main, ["~/absent", "new"]),
        (convert.main, ["configs", "~/file"]),
        (data.main, ["inspect", "~/absent"]),
        (data.main, ["inspect", "cifar10", "--data_dir=~/absent"]),
        (data.main, ["prepare", "embedded", "--out=~/file"]),
        (benchmark.main, ["--out=~/file"]),
        (sweep.main, ["--config=embedded", "--workdir=~/file", "--methods=pgd_at"]),
        (train.main, [CONFIG, "--workdir=~/new", "--config.dataset.extra=~/absent.npz"]),
        (train.main, [CONFIG, "--workdir=~/new", "--config.model.weights=~/absent.pt"]),
        (train.main, [CONFIG, "--workdir=~/new", "--config.dataset.name=~/absent"]),
    ],
)
def test_every_command_finds_the_home(home, capsys, main, given):
    assert errors.run(main, given) == 2
    told = capsys.readouterr().err
    assert str(home) in told
    assert sorted(path.name for path in home.iterdir()) == ["file"]


def test_every_function_that_takes_a_path_does(home, monkeypatch):
    monkeypatch.chdir(home)
    model = create("mlp", num_classes=2, hidden=(2,))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
    save_safetensors("~/net", model, variables, About(model="mlp", num_classes=2, image_shape=(2, 2, 1)))
    assert load_weights("~/net", model, (2, 2, 1)).report.mapped
    write_safetensors("~/a.safetensors", {"x": np.zeros(2)})
    np.savez("x.npz", image=np.zeros((2, 1, 1, 1), np.uint8), label=np.arange(2))
    assert len(read_examples("~/x.npz").labels) == 2
    MetricsWriter("~").write({"epoch": 1})
    assert read_metrics("~") == [{"epoch": 1}]
    assert Checkpoints("~/saves").folder == home / "saves"
    assert Journal("~/aa", {}).folder == home / "aa"
    assert Journal.read_settings("~/aa") == {}
    for read in (read_exported, Robustness.load, load, load_classifier, lambda path: read_config(f"{path}.py")):
        with pytest.raises(InputError, match=str(home)):
            read("~/absent")
    assert not list(home.glob("~*"))


def test_a_home_that_is_not_there_is_one_line():
    with pytest.raises(InputError, match="'~nobody-here/x' names a home directory that does not exist; write the path"):
        load("~nobody-here/x")
