"""The commands as a user runs them, in this process: two tiny epochs, and everything done wrong."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.analysis import load_run
from piat_jax.attacks.ensemble import ensemble
from piat_jax.checkpoint import Checkpoints
from piat_jax.cli import errors, evaluate, sweep, train
from piat_jax.core.checks import InputError
from piat_jax.core.nested import leaves
from piat_jax.data import load
from piat_jax.evaluation import AutoAttack, MinimumNorms, Robustness, UnionRobustness
from piat_jax.experiment import Run, data, hooks, run_evaluation, run_training
from piat_jax.experiment.config import load as read_config
from piat_jax.experiment.console import AttackLines
from piat_jax.experiment.provenance import describe_run
from piat_jax.experiment.run import LATER
from piat_jax.experiment.run_evaluation import is_evaluated
from piat_jax.interop import state_dict
from piat_jax.interop.tensors import write_safetensors
from piat_jax.models import LinenModel, create
from piat_jax.models.batch_norm import BatchNorm
from piat_jax.training import epoch as epoch_module
from piat_jax.training.progress import TrainingProgress

TINY = [
    "--config.dataset.train_examples=40",
    "--config.dataset.test_examples=20",
    "--config.batch_size=16",
    "--config.epochs=2",
    "--config.model.options.width=2",
    "--config.model.options.stage_sizes=1",
    "--config.attack.steps=1",
    "--config.evaluation.every_epochs=1",
    "--config.evaluation.attacks=clean,pgd2",
    "--config.evaluation.select=pgd2",
    "--config.evaluation.final_attacks=clean,pgd2,cw2",
    "--config.evaluation.batch_size=20",
    "--config.checkpoint.every_epochs=1",
    "--noconfig.log.tensorboard",
]


def command(folder, *more, config="configs/embedded.py:nmse+piat"):
    return errors.run(train.main, [f"--config={config}", f"--workdir={folder}", *TINY, *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert command(folder) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose network tells images apart, as that of `run` does not."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    longer = ("--config.dataset.train_examples=400", "--config.epochs=8", "--config.model.options.width=4")
    assert command(folder, *longer, config="embedded:standard") == 0
    return folder


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_a_run_leaves(run):
    config = json.loads((run / "config.json").read_text())
    assert config["method"] == "nmse+piat"
    assert config["attack"]["steps"] == 1
    described = json.loads((run / "run.json").read_text())
    assert described["versions"]["jax"] == jax.__version__
    assert {"command", "started", "devices", "backend", "commit"} <= set(described)
    first, second = metrics(run)
    assert (first["epoch"], second["epoch"], second["step"]) == (1, 2, 4)
    assert first["learning_rate"] == pytest.approx(read_config("configs/embedded.py:piat", {}).optimizer.lr_values[0])
    least = 2e8 if jax.default_backend() == "cpu" else 1e5  # of a CPU's, JAX alone takes more
    assert least < first["peak_memory_bytes"] <= second["peak_memory_bytes"] < 1e11
    for name in ("train_loss", "train_adversarial_accuracy", "test_clean", "test_pgd2", "images_per_second"):
        assert np.isfinite(second[name])
    checkpoints = Checkpoints(run / "checkpoints")
    assert checkpoints.info("last")["epoch"] == 2
    best = max((first, second), key=lambda record: record["test_pgd2"])
    assert checkpoints.info("best")["epoch"] == best["epoch"]


def test_it_starts_from_weights(run, tmp_path, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(run_training, "fit", lambda state, *arguments, **options: started.append(state))
    assert command(tmp_path / "again", f"--config.model.weights={run}", config="configs/embedded.py:pgd_at+ema") == 0
    assert f"from {run}: " in capsys.readouterr().out
    (state,) = started
    saved = Checkpoints(run / "checkpoints").load_variables("best", jax.eval_shape(lambda: state.variables))
    jax.tree.map(np.testing.assert_array_equal, tuple(state.variables), tuple(saved))
    jax.tree.map(np.testing.assert_array_equal, state.average.variables.params, saved.params)


def test_weights_that_cannot_be_started_from(run, tmp_path, capsys):
    files = {"absent.pt": "is not a file", run: "is of another model"}
    for file, message in files.items():
        assert command(tmp_path / "x", f"--config.model.weights={file}", "--config.model.options.width=3") == 2
        error = capsys.readouterr().err
        assert error.startswith("error: model.weights: ")
        assert message in error
    normalised = create("small_resnet", num_classes=10, width=2, stage_sizes=(1,))
    variables = normalised.init(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))
    buffers = {"mean": np.array([0.25], np.float32), "std": np.array([0.5], np.float32)}
    write_safetensors(tmp_path / "net.safetensors", {**state_dict(normalised, variables), **buffers})
    assert command(tmp_path / "x", f"--config.model.weights={tmp_path / 'net.safetensors'}") == 2
    assert "expect images normalised by mean=(0.25,), std=(0.5,); set config.model.mean" in capsys.readouterr().err
    # A run's own are found as well: its config says them.
    shutil.copytree(run, tmp_path / "normalised")
    config = json.loads((run / "config.json").read_text())
    config["model"] |= {"mean": [0.25], "std": [0.5]}
    (tmp_path / "normalised" / "config.json").write_text(json.dumps(config))
    assert command(tmp_path / "x", f"--config.model.weights={tmp_path / 'normalised'}") == 2
    assert "expect images normalised by mean=(0.25,), std=(0.5,); set config.model.mean" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_evaluate_writes_best_and_final_and_agrees_with_training(run, capsys):
    assert errors.run(evaluate.main, [f"--workdir={run}"]) == 0
    printed = capsys.readouterr().out
    result = json.loads((run / "evaluation.json").read_text())
    assert result["num_examples"] == 20
    assert set(result["checkpoints"]) == {"best", "final"}
    final = result["checkpoints"]["final"]
    assert final["epoch"] == 2
    assert set(final["accuracy"]) == {"clean", "pgd2", "cw2"}
    last = metrics(run)[-1]
    assert (final["accuracy"]["clean"], final["accuracy"]["pgd2"]) == (last["test_clean"], last["test_pgd2"])
    assert "final (epoch 2)  clean" in printed


def test_accuracies_by_class(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    path = folder / "evaluation.json"
    path.unlink(missing_ok=True)
    arguments = [f"--workdir={folder}", "--attacks=clean,apgd-ce5", "--config.evaluation.eps=1.0"]
    assert errors.run(evaluate.main, arguments) == 0
    printed = capsys.readouterr().out
    content = json.loads(path.read_text())
    labels = load("embedded", test_examples=20).test.labels
    sizes = np.bincount(labels, minlength=10)
    assert len(content["class_names"]) == 10
    for point in content["checkpoints"].values():
        assert list(point["by_class"]) == ["clean", "apgd-ce5"]
        for attack, found in point["by_class"].items():
            assert [value is None for value in found["classes"]] == (sizes == 0).tolist()
            known = np.array([value or 0 for value in found["classes"]])
            assert known @ sizes / 20 == pytest.approx(point["accuracy"][attack], abs=1e-6)
            assert found["worst"] == min(value for value in found["classes"] if value is not None)
            number = found["classes"].index(found["worst"])
            assert found["worst_class"] == content["class_names"][number]
    robust = Robustness.load(folder / "robustness" / "final-apgd-ce5")
    final = content["checkpoints"]["final"]
    assert final["accuracy"]["apgd-ce5"] == robust.accuracy < robust.clean_accuracy
    assert final["by_class"]["apgd-ce5"]["worst"] == robust.worst_class.accuracy
    found = final["by_class"]["clean"]
    line = f"final (epoch 2)  clean {100 * content['checkpoints']['final']['accuracy']['clean']:.2f}%  worst class"
    assert f"{line} {found['worst_class']} {100 * found['worst']:.2f}%  " in printed
    # What an earlier version kept has none; it is read, gone on with and reported.
    for point in content["checkpoints"].values():
        del point["by_class"]
    del content["class_names"]
    path.write_text(json.dumps(content))
    assert load_run(folder).checkpoints["final"].by_class == {}
    assert errors.run(evaluate.main, [f"--workdir={folder}", "--attacks=clean,fgsm", "--resume", arguments[-1]]) == 0
    printed = capsys.readouterr().out
    clean = content["checkpoints"]["final"]["accuracy"]["clean"]
    assert f"final (epoch 2)  clean {100 * clean:.2f}%  known" in printed
    again = json.loads(path.read_text())["checkpoints"]["final"]
    assert list(again["accuracy"]) == ["clean", "apgd-ce5", "fgsm"]
    assert list(again["by_class"]) == ["fgsm"]
    assert list(load_run(folder).checkpoints["final"].by_class) == ["fgsm"]


def test_a_run_of_an_earlier_version_is_read_with_what_came_later(tmp_path):
    earlier = {"average.warmup": "false", "attack.l2_rule": "exact", "log.images": "0"}
    today = read_config("configs/embedded.py:rpat+ema", earlier)
    plain = today.plain()
    for path in LATER:
        group, _, name = path.rpartition(".")
        del (plain[group] if group else plain)[name]
    (tmp_path / "config.json").write_text(json.dumps(plain))
    assert Run(tmp_path).experiment().plain() == today.plain()
    # Nor is it another run to go on with.
    Run(tmp_path).check_free(today, resume=True, overwrite=False)
    # An average that was not warmed up goes on warmed up; those that always were have no such field.
    Run(tmp_path).check_free(read_config("configs/embedded.py:rpat+ema", {}), resume=True, overwrite=False)
    # How L2 steps are taken makes another run of it in L2 alone.
    for norm, message in (("linf", None), ("l2", "attack.l2_rule: exact -> advertorch")):
        before = read_config("configs/embedded.py:rpat+ema", {**earlier, "attack.norm": norm})
        (tmp_path / "config.json").write_text(json.dumps(before.plain()))
        later = read_config("configs/embedded.py:rpat+ema", {"average.warmup": "false", "attack.norm": norm})
        with pytest.raises(InputError, match=message) if message else contextlib.nullcontext():
            Run(tmp_path).check_free(later, resume=True, overwrite=False)
    for method in ("seat", "swa", "fawa"):
        other = read_config(f"configs/embedded.py:{method}", {}).plain()
        (tmp_path / "config.json").write_text(json.dumps(other))
        assert Run(tmp_path).experiment().plain() == other
    # Whatever is added to the config from here on has to be added there, for the runs that are there already.
    fields = leaves(today.plain())
    assert len(fields) == 103, "a new field: give runs without it what they did, in LATER"


def test_the_union_of_three_norms(run, tmp_path, capsys, monkeypatch):
    """The accuracies by norm are AutoAttack's; stopped, it goes on; its parts stand for themselves."""
    quick = {"steps": 4, "queries": 3, "targets": 1, "restarts": 1}
    monkeypatch.setattr(AutoAttack, "members", lambda self: ensemble(norm=self.norm, **quick))

    def evaluated(folder, *more, code=0):
        arguments = [f"--workdir={folder}", "--checkpoint=final", "--config.evaluation.union_eps=1,6,150", *more]
        assert errors.run(evaluate.main, arguments) == code
        return capsys.readouterr()

    folders = [tmp_path / name for name in ("whole", "stopped")]
    for folder in folders:
        shutil.copytree(run, folder)
        (folder / "evaluation.json").unlink(missing_ok=True)
    whole, stopped = folders
    printed = evaluated(whole, "--attacks=clean,aa-union").out
    point = json.loads((whole / "evaluation.json").read_text())["checkpoints"]["final"]
    accuracy = point["accuracy"]
    assert list(accuracy) == ["clean", "aa-linf", "aa-l2", "aa-l1", "aa-union"]
    found = {norm: Robustness.load(whole / "robustness" / f"final-aa-{norm}") for norm in ("linf", "l2", "l1")}
    assert {norm: (each.settings["norm"], each.settings["eps"]) for norm, each in found.items()} == {
        "linf": ("linf", 1.0),
        "l2": ("l2", 6.0),
        "l1": ("l1", 150.0),
    }
    assert {norm: each.accuracy for norm, each in found.items()} == {n: accuracy[f"aa-{n}"] for n in found}
    union = UnionRobustness(found)
    assert accuracy["aa-union"] == union.accuracy
    assert str(union) in printed
    assert set(point["by_class"]) == set(accuracy)

    # Stopped in the second norm.
    attack = AutoAttack.run

    def interrupted(self, *arguments, **options):
        if self.norm == "l2":
            raise KeyboardInterrupt
        return attack(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(AutoAttack, "run", interrupted)
        evaluated(stopped, "--attacks=clean,aa-union", code=130)
    assert "aa-union" not in json.loads((stopped / "evaluation.json").read_text())["checkpoints"]["final"]["accuracy"]
    assert "holds a finished evaluation; give --resume" in evaluated(stopped, "--attacks=aa-union", code=2).err
    seconds = Robustness.load(stopped / "robustness" / "final-aa-linf").seconds
    evaluated(stopped, "--attacks=clean,aa-union", "--resume")
    assert json.loads((stopped / "evaluation.json").read_text())["checkpoints"]["final"] == point
    assert Robustness.load(stopped / "robustness" / "final-aa-linf").seconds == seconds
    # Of a part whose folder is gone the union needs more than the accuracy.
    content = json.loads((stopped / "evaluation.json").read_text())
    del content["checkpoints"]["final"]["accuracy"]["aa-union"]
    (stopped / "evaluation.json").write_text(json.dumps(content))
    shutil.rmtree(stopped / "robustness" / "final-aa-l1")
    evaluated(stopped, "--attacks=aa-union", "--resume")
    assert json.loads((stopped / "evaluation.json").read_text())["checkpoints"]["final"] == point
    # All is known; other radii are another evaluation, and have to be three.
    assert "aa-union" in evaluated(stopped, "--attacks=aa-union,aa-l1", "--resume").out
    other = "--config.evaluation.union_eps=1,6,100"
    assert (
        "union_eps [1.0, 6.0, 150.0] there, [1.0, 6.0, 100.0] here" in evaluated(stopped, "--resume", other, code=2).err
    )
    default = ["--attacks=clean", "--resume", "--config.evaluation.union_eps=8/255,0.5,12"]
    assert "union_eps [1.0, 6.0, 150.0] there, [0.0313" in evaluated(stopped, *default, code=2).err
    two = ("--config.evaluation.union_eps=1,2", "--attacks=aa-l2")
    told = evaluated(stopped, "--resume", *two, code=2).err
    assert "evaluation.union_eps=(1.0, 2.0) has 2 radii; give one for each of linf, l2, l1" in told


def test_minimum_norms(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)

    def evaluated(*more, code=0):
        arguments = [f"--workdir={folder}", "--config.evaluation.norm=l2", "--config.evaluation.eps=0.5", *more]
        assert errors.run(evaluate.main, arguments) == code
        return capsys.readouterr()

    printed = evaluated("--attacks=clean,ddn30,fmn30,fab-norm5").out
    content = json.loads((folder / "evaluation.json").read_text())
    assert list(content["checkpoints"]["final"]["accuracy"]) == ["clean", "ddn30", "fmn30", "fab-norm5"]
    for name, point in content["checkpoints"].items():
        assert list(point["minimum_norm"]) == ["ddn30", "fmn30", "fab-norm5"]
        for attack, kept in point["minimum_norm"].items():
            with np.load(folder / "robustness" / f"{name}-{attack}" / "norms.npz") as stored:
                found = MinimumNorms("l2", stored["labels"], stored["clean"], stored["distances"])
            assert found.clean.mean() == point["accuracy"]["clean"]
            assert found.robust_at(0.5).mean() == point["accuracy"][attack]
            assert found.summary() == kept
            assert (folder / "robustness" / f"{name}-{attack}" / "curve.csv").read_text() == found.to_csv()
            assert f"{attack}: {found}\n" in printed
    curves = load_run(folder).checkpoints["final"].minimum_norm
    assert curves["fmn30"].median == content["checkpoints"]["final"]["minimum_norm"]["fmn30"]["median"]
    # What is known stays; the best checkpoint's numbers are taken over where it is the final one.
    before = files(folder)
    assert "fmn30" in evaluated("--attacks=fmn30", "--resume").out
    assert {path: text for path, text in files(folder).items() if path.name != "evaluation.json"} == {
        path: text for path, text in before.items() if path.name != "evaluation.json"
    }
    shutil.rmtree(folder / "checkpoints" / "best")
    shutil.copytree(folder / "checkpoints" / "last", folder / "checkpoints" / "best")
    shutil.rmtree(folder / "robustness")
    (folder / "evaluation.json").unlink()
    told = evaluated("--attacks=fmn30", f"--config.evaluation.eps={curves['fmn30'].median}").out
    assert told.count("fmn30: median") == 1
    best, final = json.loads((folder / "evaluation.json").read_text())["checkpoints"].values()
    assert (
        best["minimum_norm"]["fmn30"]
        == final["minimum_norm"]["fmn30"]
        == content["checkpoints"]["final"]["minimum_norm"]["fmn30"]
    )
    assert 0 < best["accuracy"]["fmn30"] < content["checkpoints"]["final"]["accuracy"]["clean"]
    assert (folder / "robustness" / "final-fmn30" / "curve.csv").exists()
    for attack, message in (
        ("fmn", "attack 'fmn' needs its number of steps; did you mean 'fmn100'?"),
        ("fmn0", "attack 'fmn0': steps=0 must be at least 1"),
    ):
        assert message in evaluated(f"--attacks={attack}", "--overwrite", code=2).err
    told = evaluated("--attacks=ddn9", "--overwrite", "--config.evaluation.norm=linf", code=2).err
    assert "attack 'ddn9': evaluation.norm='linf' is not supported by ddn; give 'l2', or use fmn or fab" in told


def test_evaluate_options(run, capsys):
    arguments = [str(run), "--checkpoint=final", "--attacks=clean,fgsm", "--num_examples=7"]
    assert errors.run(evaluate.main, [str(run), "--attacks=clean", "--overwrite"]) == 0
    capsys.readouterr()
    before = files(run)
    assert errors.run(evaluate.main, [*arguments, "--config.evaluation.eps=1/255", "--resume"]) == 2
    told = capsys.readouterr().err
    assert "holds another evaluation (num_examples 20 there, 7 here; eps 0.1 there, 0.00392" in told
    assert "give --overwrite to replace it" in told
    assert files(run) == before
    assert errors.run(evaluate.main, [*arguments, "--config.evaluation.eps=1/255", "--overwrite"]) == 0
    result = json.loads((run / "evaluation.json").read_text())
    assert result["num_examples"] == 7
    assert set(result["checkpoints"]) == {"final"}
    assert set(result["checkpoints"]["final"]["accuracy"]) == {"clean", "fgsm"}
    assert result["settings"]["eps"] == 1 / 255


def test_a_resumed_evaluation_keeps_what_was_found(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    path = folder / "evaluation.json"
    path.unlink(missing_ok=True)

    def evaluated(*more):
        assert errors.run(evaluate.main, [f"--workdir={folder}", *more]) == 0
        return json.loads(path.read_text())

    content = evaluated("--attacks=clean")
    content["checkpoints"]["final"]["accuracy"]["clean"] = 0.123
    path.write_text(json.dumps(content))
    config = read_config(
        "configs/embedded.py:nmse+piat", {a.partition("=")[0][9:]: a.partition("=")[2] for a in TINY[:-1]}
    )
    config = config.with_fields({"evaluation.final_attacks": ("clean", "square2")})
    assert not is_evaluated(config, Run(folder), aa_examples=7)
    content = evaluated("--attacks=clean,square2", "--aa_examples=7", "--resume")
    assert content["checkpoints"]["final"]["accuracy"]["clean"] == 0.123
    assert len(Robustness.load(folder / "robustness" / "final-square2").robust) == content["aa_examples"] == 7
    assert is_evaluated(config, Run(folder), aa_examples=7)
    assert not is_evaluated(config, Run(folder))
    # What comes later leaves AutoAttack's examples as they were; AutoAttack on others is another evaluation.
    content = evaluated("--attacks=clean,fgsm", "--resume")
    assert list(content["checkpoints"]["final"]["accuracy"]) == ["clean", "square2", "fgsm"]
    assert content["aa_examples"] == 7
    before = files(folder)
    for flag in ("--resume", ""):
        arguments = [f"--workdir={folder}", "--attacks=clean,square3", "--aa_examples=5", *filter(None, [flag])]
        assert errors.run(evaluate.main, arguments) == 2
        assert "(aa_examples 7 there, 5 here); give --overwrite" in capsys.readouterr().err
    assert errors.run(evaluate.main, [f"--workdir={folder}", "--attacks=square2"]) == 2
    assert "best-square2 holds a finished evaluation; give --resume to keep it" in capsys.readouterr().err
    # What cannot be done takes nothing away.
    arguments = [f"--workdir={folder}", "--attacks=square2", "--num_examples=100000", "--overwrite"]
    assert errors.run(evaluate.main, arguments) == 2
    assert files(folder) == before
    assert evaluated("--attacks=clean")["checkpoints"]["final"]["accuracy"]["clean"] != 0.123


def test_a_run_that_was_trained_on_is_evaluated_anew(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "evaluation.json").unlink(missing_ok=True)
    arguments = [f"--workdir={folder}", "--checkpoint=final", "--attacks=square3", "--resume"]
    assert errors.run(evaluate.main, arguments) == 0
    before = Robustness.load(folder / "robustness" / "final-square3")
    assert command(folder, "--resume", "--config.epochs=3") == 0
    capsys.readouterr()
    assert errors.run(evaluate.main, arguments) == 0
    told = f"note: {folder}: final was trained on since its last evaluation (epoch 2, now 3); its results from then are"
    assert f"{told} dropped: square3\n" in capsys.readouterr().err
    after = Robustness.load(folder / "robustness" / "final-square3")
    assert after.seconds != before.seconds
    point = json.loads((folder / "evaluation.json").read_text())["checkpoints"]["final"]
    assert (point["epoch"], point["accuracy"]["square3"]) == (3, after.accuracy)


def test_a_best_checkpoint_that_is_the_final_one_is_evaluated_once(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "evaluation.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "checkpoints" / "best")
    shutil.copytree(folder / "checkpoints" / "last", folder / "checkpoints" / "best")
    arguments = [f"--workdir={folder}", "--attacks=clean,square3"]
    assert errors.run(evaluate.main, arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count("robust accuracy") == 1
    assert "final (epoch 2)  square3" in printed
    best, final = json.loads((folder / "evaluation.json").read_text())["checkpoints"].values()
    assert best == final
    one, other = (Robustness.load(folder / "robustness" / f"{name}-square3") for name in ("best", "final"))
    assert one.accuracy == best["accuracy"]["square3"]
    assert one.seconds == other.seconds  # a copy
    # The best one alone again, then the final one with what is known; not with what has been lost.
    assert errors.run(evaluate.main, [*arguments, "--checkpoint=best", "--overwrite"]) == 0
    shutil.rmtree(folder / "robustness" / "final-square3")
    (folder / "evaluation.json").write_text(json.dumps(_without_final(folder)))
    capsys.readouterr()
    assert errors.run(evaluate.main, [*arguments, "--checkpoint=final", "--resume"]) == 0
    assert "robust accuracy" not in capsys.readouterr().out
    shutil.rmtree(folder / "robustness")
    (folder / "evaluation.json").write_text(json.dumps(_without_final(folder)))
    assert errors.run(evaluate.main, [*arguments, "--checkpoint=final", "--resume"]) == 0
    assert "robust accuracy" in capsys.readouterr().out


def _without_final(folder):
    content = json.loads((folder / "evaluation.json").read_text())
    del content["checkpoints"]["final"]
    return content


def test_a_run_that_was_stopped_within_an_epoch_has_other_weights():
    point = {"epoch": 2, "accuracy": {"clean": 0.5}}
    assert run_evaluation.is_at(point, {"epoch": 2, "steps": 0})
    assert not run_evaluation.is_at(point, {"epoch": 2, "steps": 1})
    assert not run_evaluation.is_at({**point, "steps": 1}, {"epoch": 2, "steps": 0})
    assert not run_evaluation.is_at(None, {"epoch": 2, "steps": 0})


def test_autoattack_stopped_and_resumed(run, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "evaluation.json").unlink(missing_ok=True)
    arguments = [f"--checkpoint={folder}/checkpoints/last", "--config.evaluation.batch_size=8"]
    assert errors.run(evaluate.main, [*arguments, "--attacks=clean"]) == 0
    result = json.loads((folder / "evaluation.json").read_text())
    attacks = "--attacks=apgd-ce2,square3"

    def interrupt(self, progress):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AttackLines, "__call__", interrupt)
        assert errors.run(evaluate.main, [*arguments, attacks]) == 130
    capsys.readouterr()
    kept = files(folder)
    assert errors.run(evaluate.main, [*arguments, attacks]) == 2
    assert "final-apgd-ce2 holds an evaluation that was stopped; give --resume" in capsys.readouterr().err
    assert errors.run(evaluate.main, [*arguments, attacks, "--resume", "--overwrite"]) == 2
    capsys.readouterr()
    assert files(folder) == kept
    assert errors.run(evaluate.main, [*arguments, attacks, "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "robust accuracy" in printed
    found = json.loads((folder / "evaluation.json").read_text())["checkpoints"]["final"]["accuracy"]
    # What was known before is kept, and the two attacks agree with their own files.
    assert found["clean"] == result["checkpoints"]["final"]["accuracy"]["clean"]
    for attack in ("apgd-ce2", "square3"):
        stored = Robustness.load(folder / "robustness" / f"final-{attack}")
        assert found[attack] == stored.accuracy
        assert stored.clean_accuracy == found["clean"]
    # Started again from nothing it finds the same.
    assert errors.run(evaluate.main, [*arguments, "--attacks=apgd-ce2", "--overwrite"]) == 0
    again = Robustness.load(folder / "robustness" / "final-apgd-ce2")
    assert again.seconds != stored.seconds
    assert found == json.loads((folder / "evaluation.json").read_text())["checkpoints"]["final"]["accuracy"]


def test_a_run_is_not_mixed_with_another(run, capsys):
    before = files(run)
    assert command(run) == 2
    assert "holds this run with 2 of 2 epochs done; give --resume" in capsys.readouterr().err
    assert command(run, "--config.seed=5", "--config.attack.eps=0.2") == 2
    told = capsys.readouterr().err
    assert "holds another run (attack.eps: 0.1 -> 0.2; evaluation.eps: 0.1 -> 0.2; seed: 0 -> 5)" in told
    assert command(run, "--config.seed=5", "--resume") == 2
    assert "cannot be resumed with this config" in capsys.readouterr().err
    assert command(run, "--resume", "--overwrite") == 2
    assert files(run) == before


def test_a_signal_saves_within_the_epoch_and_the_resumed_run_ends_as_an_uninterrupted_one(
    run, tmp_path, capsys, monkeypatch
):
    stopped = tmp_path / "stopped"

    def interrupt(self, epoch, done, total):
        if (epoch, done) == (2, 1):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "chunk", interrupt)
        # There is nothing to resume yet, so a run begins.
        assert command(stopped, "--resume", "--config.log.steps_per_chunk=1") == errors.SAVED
    told = capsys.readouterr()
    assert f"in {stopped}, from epoch 1\n" in told.out
    assert "saved in epoch 2 after 1 of 2 steps; the same command with --resume" in told.err
    assert Checkpoints(stopped / "checkpoints").info("last")["position"]["steps"] == 1
    # Its accuracies are not those of the end of an epoch.
    assert errors.run(evaluate.main, [f"--workdir={stopped}", "--checkpoint=final", "--attacks=clean"]) == 0
    evaluated = json.loads((stopped / "evaluation.json").read_text())["checkpoints"]["final"]
    assert (evaluated["epoch"], evaluated["steps"]) == (1, 1)
    # Neither the metrics' file nor the newest checkpoint is needed, and how it is evaluated may change.
    (stopped / "metrics.jsonl").write_text('{"epo')
    newest = max((stopped / "checkpoints" / "last").iterdir())
    shutil.rmtree(newest / "training")
    assert command(stopped, "--resume", "--config.checkpoint.every_epochs=2") == 0
    told = capsys.readouterr()
    assert f"checkpoint {newest} cannot be read" in told.err
    assert f"in {stopped}, from epoch 2\n" in told.out
    assert metrics(stopped) == [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    timing = ("images_per_second", "train_seconds", "evaluate_seconds", "peak_memory_bytes")
    for one, other in zip(metrics(run), metrics(stopped), strict=True):
        assert {k: v for k, v in one.items() if k not in timing} == {k: v for k, v in other.items() if k not in timing}


def best_of(folder):
    return Checkpoints(folder / "checkpoints").info("best")


def test_the_best_stays_where_others_are_measured_otherwise(run, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    before = best_of(folder)
    scores = {"test_clean": 1.0, "test_pgd2": 1.0}
    monkeypatch.setattr(run_training, "monitor", lambda *arguments, **options: lambda state, epoch: scores)
    assert command(folder, "--resume", "--config.epochs=3", "--config.evaluation.eps=0.0001") == 0
    told = capsys.readouterr().err
    assert f"of epoch {before['epoch']}, was chosen under other settings (eps: 0.1 -> 0.0001)" in told
    assert best_of(folder) == before
    # As at first again: what was measured otherwise meanwhile does not count.
    scores = {"test_clean": 1.0, "test_pgd2": 0.9}
    assert command(folder, "--resume", "--config.epochs=4", "--config.evaluation.eps=0.1") == 0
    assert "other settings" not in capsys.readouterr().err
    assert best_of(folder)["epoch"] == 4


def test_a_run_is_not_resumed_with_other_data(run, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    kept = files(folder)
    real = data.load

    def other(*arguments, **options):
        data = real(*arguments, **options)
        return dataclasses.replace(data, test=data.test._replace(images=255 - data.test.images))

    with monkeypatch.context() as patch:
        patch.setattr(data, "load", other)
        assert command(folder, "--resume", "--config.epochs=3") == 2
    assert "began with other data (monitor.images: " in capsys.readouterr().err
    assert files(folder) == kept
    # A run of an older version does not say which; it is told from then on, and holds out the last ones as it did.
    (folder / "data.json").unlink()
    assert Run(folder).hold_out_how() == "last"
    assert command(folder, "--resume") == 0
    assert json.loads((folder / "data.json").read_text())["hold_out"] == "last"
    assert json.loads((run / "data.json").read_text())["hold_out"] == "by class"


def test_fewer_epochs_than_are_done_change_nothing(run, capsys):
    before = files(run)
    assert command(run, "--resume", "--config.epochs=1") == 2
    assert "epochs=1 is less than the 2 that the run in" in capsys.readouterr().err
    after = files(run)
    assert {path for path in before if before[path] != after[path]} <= {run / "lock"}


def test_a_folder_has_one_run_at_a_time(run, tmp_path, capsys):
    before = files(run)
    with Run(run).locked():
        assert command(run, "--resume", "--config.epochs=3") == 2
        assert f"is in use by process {os.getpid()}, which trains in it" in capsys.readouterr().err
        assert command(run, "--overwrite") == 2
    assert {path: files(run)[path] for path in before if path.name != "lock"} == {
        path: content for path, content in before.items() if path.name != "lock"
    }
    # Nothing is left behind: a finished run resumed does nothing.
    assert command(run, "--resume") == 0
    with Run(tmp_path / "new").locked():
        assert command(tmp_path / "new") == 2
        assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["lock"]


def test_a_folder_that_cannot_be_written_is_named(capsys):
    assert command("/proc/run") == 2
    assert "error: /proc/run cannot be written: " in capsys.readouterr().err


def test_the_command_that_is_kept_does_not_name_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr(sys, "argv", ["/home/ada/bin/piat-train", "--workdir=/home/ada/runs/x", "--config=c.py"])
    assert describe_run()["command"] == ["piat-train", "--workdir=~/runs/x", "--config=c.py"]


def test_overwrite_starts_again(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    assert command(folder, "--config.epochs=1", "--config.seed=1", "--overwrite") == 0
    assert json.loads((folder / "config.json").read_text())["seed"] == 1
    assert len(metrics(folder)) == 1


def test_recomputed_batch_statistics_and_validation_examples(tmp_path):
    folder = tmp_path / "run"
    more = ["--config.piat.batch_stats=recompute", "--config.dataset.validation_examples=8", "--config.epochs=1"]
    assert command(folder, *more) == 0
    assert "validation_pgd2" in metrics(folder)[0]
    assert "test_pgd2" not in metrics(folder)[0]


def test_statistics_are_estimated_anew_on_mixed_images():
    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return BatchNorm(train)(images).mean((1, 2))

    images = jnp.repeat(jnp.array([0, 255], jnp.uint8), 8).reshape(16, 1, 1, 1)  # class by class
    config = read_config("configs/embedded.py:piat", {"batch_size": "4"})
    model = LinenModel(Normalised())
    variables = model.init(jax.random.key(0), jnp.zeros((1, 1, 1, 1)))
    hook = hooks._recomputed(config, model, images, lambda state: state, lambda state, new: new)
    (statistics,) = hook(variables, 1).model_state["batch_stats"].values()
    assert 0.1 < float(statistics["var"][0]) <= 0.25  # 0 in the order they lie in


def refused(tmp_path, capsys, *arguments, **options):
    folder = tmp_path / "new"
    assert command(folder, *arguments, **options) == 2
    assert not folder.exists()
    told = capsys.readouterr()
    assert told.out == ""
    assert all(line.startswith("error: ") for line in told.err.splitlines())
    assert "Traceback" not in told.err
    return told.err


def test_bad_input_is_one_line_exit_code_2_and_nothing_written(tmp_path, capsys):
    assert "did you mean 'attack.eps'" in refused(tmp_path, capsys, "--config.attack.esp=0.1")
    assert "must be in (0, 1]" in refused(tmp_path, capsys, "--config.attack.eps=8")
    assert "did you mean 'trades'" in refused(tmp_path, capsys, config="configs/embedded.py:tradess")
    assert "did you mean 'configs/embedded.py'" in refused(tmp_path, capsys, config="configs/embeded.py")
    told = refused(tmp_path, capsys, "--config.batch_size=64")
    assert told == "error: batch_size=64 is more than the 40 examples; give at most 40\n"
    told = refused(tmp_path, capsys, "--config.dataset.name=cifar10", f"--config.dataset.data_dir={tmp_path}/nowhere")
    assert f"{tmp_path}/nowhere" in told
    assert "train_examples=2000 is more than the 1024" in refused(
        tmp_path, capsys, "--config.dataset.train_examples=2000"
    )
    told = refused(tmp_path, capsys, "--config.dataset.validation_examples=40")
    assert "leaves nothing of the 40 training examples" in told
    told = refused(tmp_path, capsys, "--config.model.mean=0.1,0.2,0.3", "--config.model.std=1,1,1")
    assert "model.mean has 3 entries for images of 1 channels" in told
    assert "Unknown command line flag 'wrokdir'" in refused(tmp_path, capsys, "--wrokdir=x")
    assert "unexpected argument 'configs'" in refused(tmp_path, capsys, "configs")


def test_several_problems_are_several_lines(tmp_path, capsys):
    told = refused(tmp_path, capsys, "--config.nope=1", "--config.seed=x", "--config.epochs=0")
    assert len(told.splitlines()) == 3


def test_missing_flags_and_help(capsys):
    assert errors.run(train.main, []) == 2
    assert capsys.readouterr().err == "error: --config is missing; see --help\n"
    assert errors.run(train.main, ["--config=configs/embedded.py"]) == 2
    assert capsys.readouterr().err == "error: --workdir is missing; see --help\n"
    for module in (train, evaluate):
        assert errors.run(module.main, ["--help"]) == 0
        assert "--workdir" in capsys.readouterr().out


def test_a_comparison_done_wrong_starts_nothing(tmp_path, capsys):
    for arguments, message in (
        (["--methods=pgd_at,nmes"], "did you mean 'nmse'"),
        (["--seeds=0,x"], "config.seed='x' is not a whole number"),
        (["piat"], "unexpected argument 'piat'"),
    ):
        assert errors.run(sweep.main, ["--config=embedded", f"--workdir={tmp_path / 'new'}", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_of_other_files_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    for flag in ("--overwrite", "--resume"):
        assert command(tmp_path, flag) == 2
        assert "holds files that do not belong to a run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert command(tmp_path / "thesis.tex") == 2
    assert "is a file" in capsys.readouterr().err


def test_a_diverged_run_keeps_its_last_good_state_and_can_leave_the_step_out(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    real = epoch_module.train_step

    def explode(objective, optimizer, state, batch, **options):
        state, values = real(objective, optimizer, state, batch, **options)
        late = state.step > 3  # in the second epoch
        return state, {**values, "loss": jax.numpy.where(late, jax.numpy.inf, values["loss"])}

    monkeypatch.setattr(epoch_module, "train_step", explode)
    epoch_module.train_steps.clear_cache()
    assert command(folder) == 2
    told = capsys.readouterr().err
    assert "the loss became inf at step 4 (epoch 2, step 2 of 2, images " in told
    assert "Give --resume --config.nonfinite=skip" in told
    report = json.loads((folder / "diverged.json").read_text())
    assert (report["epoch"], report["step"], len(report["images"])) == (2, 2, 16)
    assert Checkpoints(folder / "checkpoints").info("last")["position"]["steps"] == 1
    assert command(folder, "--resume", "--config.nonfinite=skip") == 0
    epoch_module.train_steps.clear_cache()
    assert metrics(folder)[-1]["train_skipped_steps"] == 1
    assert np.isfinite(metrics(folder)[-1]["train_loss"])


def test_a_checkpoint_of_another_model_is_refused(run, capsys):
    arguments = [f"--workdir={run}", "--config.model.options.width=4", "--overwrite"]
    assert errors.run(evaluate.main, arguments) == 2
    told = capsys.readouterr().err
    assert "is of another model: " in told
    assert "in this config" in told


def test_of_several_folders_those_that_are_no_runs_are_left_out(run, tmp_path, capsys):
    (tmp_path / "report").mkdir()
    arguments = [str(tmp_path / "report"), str(run), "--attacks=clean", "--checkpoint=final", "--overwrite"]
    assert errors.run(evaluate.main, arguments) == 0
    told = capsys.readouterr()
    assert f"note: {tmp_path / 'report'} is not a run and is left out" in told.err
    assert "clean" in told.out
    assert errors.run(evaluate.main, [*arguments[1:-1], "--resume"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("%  known")


def test_evaluate_done_wrong(run, tmp_path, capsys):
    assert errors.run(evaluate.main, []) == 2
    assert "--workdir is missing" in capsys.readouterr().err
    assert errors.run(evaluate.main, [f"--workdir={tmp_path}"]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert errors.run(evaluate.main, [f"--workdir={run}", "--attacks=pgd20,wc20"]) == 2
    assert "did you mean 'cw20'" in capsys.readouterr().err
    assert errors.run(evaluate.main, [f"--workdir={run}", "--attacks=apgd_ce,aa20"]) == 2
    told = capsys.readouterr().err
    assert "attack 'apgd_ce' is unknown; did you mean 'apgd-ce'?" in told
    assert "attack 'aa20': aa takes no number" in told
    assert errors.run(evaluate.main, [f"--workdir={run}", "--checkpoint=bset"]) == 2
    assert "did you mean 'best'" in capsys.readouterr().err
    assert errors.run(evaluate.main, [f"--workdir={run}", "--num_examples=5000"]) == 2
    assert "test_examples=5000 is more than the 1000" in capsys.readouterr().err
