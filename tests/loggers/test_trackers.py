"""No logger can stop a run: not by what it raises, and not by never answering."""

import json
import threading

import numpy as np
import pytest

import piat_jax
from piat_jax.core.checks import InputError
from piat_jax.experiment import run_training
from piat_jax.experiment.console import TrainingConsole
from piat_jax.loggers import LOGGERS, Logger, RunInfo, Trackers, check_installed, logger

METHODS = ("start", "write", "images", "text", "close")
IMAGE = np.zeros((4, 4, 3), np.uint8)
SMALL = {
    "dataset.train_examples": 16,
    "dataset.test_examples": 8,
    "model.options.width": 2,
    "model.options.stage_sizes": (1,),
    "attack.steps": 1,
    "evaluation.attacks": ("clean", "fgsm"),
    "evaluation.select": "fgsm",
    "evaluation.every_epochs": 1,
    "log.tensorboard": False,
}


class Recording(Logger):
    """Keeps what it is told; `bad` is the method that fails."""

    bad = ""

    def __init__(self):
        self.seen = []
        MADE.append(self)

    def tell(self, method, *what):
        self.seen.append((method, *what))
        if method == self.bad:
            self.fail()

    def fail(self):
        raise RuntimeError("no\nserver")

    def start(self, info):
        self.tell("start", info, threading.current_thread())

    def write(self, record, step):
        self.tell("write", record, step)

    def images(self, name, image, caption, step):
        self.tell("images", name, image, caption, step)

    def text(self, name, text, step):
        self.tell("text", name, text, step)

    def close(self, *, finished=True):
        self.tell("close", finished)


MADE = []


@pytest.fixture(autouse=True)
def registered():
    """`good`, and a `bad_METHOD` for each."""
    MADE.clear()
    before = set(LOGGERS)
    logger("good")(Recording)
    for method in METHODS:
        logger(f"bad_{method}")(type(f"Bad_{method}", (Recording,), {"bad": method}))
    yield
    for name in set(LOGGERS) - before:
        del LOGGERS[name]


def used(names, notes, folder, **options):
    trackers = Trackers(names, RunInfo(folder=folder, config={}, note=notes.append), **options)
    trackers.write({"epoch": 1}, 1)
    trackers.images("examples", IMAGE, "caption", 1)
    trackers.text("said", "words", 1)
    trackers.close(finished=False)
    return trackers


def methods(seen):
    return tuple(event[0] for event in seen)


@pytest.mark.parametrize("method", METHODS)
def test_one_that_raises_becomes_a_note_and_is_off_and_the_others_go_on(method, tmp_path):
    notes = []
    trackers = used((f"bad_{method}", "good"), notes, tmp_path)
    bad, good = MADE
    assert notes == [f"bad_{method} is off from here on, training continues: {method}: RuntimeError: no server"]
    assert methods(bad.seen) == METHODS[: METHODS.index(method) + 1]
    assert methods(good.seen) == METHODS
    assert good.seen[-1] == ("close", False)
    assert not trackers


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), TimeoutError("late")])
def test_whatever_it_raises(error, tmp_path, monkeypatch):
    def fail(self):
        raise error

    monkeypatch.setattr(LOGGERS["bad_write"], "fail", fail)
    notes = []
    used(("bad_write",), notes, tmp_path)
    assert len(notes) == 1
    assert f"write: {type(error).__name__}: {error}".strip() in notes[0]


def test_one_that_never_answers_is_waited_for_once(tmp_path, monkeypatch):
    let_go = threading.Event()
    monkeypatch.setattr(LOGGERS["bad_write"], "fail", lambda self: let_go.wait())
    notes = []
    used(("bad_write",), notes, tmp_path, seconds=0.05)
    let_go.set()
    assert notes == ["bad_write is off from here on, training continues: write: no answer in 0.05 seconds"]
    assert methods(MADE[0].seen) == ("start", "write")


def test_a_constructor_that_raises(tmp_path):
    def make():
        raise ImportError("half installed")

    logger("broken")(make)
    notes = []
    used(("broken", "good"), notes, tmp_path)
    assert notes == ["broken is off from here on, training continues: start: ImportError: half installed"]
    assert methods(MADE[0].seen) == METHODS


def test_each_has_a_thread_of_its_own_and_is_made_once(tmp_path):
    used(("good", "bad_text", "good"), [], tmp_path)
    threads = [recording.seen[0][2] for recording in MADE]
    assert len(MADE) == len(set(threads)) == 2
    assert threading.main_thread() not in threads


def test_ctrl_c_is_not_the_trackers(tmp_path, monkeypatch):
    class Waiting:
        def exception(self, seconds):
            raise KeyboardInterrupt

    trackers = Trackers(("good",), RunInfo(folder=tmp_path, config={}))
    monkeypatch.setattr(trackers.on["good"], "call", lambda step: Waiting())
    with pytest.raises(KeyboardInterrupt):
        trackers.write({}, 1)


class Silent(TrainingConsole):
    def __init__(self):
        self.notes = []

    def say(self, text):
        pass

    def note(self, text):
        self.notes.append(text)


def train(folder, *names, listener=None, **options):
    overrides = {**SMALL, "log.to": names, **options.pop("overrides", {})}
    listener = listener or Silent()
    return piat_jax.train(
        "embedded:pgd_at", folder, batch_size=8, overrides=overrides, listener=listener, **{"epochs": 2} | options
    )


def timeless(records):
    """Without what depends on the machine and its load."""
    cost = ("images_per_second", "train_seconds", "evaluate_seconds", "peak_memory_bytes")
    return [{k: v for k, v in record.items() if k not in cost} for record in records]


def test_a_run_is_the_same_with_broken_loggers_and_tells_the_others_everything(tmp_path):
    plain = train(tmp_path / "plain")
    heard = Silent()
    names = [f"bad_{method}" for method in METHODS if method != "text"]  # of which a run has none that ends well
    run = train(tmp_path / "run", *names, "good", listener=heard)
    assert timeless(run.metrics()) == timeless(plain.metrics())
    assert sorted(note.partition(" ")[0] for note in heard.notes) == sorted(names)
    good = MADE[-1]
    assert methods(good.seen) == ("start", "write", "images", "write", "images", "close")
    info = good.seen[0][1]
    assert (info.folder, info.resumed, info.epochs_done) == (run.folder, False, 0)
    assert info.config["attack"]["steps"] == 1
    assert [event[1:] for event in good.seen if event[0] == "write"] == [
        (record, record["epoch"]) for record in run.metrics()
    ]
    name, image, caption, step = good.seen[2][1:]
    assert (name, image.shape, image.dtype, step) == ("examples", (3 * 29 + 1, 8 * 29 + 1, 1), np.uint8, 1)
    assert caption.startswith("rows: clean, fgsm, difference")
    assert good.seen[-1] == ("close", True)


def test_a_resumed_run_says_so(tmp_path):
    train(tmp_path / "run", epochs=1)
    train(tmp_path / "run", "good", resume=True)
    info = MADE[0].seen[0][1]
    assert (info.resumed, info.epochs_done) == (True, 1)
    assert [event[2] for event in MADE[0].seen if event[0] == "write"] == [2]


def test_a_run_that_diverges_is_told_in_words_and_is_not_finished(tmp_path):
    with pytest.raises(InputError, match=r"diverged|not finite"):
        train(tmp_path / "run", "good", overrides={"optimizer.lr_values": (1e30,) * 4, "nonfinite": "stop"})
    assert MADE[0].seen[-2][:2] == ("text", "diverged")
    assert MADE[0].seen[-1] == ("close", False)


def test_pictures_are_left_out(tmp_path):
    train(tmp_path / "run", "good", overrides={"log.images": 0})
    assert methods(MADE[0].seen) == ("start", "write", "write", "close")


def test_and_where_nothing_was_evaluated(tmp_path):
    train(tmp_path / "run", "good", overrides={"evaluation.every_epochs": 2})
    assert methods(MADE[0].seen) == ("start", "write", "write", "images", "close")


def test_only_the_first_process_logs(tmp_path, monkeypatch):
    monkeypatch.setattr(run_training, "is_first", lambda: False)
    train(tmp_path / "run", "good", epochs=1)
    assert MADE == []


def test_a_missing_package_is_told_before_anything_is_there(tmp_path, monkeypatch):
    for extra, fix in (("wandb", "pip install 'piat_jax[wandb]'"), ("", "pip install no_such_package")):
        monkeypatch.setattr(LOGGERS["bad_start"], "package", "no_such_package")
        monkeypatch.setattr(LOGGERS["bad_start"], "extra", extra)
        with pytest.raises(InputError) as told:
            train(tmp_path / "run", "bad_start")
        assert str(told.value) == (
            f"log.to='bad_start' needs the package no_such_package, which is not installed: {fix}"
        )
        assert not (tmp_path / "run").exists()
    check_installed(("tensorboard",))


def test_an_unknown_logger_is_told_with_the_config_s_other_mistakes():
    with pytest.raises(InputError, match=r"config: log.to='wandbb' is unknown; did you mean 'wandb'\?"):
        piat_jax.experiment.config.load("embedded:pgd_at", {"log.to": "wandbb", "log.images": 0})
    with pytest.raises(InputError, match=r"log.images=-1 must be at least 0"):
        piat_jax.experiment.config.load("embedded:pgd_at", {"log.images": -1})
    # Whoever evaluates needs neither the logger nor its package.
    piat_jax.experiment.config.load("embedded:pgd_at", {"log.to": "anothers"}, trains=False)
    assert piat_jax.experiment.config.load("embedded:pgd_at", {"log.to": "mlflow, wandb"}).log.to == ("mlflow", "wandb")


def test_a_run_of_an_earlier_version_goes_on_without_pictures(tmp_path):
    run = train(tmp_path / "run", epochs=1)
    plain = json.loads((run.folder / "config.json").read_text())
    for name in ("to", "images"):
        del plain["log"][name]
    (run.folder / "config.json").write_text(json.dumps(plain))
    assert (run.experiment().log.to, run.experiment().log.images) == ((), 0)
    train(run.folder, resume=True)
    assert [record["epoch"] for record in run.metrics()] == [1, 2]
