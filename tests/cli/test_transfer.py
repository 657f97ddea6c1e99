"""`piat-evaluate --from`: images of one run's network, judged by another's."""

import json
import shutil

import jax
import numpy as np
import pytest

from piat_jax import load as load_classifier
from piat_jax.attacks import bind, pgd
from piat_jax.cli import errors, evaluate, report, train
from piat_jax.core.rng import named_key
from piat_jax.data import load
from piat_jax.evaluation import correct_under_attack
from tests.cli.test_train_evaluate import TINY

LONGER = ["--config.dataset.train_examples=400", "--config.epochs=6", "--config.evaluation.select=clean"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two networks of other widths and, in the second, another normalisation."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in (
        ("a", ["--config.model.options.width=4"]),
        (
            "b",
            ["--config.model.options.width=3", "--config.seed=1", "--config.model.mean=0.3", "--config.model.std=0.3"],
        ),
    ):
        arguments = ["--config=embedded:standard", f"--workdir={folder / name}", *TINY, *LONGER, *more]
        assert errors.run(train.main, arguments) == 0
    return folder


def call(run, *more):
    return errors.run(evaluate.main, [f"--workdir={run}", "--checkpoint=final", "--config.evaluation.eps=0.2", *more])


def test_it_is_what_the_one_network_makes_of_the_other_s_images(runs, capsys):
    a, b = runs / "a", runs / "b"
    assert call(a, "--attacks=clean,pgd4") == 0
    white = json.loads((a / "evaluation.json").read_text())
    capsys.readouterr()
    assert call(a, "--attacks=pgd4,fgsm", f"--from={b}") == 0
    printed = capsys.readouterr().out
    content = json.loads((a / "evaluation.json").read_text())
    point = content["checkpoints"]["final"]
    # What was there is not mixed with it.
    transferred = point.pop("transfer")
    assert point == white["checkpoints"]["final"]
    assert list(transferred) == [str(b / "checkpoints" / "best")]
    found = transferred[str(b / "checkpoints" / "best")]
    assert list(found["accuracy"]) == ["pgd4", "fgsm"]
    assert f"final (epoch 6)  pgd4 from {b / 'checkpoints' / 'best'} {100 * found['accuracy']['pgd4']:.2f}%" in printed
    assert found["by_class"]["pgd4"]["worst"] <= found["accuracy"]["pgd4"]
    # By hand: both networks in [0, 1], each with its own normalisation.
    judge, maker = (load_classifier(each, checkpoint=name) for each, name in ((a, "final"), (b, "best")))
    images, labels = load("embedded", test_examples=20).test
    pixels = images / np.float32(255)
    key = named_key(jax.random.key(0), "evaluate")
    attack = bind(pgd, eps=0.2, step_size=read_step(a), steps=4)
    made = np.asarray(attack(maker, pixels, labels, key=key))
    by_hand = (judge.predict(made) == labels).mean()
    assert found["accuracy"]["pgd4"] == by_hand
    own = np.asarray(attack(judge, pixels, labels, key=key))
    assert (judge.predict(own) == labels).mean() < by_hand  # or this shows nothing
    flags = correct_under_attack(judge, images, labels, attack, source=maker, key=key, batch_size=7)
    assert flags.mean() == by_hand
    assert errors.run(report.main, [str(a)]) == 0
    header, _, row = (a / "report" / "transfer.md").read_text().splitlines()[:3]
    cells = dict(zip(*([cell.strip() for cell in line.split("|")] for line in (header, row))))
    assert cells["PGD-4 from b best Final"].strip("*") == f"{100 * by_hand:.2f}"


def read_step(run):
    return json.loads((run / "config.json").read_text())["evaluation"]["step_size"]


def test_it_goes_on_and_knows_what_it_was_made_on(runs, tmp_path, capsys):
    a, b = tmp_path / "a", tmp_path / "b"
    shutil.copytree(runs / "a", a)
    shutil.copytree(runs / "b", b)
    (a / "evaluation.json").unlink(missing_ok=True)
    last = b / "checkpoints" / "last"
    assert call(a, "--attacks=pgd2", f"--from={last}") == 0
    content = json.loads((a / "evaluation.json").read_text())
    found = content["checkpoints"]["final"]["transfer"][str(last)]
    assert found["epoch"] == 6
    assert content["checkpoints"]["final"]["accuracy"] == {}
    found["accuracy"]["pgd2"] = 0.123
    (a / "evaluation.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert call(a, "--attacks=pgd2,fgsm", f"--from={last}", "--resume") == 0
    assert "pgd2 from" in capsys.readouterr().out
    content = json.loads((a / "evaluation.json").read_text())
    assert content["checkpoints"]["final"]["transfer"][str(last)]["accuracy"]["pgd2"] == 0.123
    # Of other weights of the source nothing stays; white-box accuracies come beside it.
    content["checkpoints"]["final"]["transfer"][str(last)]["epoch"] = 5
    (a / "evaluation.json").write_text(json.dumps(content))
    assert call(a, "--attacks=pgd2", f"--from={last}", "--resume") == 0
    assert call(a, "--attacks=clean", "--resume") == 0
    point = json.loads((a / "evaluation.json").read_text())["checkpoints"]["final"]
    assert list(point["transfer"][str(last)]["accuracy"]) == ["pgd2"]
    assert point["transfer"][str(last)]["accuracy"]["pgd2"] != 0.123
    assert list(point["accuracy"]) == ["clean"]
    # What was found on weights that are no more goes.
    stale = a / "robustness" / "final-square2"
    stale.mkdir(parents=True)
    content = json.loads((a / "evaluation.json").read_text())
    content["checkpoints"]["final"]["epoch"] = 5
    (a / "evaluation.json").write_text(json.dumps(content))
    assert call(a, "--attacks=fgsm", f"--from={last}", "--resume") == 0
    assert not stale.exists()
    point = json.loads((a / "evaluation.json").read_text())["checkpoints"]["final"]
    assert (point["epoch"], point["accuracy"]) == (6, {})
    assert list(point["transfer"][str(last)]["accuracy"]) == ["fgsm"]
    # Without attacks those of the config that make images.
    assert call(a, f"--from={b}", "--resume") == 0
    point = json.loads((a / "evaluation.json").read_text())["checkpoints"]["final"]
    assert list(point["transfer"][str(b / "checkpoints" / "best")]["accuracy"]) == ["pgd2", "cw2"]


def test_what_cannot_transfer_is_refused(runs, tmp_path, capsys):
    a, b = runs / "a", tmp_path / "b"
    shutil.copytree(runs / "b", b)

    def fails(*more):
        assert call(a, *more) == 2
        return capsys.readouterr().err

    assert f"from='{tmp_path}' holds no run" in fails("--attacks=pgd2", f"--from={tmp_path}")
    assert "is not a checkpoint; there are best, last" in fails("--attacks=pgd2", f"--from={b}/checkpoints/newest")
    for attack in ("clean", "aa", "apgd-ce5", "fmn5", "aa-union"):
        assert f"attack '{attack}' cannot transfer; give an attack such as pgd20" in fails(
            f"--attacks={attack}", f"--from={b}"
        )
    told = fails("--config.evaluation.final_attacks=clean", f"--from={b}")
    assert "evaluation.final_attacks has no attack that can transfer; give --attacks" in told
    data = json.loads((b / "data.json").read_text())
    data["train"]["image_shape"] = [32, 32, 3]
    (b / "data.json").write_text(json.dumps(data))
    told = fails("--attacks=pgd2", f"--from={b}")
    assert "was trained on images of shape (32, 32, 3), and these have (28, 28, 1)" in told
    config = json.loads((b / "config.json").read_text())
    config["dataset"]["name"] = "fashion_mnist"
    (b / "config.json").write_text(json.dumps(config))
    assert f"was trained on fashion_mnist, and {a} on embedded" in fails("--attacks=pgd2", f"--from={b}")
