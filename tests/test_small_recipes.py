"""`python -m experiments.recipes`: what it would run, and the images it generates."""

import numpy as np
import pytest

from experiments import recipes
from piat_jax.cli import errors
from piat_jax.data import load
from piat_jax.experiment.sweep import check


@pytest.mark.parametrize("kind", recipes.KINDS)
def test_every_run_can_be_described(kind, tmp_path):
    runs = recipes.KINDS[kind](tmp_path)
    jobs = [recipes._job(tmp_path, {"epochs": "2"}, run, "1") for run in runs]
    check(jobs)
    assert len({job.folder for job in jobs}) == len(jobs)
    assert sum("+piat" in job.folder.name for job in jobs) == len(jobs) / 2
    described = [str(job.experiment().plain()) for job in jobs]
    assert len(set(described)) == len(jobs)
    assert {job.experiment().epochs for job in jobs} == {2}


def test_generated_images_are_of_their_classes_and_no_copies():
    train = load("embedded", train_examples=512).train
    images, labels = recipes.generate(train, 400, seed=0)
    again, other = (recipes.generate(train, 400, seed=seed)[0] for seed in (0, 1))
    np.testing.assert_array_equal(images, again)
    assert (images != other).mean() > 0.2
    flat, real = (x.reshape(len(x), -1).astype(np.float64) for x in (images, train.images))
    means = np.stack([real[train.labels == label].mean(axis=0) for label in range(10)])
    nearest = ((flat[:, None] - means[None]) ** 2).sum(axis=-1).argmin(axis=1)
    assert (nearest == labels).mean() > 0.6
    distances = ((flat[:, None, ::7] - real[None, :, ::7]) ** 2).mean(axis=-1).min(axis=1)
    assert distances.min() > 10


def test_an_unknown_kind_is_named(capsys):
    assert errors.run(recipes.main, ["--kinds=fats"]) == 2
    assert "kinds='fats' is unknown; did you mean 'fast'?" in capsys.readouterr().err
