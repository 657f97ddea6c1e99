"""piat-sweep: which runs it makes, what it refuses, what it prints for a scheduler."""

import shlex
from pathlib import Path

import pytest

from piat_jax.cli import errors, sweep
from piat_jax.core.checks import InputError
from piat_jax.experiment import sweep as library

CONFIG = "--config=embedded"


def call(*arguments):
    return errors.run(sweep.main, list(arguments))


def names(jobs):
    return [job.folder.name for job in jobs]


def planned(folder, **options):
    defaults = {"methods": ["piat"], "seeds": ["0"], "swept": {}, "overrides": {}}
    return library.plan("embedded", folder, **{**defaults, **options})


def test_every_method_seed_and_combination_has_a_run(tmp_path):
    swept = {"attack.eps": ["4/255", "0.1"], "piat.d": ["10"]}
    jobs = planned(tmp_path, methods=["pgd_at", "piat"], seeds=["0", "1"], swept=swept, overrides={"epochs": "3"})
    assert len(set(names(jobs))) == 8
    assert names(jobs)[0] == "pgd_at,attack.eps=4over255,piat.d=10-seed0"
    first = jobs[0].experiment()
    assert (first.attack.eps, first.evaluation.eps, first.piat.d, first.epochs, first.seed) == (
        4 / 255,
        4 / 255,
        10,
        3,
        0,
    )
    assert first.optimizer.lr_epochs == (0.0, 1.5, 2.25, 3.0)


def test_teachers_come_first_and_are_those_of_the_seed_and_setting(tmp_path):
    jobs = planned(tmp_path, methods=["kd", "pgd_at"], seeds=["2"], swept={"attack.eps": ["0.2"]})
    assert names(jobs) == [
        "standard,attack.eps=0.2-seed2",
        "pgd_at,attack.eps=0.2-seed2",
        "kd,attack.eps=0.2-seed2",
    ]
    assert jobs[-1].overrides["kd.robust"] == str(jobs[1].folder)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"attack.eps": "0.1,0.2"}, {"attack.eps": ["0.1", "0.2"]}),
        ({"optimizer.lr_values": "1,1,1,1;2,2,2,2"}, {"optimizer.lr_values": ["1,1,1,1", "2,2,2,2"]}),
        ({"objective.mu": "3"}, {"objective.mu": ["3"]}),
    ],
)
def test_values_are_parted_by_the_field_s_kind(given, found):
    assert library.swept_values("embedded", ["nmse", "nmse+piat"], given) == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=x"], "--config is missing"),
        ([CONFIG], "--workdir is missing"),
        ([CONFIG, "--workdir=x", "--methods="], "--methods is empty"),
        ([f"{CONFIG}:piat", "--workdir=x"], "names a method; give it as --methods=piat"),
        ([CONFIG, "--workdir=x", "--methods=nmes"], "did you mean 'nmse'"),
        ([CONFIG, "--workdir=x", "--sweep.attack.esp=1"], "config.attack.esp is unknown; did you mean 'attack.eps'"),
        ([CONFIG, "--workdir=x", "--sweep.attack.eps="], "sweep.attack.eps is empty"),
        ([CONFIG, "--workdir=x", "--sweep.attack.eps=0.1,8"], r"attack.eps=8.0 must be in (0, 1]"),
        ([CONFIG, "--workdir=x", "--sweep.optimizer.lr_values=0.1,0.2"], "separate lists by ;"),
        ([CONFIG, "--workdir=x", "--jobs=-1"], "jobs=-1 must be at least 0"),
        ([CONFIG, "--workdir=x", "piat"], "unexpected argument 'piat'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_commands_are_printed_for_a_scheduler(tmp_path, capsys):
    folder = tmp_path / "my runs"
    arguments = [CONFIG, "--methods=pgd_at,piat", f"--workdir={folder}", "--attacks=clean", "--config.epochs=1"]
    assert call(*arguments, "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    train, evaluate = lines[0].split(" && ")
    where = f"--workdir={folder / 'pgd_at-seed0'}"
    assert shlex.split(train) == [
        "piat-train", "--config=embedded:pgd_at", where, "--config.epochs=1", "--config.seed=0", "--resume",
    ]  # fmt: skip
    assert shlex.split(evaluate) == ["piat-evaluate", where, "--aa_examples=0", "--attacks=clean", "--resume"]
    assert not folder.exists()


def test_all_is_run_and_reported(tmp_path, monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(library, "run_jobs", lambda jobs, **options: asked.update(options, jobs=names(jobs)))
    monkeypatch.setattr(sweep, "report", lambda folders, out: asked.update(out=out, reported=len(folders)))
    assert call(CONFIG, "--seeds=0,1", f"--workdir={tmp_path}", "--jobs=3", "--overwrite") == 0
    assert asked == {
        "jobs": ["piat-seed0", "piat-seed1"],
        "overwrite": True,
        "at_once": 3,
        "out": tmp_path / "report",
        "reported": 2,
    }
    assert "all done in" in capsys.readouterr().out


def test_the_name_of_before_works_and_says_the_new_one(monkeypatch, capsys):
    from experiments import compare

    called = []
    monkeypatch.setattr(sweep, "main", called.append)
    compare.main(["--seeds=1"])
    assert called[0][-1] == "--seeds=1"
    assert "piat-sweep now" in capsys.readouterr().err


def test_a_value_that_is_no_list_is_named():
    with pytest.raises(InputError, match="'1,2' is for a field that holds a list"):
        library.split_values("1,2", (0.5,))


def test_runs_share_the_cores(tmp_path, monkeypatch):
    threads = []
    monkeypatch.setattr(library, "platform", lambda: "cpu")
    monkeypatch.setattr(library, "count_cores", lambda: 8)
    monkeypatch.setattr(library, "_run", lambda command, name, environment, _: threads.append(environment["NPROC"]))
    jobs = planned(tmp_path, methods=["pgd_at", "piat"])
    library.run_jobs(jobs)
    library.run_jobs(jobs, at_once=1)
    assert threads == ["4"] * 4 + ["8"] * 4


@pytest.mark.parametrize("own", [None, "mine"])
def test_runs_share_what_they_compile(tmp_path, monkeypatch, own):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    if own:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", own)
    seen = []

    def run(command, name, environment, _):
        folder = Path(environment["JAX_COMPILATION_CACHE_DIR"])
        seen.append((folder, folder.is_dir(), environment["PYTHONWARNINGS"]))

    monkeypatch.setattr(library, "_run", run)
    library.run_jobs(planned(tmp_path, seeds=["0", "1"]))
    ((folder, was_there, warnings),) = set(seen)
    assert (str(folder) == own, was_there) == (bool(own), not own)
    assert not folder.exists()
    entry = "persistent compilation cache entry"
    assert warnings == f"error,ignore:Error reading {entry},ignore:Error writing {entry}"
