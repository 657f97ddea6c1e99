"""What evaluation keeps of each example for a report."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import piat_jax
from piat_jax.analysis import examples, load_run
from piat_jax.analysis.predictions import Predictions
from piat_jax.evaluation import Robustness
from piat_jax.experiment import Run, run_evaluation

SMALL = {
    "dataset.train_examples": 400,
    "dataset.test_examples": 40,
    "model.options.width": 4,
    "model.options.stage_sizes": (1,),
    "evaluation.attacks": ("clean",),
    "evaluation.select": "clean",
    "log.tensorboard": False,
    "evaluation.batch_size": 16,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return piat_jax.train(
        "embedded:standard", folder, epochs=8, overrides=SMALL, listener=piat_jax.experiment.Listener()
    )


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "run")
    return Run(tmp_path / "run")


def evaluate(run, *attacks, **options):
    experiment = run.experiment()
    fields = dataclasses.replace(experiment.evaluation, final_attacks=attacks)
    return run_evaluation.evaluate(dataclasses.replace(experiment, evaluation=fields), run, **options)


def test_classes_and_images_are_those_of_the_attack(run):
    found = evaluate(run, "clean", "pgd2", "fgsm", checkpoints=("final",))["checkpoints"]["final"]["accuracy"]
    clean, attacked = (Predictions.load(run.predictions("final", name)) for name in ("clean", "pgd2"))
    assert (clean.predicted == clean.labels).mean() == found["clean"]
    assert (attacked.predicted == attacked.labels).mean() == found["pgd2"]
    assert len(clean.indices) == 0
    model = piat_jax.load(run.folder, checkpoint="final")
    # What was broken was right before; the images are in the ball, and of the predicted class.
    was, now = clean.predicted[attacked.indices], attacked.predicted[attacked.indices]
    labels = attacked.labels[attacked.indices]
    broken = now != labels
    assert (was == labels).all()
    assert 0 < broken.sum() < len(broken)
    assert sorted(broken.tolist(), reverse=True) == broken.tolist()
    change = attacked.attacked.astype(np.float32) - attacked.clean / np.float32(255)
    assert 0.09 < np.abs(change).max() < 0.101
    np.testing.assert_array_equal(model.predict(attacked.attacked.astype(np.float32)), now)
    np.testing.assert_array_equal(model.predict(attacked.clean), was)
    assert attacked.seconds > 0
    # The report takes them.
    read = examples.read_predictions(load_run(run.folder), "final", "fgsm")
    assert read is not None
    assert (read.predicted == read.labels).mean() == found["fgsm"]


def test_autoattacks_are_those_of_its_result(run):
    evaluate(run, "apgd-ce2", checkpoints=("final",), aa_examples=12)
    result = Robustness.load(run.robustness("final", "apgd-ce2"))
    found = Predictions.load(run.predictions("final", "apgd-ce2"))
    np.testing.assert_array_equal(found.predicted, result.predictions)
    assert len(found.labels) == 12
    broken = (found.predicted != found.labels)[found.indices]
    assert result.clean[found.indices].all()
    np.testing.assert_array_equal(result.robust[found.indices], ~broken)
    np.testing.assert_allclose(found.attacked, result.images[found.indices], atol=1e-3)


def test_the_same_weights_have_the_same_and_others_none(run):
    shutil.rmtree(run.folder / "checkpoints" / "best")
    shutil.copytree(run.folder / "checkpoints" / "last", run.folder / "checkpoints" / "best")
    evaluate(run, "clean", "pgd2", "square2")
    for attack in ("clean", "pgd2", "square2"):
        one, other = (run.predictions(name, attack).read_bytes() for name in ("best", "final"))
        assert one == other
    piat_jax.train(run.experiment(), run.folder, epochs=9, resume=True, listener=piat_jax.experiment.Listener())
    evaluate(run, "clean", checkpoints=("final",))
    assert run.predictions("final", "clean").exists()
    assert not run.predictions("final", "pgd2").exists()
    assert run.predictions("best", "pgd2").exists()
    run.open(run.experiment(), overwrite=True)
    assert not run.predictions("best", "pgd2").parent.exists()


def test_what_earlier_versions_kept_is_gone_on_with(run):
    evaluate(run, "clean", "pgd2", checkpoints=("final",))
    shutil.rmtree(run.predictions("final", "clean").parent)
    evaluate(run, "clean", "pgd2", "fgsm", checkpoints=("final",), resume=True)
    assert [path.name for path in run.predictions("final", "x").parent.iterdir()] == ["final-fgsm.npz"]
    run.predictions("final", "clean").write_bytes(b"cut off")  # not known, and no error
    evaluate(run, "clean", "pgd3", checkpoints=("final",), resume=True)
    assert run.predictions("final", "pgd3").exists()


def test_logits_that_are_not_finite_are_no_class(trained):
    model = piat_jax.load(trained.folder, checkpoint="final")
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, model)
    images, labels = np.zeros((3, 28, 28, 1), np.uint8), np.zeros(3, np.int32)
    found = piat_jax.evaluation.judge_under_attack(broken, images, labels, None, key=jax.random.key(0))
    assert found.predicted.tolist() == [-1, -1, -1]
    assert not found.correct.any()
