"""Several averages in one run, each logged, saved, resumed and evaluated, through the commands."""

import json
import os
import signal

import jax
import numpy as np
import pytest

import piat_jax
from piat_jax.cli import errors, evaluate, report, train
from piat_jax.experiment import run_training

TINY = [
    "--config.dataset.train_examples=128",
    "--config.dataset.test_examples=40",
    "--config.epochs=3",
    "--config.model.options.width=4",
    "--config.model.options.stage_sizes=1",
    "--config.attack.steps=1",
    "--config.evaluation.every_epochs=1",
    "--config.evaluation.attacks=clean,pgd2",
    "--config.evaluation.select=pgd2",
    "--config.evaluation.final_attacks=clean,pgd2",
    "--config.evaluation.batch_size=40",
    "--config.checkpoint.every_epochs=1",
    "--noconfig.log.tensorboard",
]
OWN = {"ema2": ("--config.ema2.decay=0.5",), "swa": ("--config.swa.start=0.4",)}


def trained(folder, method, *more):
    assert errors.run(train.main, [f"--config=embedded:{method}", f"--workdir={folder}", *TINY, *more]) == 0
    return folder


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "several"
    trained(folder, "pgd_at+ema+ema2+swa+piat", *OWN["ema2"], *OWN["swa"])
    assert errors.run(evaluate.main, [str(folder)]) == 0
    return folder


@pytest.mark.parametrize("name", ["ema2", "swa"])
def test_each_is_what_it_is_in_a_run_of_its_own(several, name, tmp_path):
    own = [field.replace(f"config.{name}", "config.average") for field in OWN[name]]
    alone = trained(tmp_path / name, f"pgd_at+{name.rstrip('2')}+piat", *own)
    here, there = piat_jax.load(several, checkpoint=f"final:{name}"), piat_jax.load(alone, checkpoint="final")
    assert f"final:{name}, epoch 3" in str(here)
    for one, other in zip(jax.tree.leaves(here.variables), jax.tree.leaves(there.variables), strict=True):
        np.testing.assert_array_equal(one, other)
    for together, only in zip(metrics(several), metrics(alone), strict=True):
        assert together[f"test_pgd2_{name}"] == only["test_pgd2"]
        assert together[f"averaged_states_{name}"] == only["averaged_states"]
    main = piat_jax.load(several, checkpoint="final")
    assert not np.array_equal(jax.tree.leaves(main.variables)[0], jax.tree.leaves(here.variables)[0])


def test_each_is_evaluated_and_compared(several, capsys):
    found = json.loads((several / "evaluation.json").read_text())["checkpoints"]
    assert list(found) == ["best", "final", "final:ema2", "final:swa"]
    last = metrics(several)[-1]
    for name in ("ema2", "swa"):
        assert found[f"final:{name}"]["accuracy"]["pgd2"] == last[f"test_pgd2_{name}"]
    assert errors.run(report.main, [str(several)]) == 0
    table = (several / "report" / "averages.md").read_text()
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:5]] == [
        "PIAT+EMA+EMA2+SWA", "PIAT+EMA+EMA2+SWA, average ema2", "PIAT+EMA+EMA2+SWA, average swa",
    ]  # fmt: skip


def test_one_may_be_asked_for(several, capsys):
    arguments = [str(several), "--checkpoint=best:ema2", "--attacks=clean", "--resume"]
    assert errors.run(evaluate.main, arguments) == 0
    assert "best:ema2 (epoch" in capsys.readouterr().out
    assert errors.run(evaluate.main, [str(several), "--checkpoint=final:ema3", "--attacks=clean", "--resume"]) == 2
    assert "has no further average 'ema3'; there is ema2, swa" in capsys.readouterr().err
    assert errors.run(evaluate.main, [str(several), "--checkpoint=last:swa", "--resume"]) == 2
    assert "checkpoint='last' is unknown; choose one of best, final" in capsys.readouterr().err


def test_a_resumed_run_has_the_same(several, tmp_path, monkeypatch):
    method = "pgd_at+ema+ema2+swa+piat"
    folder = tmp_path / "run"
    evaluate_state = run_training.monitor

    def stopping(*arguments, **options):
        """An evaluation that is stopped in the second epoch."""
        evaluate = evaluate_state(*arguments, **options)

        def evaluated(state, epoch):
            if epoch == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return evaluate(state, epoch)

        return evaluated

    with monkeypatch.context() as patch:
        patch.setattr(run_training, "monitor", stopping)
        arguments = [f"--config=embedded:{method}", f"--workdir={folder}", *TINY, *OWN["ema2"], *OWN["swa"]]
        assert errors.run(train.main, arguments) == 75
    assert len(metrics(folder)) == 1
    trained(folder, method, *OWN["ema2"], *OWN["swa"], "--resume")
    assert len(metrics(folder)) == 3
    for name in ("", ":ema2", ":swa"):
        one, other = (piat_jax.load(each, checkpoint=f"final{name}").variables for each in (folder, several))
        jax.tree.map(np.testing.assert_array_equal, one, other)
