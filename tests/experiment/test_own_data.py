"""Networks of runs on the user's own images, and folders that hold none."""

import json

import numpy as np
import pytest

import piat_jax
from piat_jax.core.checks import InputError

FIELDS = {
    "model.name": "mlp",
    "model.options.hidden": (3,),
    "attack.steps": 1,
    "evaluation.attacks": ("clean",),
    "evaluation.select": "clean",
    "log.tensorboard": False,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on 20 x 20 x 3 images in the user's own file."""
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.integers(0, 256, (16, 20, 20, 3), np.uint8), "y_train": np.arange(16) % 2}
    arrays |= {"x_test": arrays["x_train"][:8], "y_test": arrays["y_train"][:8]}
    np.savez(folder / "own.npz", **arrays)
    fields = {**FIELDS, "dataset.name": str(folder / "own.npz")}
    return piat_jax.train("embedded:pgd_at", folder / "runs" / "x", epochs=1, batch_size=8, overrides=fields)


def test_the_run_knows_the_shape_of_its_images(run):
    data = run.folder.parent.parent / "own.npz"
    moved = data.rename(data.with_name("moved.npz"))
    try:
        assert piat_jax.load(run.folder).about.image_shape == (20, 20, 3)
    finally:
        moved.rename(data)


def test_an_older_run_is_asked_for_its_data(run):
    described = (run.folder / "data.json").read_text()
    (run.folder / "data.json").unlink()
    data = run.folder.parent.parent / "own.npz"
    try:
        assert piat_jax.load(run.folder).about.image_shape == (20, 20, 3)
        moved = data.rename(data.with_name("moved.npz"))
        with pytest.raises(InputError, match=r"such as image_shape=\(20, 20, 3\)"):
            piat_jax.load(run.folder)
        assert piat_jax.load(run.folder, image_shape=(20, 20, 3)).about.image_shape == (20, 20, 3)
        moved.rename(data)
    finally:
        (run.folder / "data.json").write_text(described)


def test_a_folder_of_runs_and_a_run_without_a_checkpoint_say_so(run, tmp_path):
    with pytest.raises(InputError, match=r"is a folder of runs; give one of them: .*runs/x$"):
        piat_jax.load(run.folder.parent)
    (tmp_path / "config.json").write_text(json.dumps(run.experiment().plain()))
    with pytest.raises(InputError, match="holds a run without a checkpoint; continue it with piat-train --resume"):
        piat_jax.load(tmp_path)
    with pytest.raises(InputError, match=r"^model='mlp' does not go with a run, whose config says it; leave it out"):
        piat_jax.load(run.folder, model="mlp")
