"""`piat-evaluate --corruptions`, its file, its report, and going on with what was stopped."""

import json

import numpy as np
import pytest

from piat_jax.analysis import load_run
from piat_jax.cli import errors, evaluate, report, train
from piat_jax.data import load
from piat_jax.data.corruptions import CORRUPTIONS
from piat_jax.experiment import Run, run_corruptions
from piat_jax.experiment.console import CorruptionConsole
from tests.cli.test_train_evaluate import TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    longer = ["--config.dataset.train_examples=400", "--config.epochs=6", "--config.model.options.width=4"]
    arguments = ["--config=embedded:standard", f"--workdir={folder}", *TINY, *longer]
    assert errors.run(train.main, arguments) == 0
    return folder


@pytest.fixture(scope="module")
def corrupted(tmp_path_factory):
    """Severity s of every corruption mixes s / 20 of noise into the images; brightness changes nothing."""
    folder, rng = tmp_path_factory.mktemp("corrupted"), np.random.default_rng(0)
    images, labels = load("embedded", test_examples=40).test
    np.save(folder / "labels.npy", np.tile(labels, 5))
    for name in (*CORRUPTIONS, "spatter"):
        noise = rng.integers(0, 256, images.shape)
        shares = [0 if name == "brightness" else level / 20 for level in range(1, 6)]
        mixed = [np.round((1 - share) * images + share * noise) for share in shares]
        np.save(folder / f"{name}.npy", np.concatenate(mixed).astype(np.uint8))
    return folder


def call(run, *more):
    return errors.run(evaluate.main, [f"--workdir={run}", *more])


def test_it_is_evaluated_kept_and_reported(run, corrupted, capsys, monkeypatch):
    monkeypatch.setattr(run_corruptions, "CHUNK", 16)
    assert call(run, f"--corruptions={corrupted}", "--num_examples=20") == 0
    printed = capsys.readouterr().out
    path = run / "corruptions" / "final.json"
    found = json.loads(path.read_text())
    assert not (run / "evaluation.json").exists()  # these alone
    assert list(found["accuracy"]) == [*CORRUPTIONS, "spatter"]
    assert (found["num_examples"], found["epoch"], found["folder"]) == (20, 6, str(corrupted))
    assert found["accuracy"]["brightness"] == [found["clean"]] * 5
    mean = np.mean([found["accuracy"][name] for name in CORRUPTIONS])
    assert found["mean"] == pytest.approx(mean)
    assert found["mean"] < found["clean"]
    assert found["mce"] == pytest.approx(1 - mean)
    assert found["extra"] == pytest.approx(np.mean(found["accuracy"]["spatter"]))
    assert f"final  clean {100 * found['clean']:.2f}%  mean over corruptions {100 * mean:.2f}%" in printed
    assert "mean error, not normalised" in printed
    assert "| brightness " in path.with_suffix(".md").read_text()
    # By hand.
    from piat_jax import load as load_classifier

    model = load_classifier(run, checkpoint="final")
    images, labels = np.load(corrupted / "fog.npy")[80:100], np.load(corrupted / "labels.npy")[:20]
    assert found["accuracy"]["fog"][2] == (model.predict(images) == labels).mean()

    # Beside accuracies under attack it is part of the report.
    assert call(run, "--attacks=clean", "--num_examples=20") == 0
    point = load_run(run).checkpoints["final"]
    scores = point.corruptions
    assert point.accuracy["clean"] == found["clean"]
    assert (scores.mean, scores.normalised, scores.num_examples) == (found["mean"], False, 20)
    assert errors.run(report.main, [str(run)]) == 0
    table = (run / "report" / "corruptions.md").read_text()
    assert "| Mean error |" in table
    assert f"{100 * found['mean']:.2f}" in table
    # Numbers of other weights are not.
    path.write_text(json.dumps(found | {"epoch": 5}))
    assert load_run(run).checkpoints["final"].corruptions is None
    path.write_text(json.dumps(found))


def test_it_goes_on_where_it_was_stopped(run, corrupted, capsys, monkeypatch):
    arguments = ["--checkpoint=final", f"--corruptions={corrupted}", "--num_examples=10"]
    assert call(run, *arguments, "--overwrite") == 0
    path = run / "corruptions" / "final.json"
    whole = path.read_text()

    class Stop(CorruptionConsole):
        def corrupted(self, run, checkpoint, epoch, name, values):
            if name == "fog":
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("piat_jax.experiment.console.CorruptionConsole", Stop)
        assert call(run, *arguments, "--overwrite") == 130
    stopped = json.loads(path.read_text())
    assert list(stopped["accuracy"])[-1] == "frost"
    assert "mean" not in stopped
    capsys.readouterr()
    assert call(run, *arguments) == 2
    assert f"{path} holds an evaluation; give --resume to keep it" in capsys.readouterr().err
    stopped["accuracy"]["snow"] = [0.125] * 5  # what was found is kept
    path.write_text(json.dumps(stopped))
    assert call(run, *arguments, "--resume") == 0
    after, before = json.loads(path.read_text()), json.loads(whole)
    assert after["accuracy"].pop("snow") == [0.125] * 5
    before["accuracy"].pop("snow")
    assert after["accuracy"] == before["accuracy"]
    # Of another number of images, or other weights, nothing is.
    assert call(run, *arguments[:-1], "--num_examples=9", "--resume") == 0
    assert json.loads(path.read_text())["accuracy"]["snow"] != [0.125] * 5
    assert Run(run).corruptions("final") == path


def test_what_is_missing_is_named_before_anything_is_done(run, corrupted, tmp_path, capsys):
    assert call(run, f"--corruptions={tmp_path / 'gone'}", "--overwrite") == 2
    assert "gone' is not a folder; unpack " in capsys.readouterr().err
    (tmp_path / "labels.npy").write_bytes((corrupted / "labels.npy").read_bytes())
    before = (run / "corruptions").exists() and sorted((run / "corruptions").iterdir())
    assert call(run, f"--corruptions={tmp_path}", "--overwrite") == 2
    assert "lacks gaussian_noise.npy, shot_noise.npy" in capsys.readouterr().err
    assert ((run / "corruptions").exists() and sorted((run / "corruptions").iterdir())) == before
