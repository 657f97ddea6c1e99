"""Training on a small set of real pictures of mixed sizes, in every form that encoded images come in."""

import functools
import os
import signal

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import piat_jax
from experiments.throughput.small_set import find_pictures, write_small_set
from piat_jax.core.checks import SavedAndStopped
from piat_jax.data.records.writing import KINDS
from piat_jax.experiment import config
from piat_jax.experiment.run_training import Listener

# Narrow forms of the networks of ImageNet, with their stems.
NETWORKS = {
    "convnext": ("convnext", {"depths": (1, 1), "widths": (8, 16), "drop_path": 0.2}),
    "resnet": ("imagenet_resnet", {"width": 4, "stage_sizes": (1, 1)}),
}
FIELDS = {
    "dataset.image_size": 32,
    "dataset.flip": True,
    "batch_size": 31,  # six steps, on one device
    "attack.eps": 4 / 255,
    "attack.step_size": 2 / 255,
    "attack.steps": 2,
    "optimizer.lr_epochs": (0.0, 2.0),
    "optimizer.lr_values": (0.1, 0.05),
    "evaluation.attacks": ("clean",),
    "evaluation.select": "clean",
    "evaluation.every_epochs": 1,
    "log.tensorboard": False,
    "log.steps_per_chunk": 1,
}
TRAIN, TEST = 192, 24
"""Files. matplotlib ships three of the pictures that they are crops of; where more are installed, each has fewer."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The folder of each form, in each of which are the same files."""
    out, pictures = tmp_path_factory.mktemp("small"), len(find_pictures())
    return dict(zip(KINDS, write_small_set(out, train=TRAIN // pictures, test=TEST // pictures)))


class Stops(Listener):
    """Stops as a signal would, after so many steps of the second epoch; 0 = never."""

    def __init__(self, after):
        self.after = after

    def chunk(self, epoch, done, total):
        if (epoch, done) == (2, self.after):
            os.kill(os.getpid(), signal.SIGTERM)


def train(folder, workdir, network, *, after=0, resume=False):
    described = config.read("embedded:pgd_at")
    described.model.name, described.model.options = NETWORKS[network][0], ConfigDict(NETWORKS[network][1])
    overrides = {**FIELDS, "dataset.name": str(folder), "epochs": 2}
    return piat_jax.train(described, workdir, overrides=overrides, resume=resume, listener=Stops(after))


@pytest.fixture(scope="module")
def whole(sets, tmp_path_factory):
    """The run on class folders that nothing interrupted, by network."""

    @functools.cache
    def of(network):
        return train(sets["folders"], tmp_path_factory.mktemp(network) / "whole", network)

    return of


def same_runs(one, other):
    """Equal weights, bit for bit, and equal records of all epochs."""
    weights = [piat_jax.load(run.folder, checkpoint="final").variables for run in (one, other)]
    jax.tree.map(np.testing.assert_array_equal, *weights)
    assert len(jax.tree.leaves(weights[0])) > 10
    for key in ("train_loss", "train_adversarial_accuracy", "test_clean"):
        assert [record[key] for record in one.metrics()] == [record[key] for record in other.metrics()]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_run_that_is_stopped_and_resumed_equals_the_whole_one(network, sets, whole, tmp_path):
    with pytest.raises(SavedAndStopped, match="saved in epoch 2 after 2 of 6 steps"):
        train(sets["folders"], tmp_path, network, after=2)
    same_runs(train(sets["folders"], tmp_path, network, resume=True), whole(network))


@pytest.mark.parametrize("network", NETWORKS)
def test_the_loss_falls(network, whole):
    first, second = (record["train_loss"] for record in whole(network).metrics())
    assert second < 0.95 * first
    assert whole(network).metrics()[-1]["test_clean"] > 1 / len(find_pictures())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "folders"])
def test_every_form_trains_alike(kind, sets, whole, tmp_path):
    same_runs(train(sets[kind], tmp_path, "convnext"), whole("convnext"))
