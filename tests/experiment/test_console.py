"""What is printed while a run goes on."""

from piat_jax.experiment import Run, config
from piat_jax.experiment.console import TrainingConsole
from piat_jax.experiment.run_training import Started
from piat_jax.training import Position


def test_a_resumed_run_counts_from_where_it_is(tmp_path, capsys):
    console = TrainingConsole()
    experiment = config.load("embedded:piat", {"epochs": 9})
    console.started(Started(experiment, Run(tmp_path), 1234, 1024, 32, 2, Position(4, steps=5), True))
    told = capsys.readouterr().out
    assert told.startswith("pgd_at+piat: small_resnet (1,234 parameters) on embedded (1,024 images), 9 epochs, eps 0.1")
    assert told.endswith(f", in {tmp_path}, from epoch 4, step 6\n")
    assert (console.progress.first_epoch, console.progress.images_per_epoch) == (4, 32 * 32)
    console.done(Run(tmp_path), "mine.py:mine")
    assert f"evaluate with: piat-evaluate --workdir={tmp_path} --config=mine.py:mine\n" in capsys.readouterr().out
