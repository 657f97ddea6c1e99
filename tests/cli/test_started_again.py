"""Folders in which a run ended before its first save, or that hold none, and runs that are resumed as others."""

import sys

import pytest

import piat_jax
from piat_jax.cli import errors, train
from piat_jax.core.checks import InputError
from piat_jax.experiment import Listener, config, notes, run_training
from tests.data.encoded_sets import write_set

FIELDS = {
    "dataset.train_examples": "16",
    "dataset.test_examples": "8",
    "model.name": "mlp",
    "model.options.hidden": "3",
    "batch_size": "8",
    "epochs": "1",
    "attack.steps": "1",
    "evaluation.attacks": "clean",
    "evaluation.select": "clean",
    "log.tensorboard": "false",
}


def command(folder, *more, fields=FIELDS):
    given = [f"--config.{path}={value}" for path, value in fields.items()]
    return errors.run(train.main, ["--config=embedded:pgd_at", f"--workdir={folder}", *given, *more])


def test_a_run_that_failed_before_its_first_step_does_not_occupy_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run_training, "fit", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command(folder)
    assert (folder / "config.json").exists()
    (folder / "notes.txt").write_text("mine")
    assert command(folder, "--config.seed=5") == 0  # and not as the same run
    assert (folder / "notes.txt").read_text() == "mine"
    assert command(folder, "--config.seed=5") == 2


def test_a_run_of_which_anything_is_left_is_kept(tmp_path, capsys):
    assert command(tmp_path / "run") == 0
    capsys.readouterr()
    for left in ("metrics.jsonl", "checkpoints"):
        folder = tmp_path / left
        folder.mkdir()
        for name in ("config.json", "data.json", "run.json", left):
            (tmp_path / "run" / name).rename(folder / name)
        assert command(folder) == 2
        assert "give --resume to continue, or --overwrite to start again (in Python resume=True" in (
            capsys.readouterr().err
        )
        for name in ("config.json", "data.json", "run.json"):
            (folder / name).rename(tmp_path / "run" / name)


def test_a_missing_package_is_found_before_anything_is_written(tmp_path, monkeypatch):
    images = write_set(tmp_path / "images", "tar")
    fields = {**FIELDS, "dataset.name": str(images), "dataset.image_size": "8", "dataset.train_examples": "0"}
    fields |= {"dataset.test_examples": "0"}
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(InputError, match=r"is read by grain; pip install 'piat_jax\[data\]'"):
        piat_jax.train("embedded:pgd_at", tmp_path / "run", overrides=fields, listener=Listener())
    assert not (tmp_path / "run").exists()


def test_resuming_where_there_is_no_run_is_noted(tmp_path, capsys):
    assert command(tmp_path / "run", "--resume") == 0
    told = f"note: {tmp_path / 'run'} holds no run to resume; a new run starts there"
    assert told in capsys.readouterr().err
    assert command(tmp_path / "run", "--resume") == 0
    assert "holds no run" not in capsys.readouterr().err


def test_what_differs_is_named_by_its_cause_and_by_its_fix(tmp_path, capsys):
    assert command(tmp_path / "run", "--config.epochs=2") == 0
    capsys.readouterr()
    without = {path: value for path, value in FIELDS.items() if path != "epochs"}
    assert command(tmp_path / "run", "--resume", fields=without) == 2
    told = capsys.readouterr().err
    epochs = config.load("embedded:pgd_at").epochs
    assert f"holds another run (epochs: 2 -> {epochs}) and cannot be resumed" in told
    assert f"piat-train --resume {tmp_path / 'run'} takes the run's own (in Python config=None, resume=True)" in told
    run = piat_jax.train(None, tmp_path / "run", resume=True, epochs=3)
    assert len(run.metrics()) == 3


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ((), ""),
        (("--config.log.tensorboard=true",), "note: TensorBoard events are not written: pip install"),
        (("--noconfig.log.tensorboard",), ""),
    ],
)
def test_a_missing_tensorboard_is_noted_where_it_was_asked_for(tmp_path, monkeypatch, capsys, more, told):
    for module in (run_training, notes):
        monkeypatch.setattr(module, "has_tensorboard", lambda: False)
    fields = {path: value for path, value in FIELDS.items() if path != "log.tensorboard"}
    assert command(tmp_path / "run", *more, fields=fields) == 0
    err = capsys.readouterr().err
    assert ("TensorBoard" in err) == bool(told)
    assert told in err


def test_python_notes_it_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_training, "has_tensorboard", lambda: False)
    monkeypatch.setattr(notes, "has_tensorboard", lambda: False)
    fields = {**FIELDS, "log.tensorboard": True}
    piat_jax.train("embedded:pgd_at", tmp_path / "run", overrides=fields)
    assert "note: TensorBoard events are not written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--epochs=3", "Unknown command line flag 'epochs'; a field of the config is set as --config.epochs=VALUE"),
        ("--wrkdir=x", "Did you mean: workdir"),
    ],
)
def test_a_field_that_is_given_as_a_flag(capsys, given, told):
    assert errors.run(train.main, ["--config=embedded", given]) == 2
    assert told in capsys.readouterr().err
