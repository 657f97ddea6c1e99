"""What the papers' figures find out about trained runs, on a run of one epoch and on made-up metrics."""

import dataclasses
import json
import runpy
import shutil
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import scipy.stats

from experiments import run as command
from experiments.engine import figures
from experiments.engine.claims import Claim, interval
from experiments.engine.items import Item, Row, Setting
from experiments.engine.results import Entry, Result, by_seed, collect, to_json
from experiments.engine.trained import load_final
from experiments.studies import collapse, differences, landscape, perception, radii, screened
from experiments.studies.on_average import on_average
from experiments.studies.on_average import to_markdown as averages_to_markdown
from experiments.studies.power import MOST_SEEDS, power, seeds_needed, spreads, to_markdown
from piat_jax.analysis.runs import Checkpoint, RunResults
from piat_jax.analysis.tables import runs_csv
from piat_jax.attacks import bind, pgd
from piat_jax.cli import errors, train
from piat_jax.core.checks import InputError
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.rng import named_key
from piat_jax.experiment import Run, config

SETTING = Setting("tiny", "Tiny", "configs/embedded.py")
TINY = {
    "dataset.train_examples": "32",
    "dataset.test_examples": "24",
    "batch_size": "16",
    "epochs": "1",
    "model.options.width": "2",
    "model.options.stage_sizes": "1",
    "attack.steps": "1",
    "evaluation.every_epochs": "1",
    "evaluation.attacks": "clean",
    "evaluation.select": "clean",
    "log.tensorboard": "false",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    fields = [f"--config.{path}={value}" for path, value in TINY.items()]
    assert errors.run(train.main, ["--config=configs/embedded.py:pgd_at", f"--workdir={folder}", *fields]) == 0
    return folder


def a_run(folder, seed=0, metrics=(), **more):
    return RunResults(folder, "", "", "", 1, seed, tuple(metrics), 24, 24, 0, {}, **more)


def result_of(rows, **fields):
    """Rows are names with their runs."""
    entries = tuple(Entry(SETTING, Row(name, "pgd_at"), tuple(runs)) for name, runs in rows.items())
    item = Item("fig", "Fig.", tuple(entry.row for entry in entries), {"small": (SETTING,)}, **fields)
    return Result(item, "small", (0, 1, 2), entries)


def pgd20(final, images, labels):
    """The logits on PGD-20's images."""
    fields = final.experiment.evaluation
    attack = bind(pgd, eps=fields.eps, step_size=fields.step_size, steps=20)
    logits_fn = make_logits_fn(final.model, final.variables)
    key = named_key(jax.random.key(final.experiment.seed), "evaluate")
    return np.asarray(logits_fn(attack(logits_fn, images, labels, key=key)), np.float64)


def test_the_landscape_is_centred_on_the_loss_of_the_weights(trained, monkeypatch):
    monkeypatch.setattr(landscape, "IMAGES", 8)
    grid = landscape._grid(trained, np.array([-1.0, 0.0, 1.0]))
    final = load_final(trained)
    labels = final.test.labels[:8]
    logits = pgd20(final, final.test.images[:8] / np.float32(255), labels)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(grid[1, 1], -log_p[np.arange(8), labels].mean(), rtol=1e-5)
    assert len({*grid.ravel().tolist()}) == 9


def test_the_landscapes_of_equal_seeds_are_compared(tmp_path, monkeypatch):
    # Deviations: of a grid of +1 and -1 its scale.
    scales = {"pgd_at-0": 3.0, "pgd_at-1": 9.0, "pgd_at-2": 3.2, "piat-2": 1.0, "piat-0": 1.0}
    sign = np.array([[1.0, -1.0], [-1.0, 1.0]])
    monkeypatch.setattr(landscape, "POINTS", 2)
    monkeypatch.setattr(landscape, "_grid", lambda folder, coordinates: 5 + scales[folder.name] * sign)
    runs = {"PGD-AT": [a_run(tmp_path / f"pgd_at-{seed}", seed) for seed in (0, 1, 2)]}
    alone = landscape.run(result_of(runs))
    assert len(alone["findings"]) == 1  # what was measured, and no verdict
    result = result_of({**runs, "PIAT": [a_run(tmp_path / f"piat-{seed}", seed) for seed in (2, 0)]})
    study = landscape.run(result)
    # Of seeds 0 and 2: -2.0 and -2.2; t(0.975, 1) = 12.706, times 0.1.
    assert "PGD-AT 3.1000, PIAT 1.0000; PIAT minus PGD-AT -2.1000 [-3.3706, -0.8294], seeds: 2" in study["findings"][1]
    assert study["findings"][1].endswith("holds.")
    np.testing.assert_allclose(landscape.grid_of(study["grids"]["tiny/PGD-AT"][1]), 5 + 9 * sign)
    figure = landscape.draw(dataclasses.replace(result, study=json.loads(json.dumps(study))), SETTING)
    left, right = figure.axes
    assert left.get_zlim() == right.get_zlim()
    assert left.get_title().startswith("PGD-AT, ")


def test_how_far_logits_move(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(perception, "IMAGES", 16)
    found = perception._perception(trained)
    final = load_final(trained)
    images, labels = final.test.images[:16] / np.float32(255), final.test.labels[:16]
    clean = np.asarray(make_logits_fn(final.model, final.variables)(images))
    expected = perception.split_by_success(clean, pgd20(final, images, labels), labels)
    assert 0 < expected["perturbed"] < 100
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)

    # What was not trained against an attack is looked at under uniform noise, within the same ball.
    other = tmp_path / "standard"
    shutil.copytree(trained, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "method": "standard"}))
    given, real = [], perception._logits
    monkeypatch.setattr(perception, "_logits", lambda *arguments: given.append(arguments) or real(*arguments))
    moved = perception._perception(other)
    ((logits_fn, attack, _, _, key),) = given
    noisy = np.asarray(attack(logits_fn, images, labels, key=key))
    eps = final.experiment.evaluation.eps
    noise = (noisy - images)[(images > eps) & (images < 1 - eps)]  # where the box cuts nothing off
    assert np.abs(noisy - images).max() <= eps + 1e-6
    np.testing.assert_allclose([np.abs(noise).mean(), noise.std()], [eps / 2, eps / 3**0.5], rtol=0.05)
    expected = perception.split_by_success(clean, np.asarray(logits_fn(noisy)), labels)
    np.testing.assert_allclose(list(moved.values()), list(expected.values()), rtol=1e-4)


def test_whether_images_that_fool_move_less(tmp_path, monkeypatch):
    moved = {"0": (1.0, 3.0), "1": (1.0, 3.5), "2": (1.0, 2.5)}
    fixed = {"clean": 90.0, "perturbed": 60.0}
    monkeypatch.setattr(
        perception,
        "_perception",
        lambda folder: dict(zip(("success", "failure"), moved[folder.name])) | fixed,
    )
    result = result_of({"PGD-AT": [a_run(tmp_path / name) for name in moved]})
    study = perception.run(result)
    # 2.0, 2.5, 1.5: t(0.975, 2) = 4.3027 times 0.5 / 3 ** 0.5.
    assert "move by 2.000 [0.758, 3.242] more" in study["findings"][0]
    assert "they move less: does not hold." in study["findings"][0]
    (alone,) = perception.run(result_of({"PGD-AT": [a_run(tmp_path / "0")]}))["findings"]
    assert "move by 2.000 (one seed) more" in alone
    assert "not decided" in alone
    assert perception.run(result_of({"Clean": [a_run(tmp_path / "0")]}))["findings"] == []
    bars, lines = perception.draw(dataclasses.replace(result, study=study), SETTING).axes
    assert [bar.get_height() for bar in bars.patches] == [1.0, 3.0]
    assert [line.get_ydata()[0] for line in lines.lines] == [90.0, 60.0]


def test_the_radii_that_entropy_chose(tmp_path):

    def epoch(lowered, *raised):
        numbered = {f"train_radius_raised_{number}": share for number, share in enumerate(raised, 1)}
        return {"epoch": 1, **dict(reversed(numbered.items())), "train_radius_lowered": lowered}

    fields = {"ecas.levels": [9.0, 3.0, 12.0]}
    one = a_run(tmp_path, metrics=[epoch(0.1, 0.2, 0.0), epoch(0.3, 0.0, 0.1)], fields=fields)
    other = a_run(tmp_path, metrics=[epoch(0.3, 0.2, 0.0), epoch(0.1, 0.0, 0.3)])
    result = result_of({"ECAS": [one, other]})
    study = radii.run(result)
    assert study["radii"]["tiny"] == {"levels": [3.0, 9.0, 12.0], "shares": ["0.2 0.2 0", "0.2 0 0.2"]}
    assert study["findings"] == [
        "tiny: entropy adjusts 40.0 % of the images in the first half of training and 40.0 % in the second; "
        "20.0 % are lowered, 20.0 % raised, over all epochs. Seeds: 2."
    ]
    axes = radii.draw(dataclasses.replace(result, study=study), SETTING).axes[0]
    parts = {bars.get_label(): [bar.get_height() for bar in bars] for bars in axes.containers[1:]}
    assert parts == {"lowered to 3": [20, 20], "raised to 9": [20, 0], "raised to 12": [0, 20]}
    np.testing.assert_allclose([bar.get_height() for bar in axes.containers[0]], 60)
    # The radius of the scheduler is told by the color: another one each epoch.
    assert len({bar.get_facecolor() for bar in axes.containers[0]}) == 2
    assert radii.run(result_of({"ECAS": []})) == {"radii": {}, "findings": []}


def test_big_radii_are_in_order_of_their_numbers(tmp_path):
    metrics = {"train_radius_lowered": 0.0, **{f"train_radius_raised_{n}": n / 100 for n in (10, 9, 2, 1)}}
    np.testing.assert_allclose(radii.shares_of(a_run(tmp_path, metrics=[metrics])), [[0, 0.01, 0.02, 0.09, 0.1]])


def test_a_study_is_saved_and_drawn_for_each_data_set_that_ran(tmp_path, monkeypatch):
    other = dataclasses.replace(SETTING, name="other")
    row = Row("PGD-AT", "pgd_at")
    drawn = []
    monkeypatch.setattr(command.figures, "curves", lambda result, setting: drawn.append(setting))
    item = Item("fig", "Fig.", (row,), {"small": (SETTING, other)}, draw="curves")
    entries = (Entry(SETTING, row, (a_run(tmp_path),)), Entry(other, row))
    assert command.draw(Result(item, "small", (0,), entries)) == {}  # there was nothing to draw
    assert drawn == [SETTING]


def test_claims_are_drawn_with_their_intervals(tmp_path):
    def entry(name, *final):
        points = [{"final": Checkpoint(9, {"pgd20": value, "cw20": value + 0.1})} for value in final]
        return Entry(
            SETTING,
            Row(name, name),
            tuple(dataclasses.replace(a_run(tmp_path, seed), checkpoints=at) for seed, at in enumerate(points)),
        )

    keys = ("final:pgd20", "final:cw20")
    claims = tuple(Claim("", "A", other, key, "higher") for other in ("B", "C", "gone") for key in keys)
    item = Item("fig", "Fig.", (), {"small": (SETTING,)}, claims=claims)
    rows = (entry("A", 0.5, 0.6, 0.7), entry("B", 0.4, 0.4, 0.7), entry("C", 0.9))
    axes = figures.differences(Result(item, "small", (0, 1, 2), rows), SETTING).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["B", "C"]
    assert len(axes.containers) == 2
    expected = interval(np.array([10.0, 20.0, 0.0]))
    for container in axes.containers:
        points, _, (bars,) = container.lines
        np.testing.assert_allclose(points.get_xdata(), [expected.mean, -40.0], atol=1e-9)
        ends = [line[:, 0] for line in bars.get_segments()]
        np.testing.assert_allclose(ends, [[expected.low, expected.high], [-40.0, -40.0]], atol=1e-9)  # C has one seed
        assert [round(place) for place in points.get_ydata()] == [0, 1]
    assert figures.differences(Result(item, "small", (0,), rows[:1]), SETTING) is None


@pytest.mark.parametrize(("difference", "deviation", "seeds"), [(1.0, 1.5, 8), (0.5, 1.0, 30), (1.0, 1.0, 3)])
def test_power_is_how_often_a_paired_t_test_finds_a_difference(difference, deviation, seeds):
    draws = np.random.default_rng(0).normal(difference, deviation, (20_000, seeds))
    found = np.mean(scipy.stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05)
    assert power(difference, deviation, seeds) == pytest.approx(found, abs=0.012)


def test_the_fewest_seeds_are_enough_and_one_less_is_not():
    for deviation, alpha in ((0.5, 0.05), (1.45, 0.05), (3.4, 0.001)):
        seeds = seeds_needed(1.0, deviation, alpha=alpha)
        assert power(1.0, deviation, seeds, alpha) >= 0.8
        assert seeds == 2 or power(1.0, deviation, seeds - 1, alpha) < 0.8
    assert seeds_needed(1.0, 100.0) == MOST_SEEDS


def test_spreads_are_pooled_over_claims(tmp_path):
    def row(name, *values):
        ours = {"best:aa": list(values), "best:clean": list(values[:1])}
        return {"setting": "a", "name": name, "ours": ours, "of_seeds": {"best:clean": [0]}}

    claims = [{"method": m, "other": "p", "measure": k} for m in ("x", "y", "gone") for k in ("best:aa", "best:clean")]
    setting = {"name": "a", "test_examples": 1000, "aa_examples": 200}
    item = {
        "seeds": [0, 1, 2],
        "settings": [setting],
        "claims": claims,
        "rows": [row("x", 1, 2, 3), row("y", 4, 0, 2), row("p", 1, 1, 1)],
    }
    (tmp_path / "item.json").write_text(json.dumps(item))
    (only,) = spreads(tmp_path)
    assert (only.measure, only.claims, only.seeds, only.images) == ("best:aa", 2, 6, (200,))
    assert only.deviation == pytest.approx(np.sqrt((1.0 + 4.0) / 2))
    assert "| best:aa | 200 | 2 | 1.58 |" in to_markdown([only], 1.0, 2)
    # A method without one of the seeds is paired over the others: 3 - 1 and 1 - 1.
    item["rows"][0] = {**row("x", 3, 1), "of_seeds": {"best:aa": [0, 2], "best:clean": [0]}}
    (tmp_path / "item.json").write_text(json.dumps(item))
    (only,) = spreads(tmp_path)
    assert (only.seeds, only.deviation) == (5, pytest.approx(np.sqrt((2.0 + 4.0) / 2)))
    with pytest.raises(InputError, match="has no item with a claim"):
        spreads(tmp_path / "nothing")


@pytest.fixture(scope="module")
def trials():
    """Two seeds at two rates, a step of each."""
    fields = {"dataset.train_examples": "32", "attack.steps": "1", "objective.mu": "5"}
    found = []
    for rate in (0.2, 0.1):
        experiment = config.load("embedded_512:nmse", {**fields, "optimizer.lr_values": ",".join(4 * [str(rate)])})
        found += [
            {"mend": collapse.NO_MEND, "rate": rate, "mu": 5.0, **each}
            for each in collapse.trials_of(experiment, range(2), epochs=1)
        ]
    return found


def test_the_first_step_is_the_rate_times_the_gradients_sum(trials):
    """Without momentum so far; weight decay adds 5e-4 of the weights, which is little."""
    for each in trials:
        parts = each["cross_entropy_gradient"], each["nmse_gradient"]
        assert abs(parts[0] - parts[1]) * 0.99 <= each["update"] / each["rate"] <= sum(parts) * 1.01
    # The first gradient is of the same weights and batch, whatever the rate.
    for fast, slow in zip(trials[:2], trials[2:]):
        assert fast["seed"] == slow["seed"]
        assert fast["update"] == pytest.approx(2 * slow["update"], rel=1e-4)
        for field in ("nmse", "logits", "cross_entropy_gradient", "nmse_gradient"):
            assert fast[field] == pytest.approx(slow[field], rel=1e-5)
    assert trials[0]["nmse"] != trials[1]["nmse"]


def test_logits_that_differ_between_images_are_no_collapse():
    logits = jax.numpy.array([[0.0, 1.0], [1.0, 0.0]])
    found = collapse.ending(logits, jax.numpy.array([1, 0]), {"kernel": np.full((1, 4), 2.0), "bias": np.ones(3)})
    assert found == {"spread": 0.5, "gradient_below": 4.0, "accuracy": 1.0, "collapsed": False}


def test_collapses_are_counted_by_rate_and_mu(trials):
    ended = [
        {**each, "collapsed": each["rate"] == 0.2, "accuracy": 0.1 if each["rate"] == 0.2 else 0.5, "update": 7.0}
        for each in trials
    ]
    text = collapse.to_markdown(ended)
    assert "| 0.2 | 2 of 2 (2) |\n| 0.1 | 0 of 2 (0) |" in text
    assert f"| {collapse.NO_MEND} | 2 of 2 (2) |" in text
    assert "| norm of the first step | 7 | - |" in text  # at rate 0.2 no other is left
    (axes,) = collapse.draw(ended).axes
    assert [len(points.get_offsets()) for points in axes.collections] == [0, 2]


def brightness(x):
    """Two classes; the first one's margin is the mean's distance from 0.5."""
    return jax.numpy.stack([x.mean((1, 2, 3)), jax.numpy.full(len(x), 0.5)], axis=1)


class FirstBreaks:
    """In place of AutoAttack: breaks the first image that it is given."""

    def __init__(self, **settings):
        self.settings = settings

    def run(self, logits_fn, images, labels):
        FirstBreaks.given = images
        robust = np.arange(len(labels)) > 0
        return SimpleNamespace(
            robust=robust, attacks=("square",), fooled=~robust[None], seconds={"square": 1.04}, settings=self.settings
        )


def test_autoattack_gets_the_smallest_margins(monkeypatch):
    monkeypatch.setattr(screened, "AutoAttack", FirstBreaks)
    monkeypatch.setattr(screened, "ROWS", 4)
    means = np.array([0.9, 0.55, 0.62, 0.3, 0.7, 0.66], np.float32)
    images = means[:, None, None, None] * np.ones((6, 4, 4, 1), np.float32)
    found = screened.screened(brightness, images, np.zeros(6, int), eps=0.1, step_size=0.025, block=2)
    np.testing.assert_allclose(FirstBreaks.given[:, 0, 0, 0], [0.62, 0.66])
    # PGD breaks 0.55, 0.3 was wrong before, and AutoAttack breaks 0.62.
    assert found["pgd_cw"] == 4 / 6
    assert found["accuracy"] == 3 / 6
    assert (found["attacked"], found["broken"], found["ranks"], found["seconds"]) == (2, {"square": 1}, [0], 1.0)
    assert found["cut"] == pytest.approx(0.66 - 0.1 - 0.5, abs=1e-6)
    none = screened.screened(brightness, 0 * images, np.zeros(6, int), eps=0.1, step_size=0.025, block=2)
    assert (none["accuracy"], none["attacked"]) == (0.0, 0)


def test_screened_accuracies_are_autoattacks_where_it_was_not_run(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(screened, "AutoAttack", FirstBreaks)
    row, setting = Row("PGD-AT", "pgd_at"), dataclasses.replace(SETTING, aa_blocks=5)
    folder = shutil.copytree(trained, tmp_path / setting.name / "pgd_at-seed0")
    accuracy = {"clean": 0.5, "pgd20": 0.4}
    points = {"best": {"epoch": 1, "accuracy": {**accuracy, "aa": 0.25}}, "final": {"epoch": 1, "accuracy": accuracy}}
    evaluation = {"num_examples": 24, "checkpoints": points}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    kept = screened.screen_run(folder, 5)
    assert 0 < kept["final"]["accuracy"] == kept["final"]["pgd_cw"] - 1 / 24
    monkeypatch.setattr(screened, "screened", None)
    assert screened.screen_run(folder, 5) == kept

    result = collect(Item("t", "T", (row,), {"small": (setting,)}), "small", [setting], [0], tmp_path)
    (run,) = result.entries[0].runs
    assert run.checkpoints["best"].accuracy["aa"] == 0.25
    assert run.checkpoints["final"].accuracy["aa"] == kept["final"]["accuracy"]
    assert run.settings["aa_blocks"] == 5

    # Other weights, other results.
    Run(folder).drop_robustness("final")
    assert set(screened.read(folder)) == {"best"}


def test_screening_beside_autoattack(trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained, tmp_path / "pgd_at-seed0")
    margins = np.array([0.1, -1.0, 0.4, 0.2, 0.3])
    monkeypatch.setattr(screened, "smallest_margins", lambda *arguments, **keywords: margins)
    monkeypatch.setattr(
        screened, "load_test", lambda e: SimpleNamespace(test=SimpleNamespace(images=[], labels=[0] * 5))
    )
    robust = np.array([False, False, False, True, True])
    monkeypatch.setattr(screened.Robustness, "load", lambda path: SimpleNamespace(robust=robust, accuracy=0.4))
    # Of the four that are left, AutoAttack breaks the first and the last.
    line = screened.against_autoattack(folder, "final", 2)
    assert line == "| pgd_at-seed0 final | 80.0 | 60.0 | 40.0 | 2 | 1, 4 | 2 | 1 |"


def test_blocks_go_on_while_many_are_broken(monkeypatch):
    class Breaks:
        """Breaks what is darker than 0.76."""

        def __init__(self, **settings):
            pass

        def run(self, logits_fn, images, labels):
            robust = images[:, 0, 0, 0] > 0.76
            return SimpleNamespace(robust=robust, attacks=("fab-t",), fooled=~robust[None], seconds={"fab-t": 2.0})

    monkeypatch.setattr(screened, "AutoAttack", Breaks)
    means = np.linspace(0.62, 0.98, 19, dtype=np.float32)
    images = means[:, None, None, None] * np.ones((19, 4, 4, 1), np.float32)
    how = {"eps": 0.1, "step_size": 0.025, "block": 4}
    # 0.62 to 0.76 in steps of 0.02: eight are broken, so the third block breaks none and is the last.
    found = screened.screened(brightness, images, np.zeros(19, int), **how)
    assert (found["attacked"], found["broken"], found["ranks"]) == (12, {"fab-t": 8}, list(range(8)))
    assert found["accuracy"] == 11 / 19
    assert found["seconds"] == 6.0
    earlier = {"attacked": 4, "broken": {"fab-t": 4}, "ranks": [0, 1, 2, 3], "seconds": 2.0}
    assert screened.screened(brightness, images, np.zeros(19, int), **how, before=earlier) == found
    assert screened.screened(brightness, images, np.zeros(19, int), **how, before=found) == found


def test_a_row_with_fewer_seeds_names_them(tmp_path):
    def run(seed, low):
        series = [{"epoch": epoch, "test_pgd20": value} for epoch, value in ((1, 0.5), (2, low))]
        return a_run(tmp_path / str(seed), seed, series)

    all_of_them = [run(0, 0.4), run(1, 0.3), run(2, 0.2)]
    result = result_of({"A": all_of_them, "B": [run(0, 0.45), run(2, 0.25)]})
    content = to_json("piat", result, ["gap"])
    assert [row["of_seeds"] for row in content["rows"]] == [{}, {"gap": [0, 2]}]
    one, other = (by_seed(content, row, "gap") for row in content["rows"])
    assert one == pytest.approx({0: 10, 1: 20, 2: 30})
    assert other == pytest.approx({0: 5, 2: 25})
    assert by_seed(content, content["rows"][1], "best:aa") == {}


def pairs_of(ours):
    """An item's results with the pairs A, PIAT+A and B, PIAT+B."""
    rows = [{"setting": "s", "name": name, "ours": {"final:aa": values}} for name, values in ours.items()]
    rows += [{"setting": "t", "name": name, "ours": {"final:aa": [0, 1, 2]}} for name in ours]
    claims = [
        {"setting": setting, "method": f"PIAT+{name}", "other": name} for name in ("A", "B") for setting in ("s", "t")
    ]
    about = {"settings": [{"name": "s"}, {"name": "t"}], "keys": ["final:aa", "best:aa"]}
    return {"item": "fig6", "seeds": [0, 1, 2], **about, "rows": rows, "claims": claims}


def test_averages_over_methods_have_seeds_as_samples():
    ours = {"A": [50, 51, 52], "PIAT+A": [53, 53, 53], "B": [40, 40, 41], "PIAT+B": [41, 40, 43]}
    content = pairs_of(ours)
    # By seed: (3 + 1) / 2, (2 + 0) / 2, (1 + 2) / 2.
    found = on_average(content, "final:aa", "s")
    assert found.difference == interval(np.array([2, 1, 1.5]))
    assert (found.grown, found.runs) == (5, 6)
    one, other = averages_to_markdown(content).split("\n\n")
    assert "| AA final | 1.50 [0.26, 2.74] | 5 of 6 | 3 |" in one
    assert "| AA final | 0.00 [0.00, 0.00] | 0 of 6 | 3 |" in other
    assert "AA best" not in one + other
    # Without one seed of one method: (3 + 1) / 2 and (1 + 2) / 2.
    fewer = pairs_of({**ours, "PIAT+B": [41, 43]})
    fewer["rows"][3]["of_seeds"] = {"final:aa": [0, 2]}
    found = on_average(fewer, "final:aa", "s")
    assert (found.difference, found.runs, found.seeds) == (interval(np.array([2, 1.5])), 4, 2)
    fewer["rows"][3] |= {"ours": {"final:aa": [41]}, "of_seeds": {"final:aa": [2]}}
    with pytest.raises(
        InputError, match=r"have 1 of the seeds of final:aa in common, .*; PIAT\+B has 1: run more of it"
    ):
        on_average(fewer, "final:aa", "s")
    with pytest.raises(InputError, match=r"PIAT\+B has final:aa for 2 of 3 seeds"):
        on_average(pairs_of({**ours, "PIAT+B": [1, 2]}), "final:aa", "s")
    with pytest.raises(InputError, match="fig6 has no claims"):
        on_average({**content, "claims": []}, "final:aa", "s")


def test_differences_are_paired_by_seed(tmp_path, capsys):
    ours = {"A": [50, 51, 52], "PIAT+A": [53.5, 53, 53], "B": [40, 40, 41], "PIAT+B": [61, 70]}
    content = pairs_of(ours)
    content["rows"][3]["of_seeds"] = {"final:aa": [2, 0]}
    (tmp_path / "item.json").write_text(json.dumps(content))
    main = differences.main
    main([str(tmp_path / "item.json"), "PIAT+A", "--digits=3"])
    one, other = capsys.readouterr().out.split("\nt\n")
    low, high = scipy.stats.ttest_rel([53.5, 53, 53], [50, 51, 52]).confidence_interval()
    assert f"\n| A | 3 | +2.167 [{low:.3f}, {high:.3f}] |\n" in one  # includes 0
    low, high = scipy.stats.ttest_rel([53, 53.5], [61, 70]).confidence_interval()
    assert f"\n| PIAT+B | 2 | -12.250 [{low:.3f}, {high:.3f}] |\n" in one
    low, high = scipy.stats.ttest_rel([53.5, 53, 53], [40, 40, 41]).confidence_interval()
    assert f"\n| B | 3 | **+12.833 [{low:.3f}, {high:.3f}]** |\n" in one
    assert "\n| B | 3 | 40.333 ± 0.577 |\n" in one
    assert "\n| PIAT+A | " in one.partition("PIAT+A minus")[0]
    assert "\n| PIAT+A | " not in one.partition("PIAT+A minus")[2]
    assert "| A | 3 | +0.000 [0.000, 0.000] |" in other
    main([str(tmp_path / "item.json"), "B", "--digits=3"])
    assert f"\n| PIAT+A | 3 | **-12.833 [{-high:.3f}, {-low:.3f}]** |\n" in capsys.readouterr().out
    for arguments, message in (
        (["item.json", "C"], "there is no row 'C'; there are 'A', 'PIAT\\+A'"),
        (["item.json", "A", "--keys=final:aa,gap"], "A has no 'gap'; it has final:aa"),
        (["other.json", "A"], "has no rows of an item"),
        (["gone.csv", "A"], "gone.csv does not exist; piat-report writes it"),
        (["other.csv", "A"], "starts with 'method,seed', not with 'dataset,model,"),
    ):
        (tmp_path / "other.json").write_text("{}")
        (tmp_path / "other.csv").write_text("method,seed\na,1\n")
        with pytest.raises(InputError, match=message):
            main([str(tmp_path / arguments[0]), *arguments[1:]])


def test_differences_of_the_runs_that_piat_report_writes(tmp_path, capsys):
    accuracy = {"clean": 0.7, "pgd10": 0.5}
    runs = [
        RunResults(tmp_path, method, dataset, "net", 9, seed, (), 24, 24, 0, {"final": Checkpoint(9, shown)})
        for dataset in ("a", "b")
        for method, gain in (("piat", 0.01), ("pgd_at", 0.0))
        for seed in (3, 4)
        for shown in [{name: value + gain * seed for name, value in accuracy.items()}]
    ]
    (tmp_path / "runs.csv").write_text(runs_csv(runs))
    differences.main([str(tmp_path / "runs.csv"), "piat"])
    one, other = capsys.readouterr().out.split("\nb net\n")
    assert one.startswith("a net\n")
    for text in (one, other):
        assert "| pgd_at | 2 | +3.5 [-2.9, 9.9] | +3.5 [-2.9, 9.9] |" in text
        assert "| piat | 2 | 73.5 ± 0.7 | 53.5 ± 0.7 |" in text
    fewer = dataclasses.replace(runs[0], seed=5, checkpoints={"final": Checkpoint(9, {"clean": 0.75})})
    (tmp_path / "runs.csv").write_text(runs_csv([*runs, fewer]))
    differences.main([str(tmp_path / "runs.csv"), "piat"])
    assert "| piat | 3 | 74.0 ± 1.0 | 53.5 ± 0.7 (2) |" in capsys.readouterr().out.partition("b net")[0]
    (tmp_path / "runs.csv").write_text(runs_csv([*runs, runs[0]]))
    with pytest.raises(InputError, match="file has two runs of piat with seed 3"):
        differences.main([str(tmp_path / "runs.csv"), "piat"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("differences nope", "nope does not exist; experiments.run writes it"),
        ("power", "nope has no item with a claim of two seeds or more"),
        ("on_average", "nope does not exist; python -m experiments.run writes it"),
        ("screened", "workdir='nope' holds no run"),
    ],
)
def test_a_study_says_what_is_wrong_in_a_line(name, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    name, *more = name.split()
    monkeypatch.setattr(sys, "argv", [name, "nope", *more])
    monkeypatch.delitem(sys.modules, f"experiments.studies.{name}")
    with pytest.raises(SystemExit) as left:
        runpy.run_module(f"experiments.studies.{name}", run_name="__main__")
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
