import csv
import dataclasses
import html
import importlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import cost, run
from experiments.engine import kept, report, results
from experiments.engine.claims import Claim, border, holm, interval, p_value
from experiments.engine.items import Block, Item, Row, Setting, run_folder
from experiments.studies import screened
from piat_jax.cli import errors
from piat_jax.core.checks import InputError
from piat_jax.experiment import sweep
from piat_jax.experiment.config import load as read_config
from piat_jax.experiment.evaluation import settings_of
from piat_jax.experiment.methods import parse_method

ITEMS = {paper: importlib.import_module(f"experiments.papers.{paper}").ITEMS for paper in run.PAPERS}
SETTING = Setting(
    "tiny", "Tiny", "configs/embedded_512.py", Block("CIFAR10", "resnet18"), {"epochs": "4"}, aa_examples=5
)
# Of each seed: PGD-AT's and PIAT's final PGD-20 accuracy.
FINAL = {"pgd_at": (0.50, 0.52, 0.54), "pgd_at+piat": (0.56, 0.57, 0.61)}


def fake(job):
    """What piat-train and piat-evaluate leave, without training."""
    config = read_config(job.config, dict(job.overrides))
    seed = int(job.overrides["seed"])
    final = FINAL.get(str(config.method), (0.4,) * 3)[seed]
    job.folder.mkdir(parents=True)
    about = {"devices": ["cpu"], "machine": "m", "versions": {"jax": "1"}, "commit": "abc", "command": ["secret"]}
    epochs = [
        {"epoch": n, "train_seconds": 9.0 - n, "test_clean": 0.7, "test_pgd20": final + 0.05 * (n == 3)}
        for n in (2, 3, 4)
    ]
    accuracy = {"clean": 0.7, "pgd20": final, "cw20": 0.4, "aa": final - 0.1, "pgd10": 0.5, "pgd50": 0.5}
    points = {
        "best": {"epoch": 3, "accuracy": {**accuracy, "pgd20": final + 0.05}},
        "final": {"epoch": config.epochs, "accuracy": accuracy},
    }
    evaluation = {"num_examples": 1000, "aa_examples": 5, "settings": settings_of(config), "checkpoints": points}
    for name, content in (("config", config.plain()), ("run", about), ("evaluation", evaluation)):
        (job.folder / f"{name}.json").write_text(json.dumps(content))
    (job.folder / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))


@pytest.fixture
def commands(monkeypatch):
    """The commands that would be called; runs appear as if they had been."""
    called = []

    def pretend(command, name, environment, processes):
        called.append(command[2:])
        if command[2] == "piat_jax.cli.train":
            fake(pretend.due.pop(0))

    monkeypatch.setattr(sweep, "_run", pretend)
    original = sweep.run_jobs

    def remember(due, **options):
        pretend.due = [job for job in due if not job.folder.exists()]
        monkeypatch.setattr(sweep, "count_cores", lambda: 0)  # one after the other
        return original(due, **options)

    monkeypatch.setattr(sweep, "run_jobs", remember)
    monkeypatch.setattr(sweep, "is_trained", lambda job: (job.folder / "config.json").exists())
    return called


@pytest.fixture
def tiny(monkeypatch):
    """A paper of one item."""
    item = Item(
        "table1",
        "Table I",
        (Row("PGD-AT", "pgd_at"), Row("PIAT", "piat"), Row("MART", note="quoted")),
        {"small": (SETTING,)},
        published="I",
        extra=("diff", "nrr", "gap", "beyond"),
        claims=(
            Claim("PIAT ends more robust", "PIAT", "PGD-AT", "final:pgd20", "higher"),
            Claim("of what was not run", "PIAT", "MART", "final:pgd20", "higher"),
        ),
        draw="curves",
    )
    monkeypatch.setattr(importlib.import_module("experiments.papers.piat"), "ITEMS", (item,))
    return item


def call(*arguments):
    return errors.run(run.main, [str(argument) for argument in arguments])


def test_from_nothing_to_a_report_and_again(tmp_path, tiny, commands):
    flags = ("--seeds=0,1,2", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}")
    assert call("piat", "table1", *flags) == 0
    folders = sorted(path.name for path in (tmp_path / "runs" / "tiny").iterdir())
    assert folders == [f"{method}-seed{seed}" for method in ("pgd_at", "piat") for seed in range(3)]
    train, evaluate = commands[:2]
    assert train[1:] == [
        "--config=configs/embedded_512.py:pgd_at", f"--workdir={tmp_path / 'runs/tiny/pgd_at-seed0'}",
        "--config.epochs=4", "--config.seed=0",
    ]  # fmt: skip
    assert evaluate[2:] == ["--aa_examples=5", "--attacks=clean,pgd20,cw20,aa", "--resume"]
    assert len(commands) == 12

    content = json.loads((tmp_path / "out" / "table1.json").read_text())
    rows = {row["name"]: row for row in content["rows"]}
    np.testing.assert_allclose(rows["PIAT"]["ours"]["final:pgd20"], [56, 57, 61])
    np.testing.assert_allclose(rows["PGD-AT"]["ours"]["diff:pgd20"], [5, 5, 5])
    np.testing.assert_allclose(rows["PGD-AT"]["ours"]["gap"], [5, 5, 5])
    np.testing.assert_allclose(rows["PGD-AT"]["ours"]["nrr:final"][0], 2 * 70 * 40 / 110)
    assert rows["PGD-AT"]["paper"]["final:pgd20"] == 45.86
    assert rows["PGD-AT"]["paper"]["diff:pgd20"] == pytest.approx(4.43)
    assert rows["MART"]["ours"] == {}
    assert rows["MART"]["paper"]["best:aa"] == 47.45
    (claim,) = content["claims"]
    # Differences 6, 5, 7: mean 6, t(0.975, 2) = 4.303, deviation 1.
    np.testing.assert_allclose(
        [claim["mean"], claim["low"], claim["high"]], [6, 6 - 4.3027 / 3**0.5, 6 + 4.3027 / 3**0.5], rtol=1e-4
    )
    assert claim["verdict"] == "holds"

    text = (tmp_path / "out" / "report.md").read_text()
    assert (
        "| PIAT ends more robust | PIAT - PGD-AT, PGD-20 final | 6.00 [3.52, 8.48] | **holds** | 0.009 | 0.009 "
        "| tiny | 3 | table1 |" in text
    )
    assert "| PGD-AT | 70.00 ± 0.00 / 84.28 |" in text.replace("**", "")
    assert "MART: quoted" in text
    assert "AutoAttack on the first 5" in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert "secret" not in page + text
    assert page.count("data:image/png;base64,") == text.count("![") == 1
    assert page.count("<table") == page.count("</table>") == page.count('<div class="wide">') == 2
    assert re.findall(r'<table class="words">\s*<thead>\s*<tr>\s*<th scope="col">(.*)</th>', page) == ["Claim"]
    assert "<td><strong>holds</strong></td>" in page
    assert "<td>70.00 ± 0.00<small>84.28</small></td>" in page.replace("<strong>", "").replace("</strong>", "")
    assert '<th scope="col">PGD-20 final</th>' in page
    assert "<p><figure" not in page

    commands.clear()
    assert call("piat", "table1", *flags) == 0
    assert commands == []
    assert call("piat", "report", *flags) == 0
    assert (tmp_path / "out" / "report.md").read_text() == text


def test_what_is_there_so_far(tmp_path, tiny, commands, capsys):
    flags = ("--seeds=0,1,2", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}")
    assert call("piat", "table1", "--collect", *flags) == 2
    assert "table1 has no evaluated run" in capsys.readouterr().err
    assert call("piat", "table1", *flags) == 0
    commands.clear()
    (tmp_path / "runs/tiny/piat-seed2/evaluation.json").unlink()
    path = tmp_path / "runs/tiny/pgd_at-seed0/evaluation.json"
    content = json.loads(path.read_text())
    del content["checkpoints"]["best"]["accuracy"]["aa"]
    path.write_text(json.dumps(content))
    (tmp_path / "out" / "runs.json").unlink()
    assert call("piat", "table1", "--collect", *flags) == 0
    assert commands == []
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| 5.50 [-0.85, 11.85] | **not decided** | 0.058 | 0.058 | tiny | 2 | table1 |" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| PIAT | "))
    assert row.replace("**", "").split(" | ")[1] == "70.00 ± 0.00 (2)"
    (row,) = (line for line in text.splitlines() if line.startswith("| PGD-AT | "))
    assert row.count("(2)") == 3  # AA best, AA diff, NRR best
    assert call("piat", "report", *flags) == 0
    path = tmp_path / "out" / "table1.json"
    path.write_text(path.read_text().replace("chosen_on", "chosen_by"))
    capsys.readouterr()
    assert call("piat", "report", *flags) == 2
    assert "has results of another version, without 'chosen_on'" in capsys.readouterr().err


def test_numbers_outlive_their_runs(tmp_path, tiny, commands):
    def flags(seeds):
        return f"--seeds={seeds}", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"

    assert call("piat", "table1", *flags("0,1,2")) == 0
    written = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.[jm]*")}
    shutil.rmtree(tmp_path / "runs")
    assert call("piat", "table1", "--collect", *flags("0,1,2")) == 0
    assert {path.name: path.read_text() for path in (tmp_path / "out").glob("*.[jm]*")} == written

    # Another machine adds a seed, and replaces one.
    (tmp_path / "out" / "runs.json").write_text(
        written["runs.json"].replace('"final": {"epoch": 4', '"best2": {"epoch": 4')
    )
    assert call("piat", "table1", *flags("2")) == 0
    stored = json.loads((tmp_path / "out" / "runs.json").read_text())
    assert len(stored["runs"]) == 6
    assert [name for name, run in stored["runs"].items() if "final" in run["checkpoints"]] == [
        "tiny/pgd_at-seed2", "tiny/piat-seed2"
    ]  # fmt: skip
    assert stored["ran_on"] == [{"devices": ["cpu"], "machine": "m", "versions": {"jax": "1"}, "commit": "abc"}]


def test_kept_results_are_those_of_the_folder(tmp_path, tiny, commands):
    flags = ("--seeds=0", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}")
    assert call("piat", "table1", *flags) == 0
    (there,) = (run for name, run in kept.load(tmp_path / "out").items() if name == "tiny/piat-seed0")
    folder = results.load_run(tmp_path / "runs/tiny/piat-seed0")
    for key in ("best:pgd20", "final:aa", "diff:pgd20", "mean:best", "nrr:final", "oscillation", "gap"):
        assert results.measure(there, key) == pytest.approx(results.measure(folder, key)), key
    assert kept.load(tmp_path) == {}


def test_equal_results_are_equal_files(tmp_path, tiny, commands):
    flags = ("--seeds=0", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}")
    assert call("piat", "table1", *flags) == 0
    run = kept.load(tmp_path / "out")["tiny/piat-seed0"]
    found = {name: {"accuracy": 0.46, "pgd_cw": 0.5} for name in ("final", "best")}
    one, other = (
        kept.save(tmp_path / name, {"x/y-seed0": dataclasses.replace(run, settings={"screened": dict(order)})})
        for name, order in (("one", found.items()), ("other", reversed(found.items())))
    )
    assert one.read_text() == other.read_text()


@pytest.mark.parametrize(("same", "blocks"), [(True, {"aa_blocks": 5}), (True, {}), (False, {"aa_blocks": 5})])
def test_a_folder_with_fewer_attacks_removes_no_numbers(tmp_path, tiny, commands, same, blocks):
    flags = ("--seeds=0", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}")
    assert call("piat", "table1", *flags) == 0
    kept_runs = kept.load(tmp_path / "out")
    run = kept_runs["tiny/piat-seed0"]
    details = {**blocks, "screened": {"final": {"accuracy": 0.46, "pgd_cw": 0.5}}}
    kept.save(tmp_path / "out", {"tiny/piat-seed0": dataclasses.replace(run, settings=details)})
    path = tmp_path / "runs" / "tiny" / "piat-seed0" / "evaluation.json"
    evaluation = json.loads(path.read_text())
    for point in evaluation["checkpoints"].values():
        del point["accuracy"]["aa"]
        point["accuracy"]["clean"] -= 0 if same else 0.001  # other weights, or another evaluation
    path.write_text(json.dumps(evaluation))
    assert call("piat", "table1", "--collect", *flags) == 0
    run = kept.load(tmp_path / "out")["tiny/piat-seed0"]
    assert [results.measure(run, key) for key in ("best:aa", "final:aa", "beyond:final")] == (
        pytest.approx([46.0, 46.0, 4.0]) if same else [None] * 3
    )
    assert run.settings == (details if same else {})


def test_autoattack_on_fewer_images(tmp_path, tiny, commands, capsys):
    flags = ("--seeds=0", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}")
    assert call("piat", "table1", "--aa_examples=3", *flags) == 0
    assert commands[1][2] == "--aa_examples=3"
    content = json.loads((tmp_path / "out" / "table1.json").read_text())
    assert content["settings"][0]["aa_examples"] == 3
    assert call("piat", "table1", "--aa_examples=-1", *flags) == 2
    assert "aa_examples=-1 must be at least 0" in capsys.readouterr().err


def test_dry_run_writes_nothing(tmp_path, tiny, capsys, monkeypatch):
    papers = importlib.import_module("experiments.papers.piat")
    flags = ("--dry_run", "--seeds=7", f"--workdir={tmp_path / 'r'}", f"--out={tmp_path / 'o'}")

    def printed(*more):
        assert call("piat", "table1", *flags, *more) == 0
        return capsys.readouterr().out

    text = printed()
    assert re.search(r"pgd_at-seed7  [\d.]+ TFLOP", text)
    assert "2 runs; training:" in text

    def autoattack(text):
        return float(re.search(r"AutoAttack: at most ([\d.]+) TFLOP", text)[1])

    # Five images of each of two checkpoints of two runs.
    experiment = read_config("embedded_512:pgd_at", {})
    assert autoattack(text) == pytest.approx(4 * cost.autoattack_flop(experiment, 5) / 1e12, rel=0.01)
    assert autoattack(printed("--aa_examples=50")) == pytest.approx(10 * autoattack(text), rel=0.01)
    assert cost.autoattack_flop(experiment) == 1000 / 5 * cost.autoattack_flop(experiment, 5)
    one = printed("--rows=PIAT")
    assert "1 run; training:" in one
    assert "pgd_at-seed7" not in one
    assert autoattack(one) == pytest.approx(autoattack(text) / 2, rel=0.01)
    # By margin, in blocks: at most all 1,000.
    fewer = dataclasses.replace(SETTING, aa_examples=0, aa_blocks=5)
    monkeypatch.setattr(papers, "ITEMS", (dataclasses.replace(tiny, settings={"small": (fewer,)}),))
    assert autoattack(printed()) == pytest.approx(1000 / 5 * autoattack(text), rel=0.01)
    assert not list(tmp_path.iterdir())


def test_a_report_says_how_autoattack_went(tmp_path, tiny, commands, monkeypatch):
    fewer = dataclasses.replace(SETTING, aa_examples=0, aa_blocks=5)
    papers = importlib.import_module("experiments.papers.piat")
    monkeypatch.setattr(papers, "ITEMS", (dataclasses.replace(tiny, settings={"small": (fewer,)}),))
    seen, details = [], {"accuracy": 0.125, "pgd_cw": 0.25, "attacked": 6, "broken": {"square": 1}}

    def screen(folder, block):
        seen.append((folder.name, block))
        found = {"final": {**details, "blocks_of": block}}
        screened.path_of(folder, "final").parent.mkdir(parents=True)
        screened.path_of(folder, "final").write_text(json.dumps(found["final"]))
        path = folder / "evaluation.json"
        evaluation = json.loads(path.read_text())
        del evaluation["checkpoints"]["final"]["accuracy"]["aa"]
        path.write_text(json.dumps(evaluation))
        return found

    monkeypatch.setattr(screened, "screen_run", screen)
    flags = ("--seeds=0", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}")
    assert call("piat", "table1", *flags) == 0
    assert seen == [("pgd_at-seed0", 5), ("piat-seed0", 5)]
    assert not any("aa" in word.split("=")[-1].split(",") for command in commands for word in command)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "1000 test images, AutoAttack on them by margin, in blocks of 5 until it breaks hardly any; best" in text
    content = json.loads((tmp_path / "out" / "table1.json").read_text())
    assert content["rows"][0]["ours"]["final:aa"] == [12.5]
    run = kept.load(tmp_path / "out")["tiny/piat-seed0"]
    assert run.settings == {"aa_blocks": 5, "screened": {"final": details}}
    assert [results.measure(run, f"beyond:{name}") for name in ("best", "final")] == [None, 12.5]
    assert content["rows"][0]["ours"]["beyond:final"] == [12.5]
    assert "| Beyond PGD and CW final |" in text


def test_a_report_of_some_rows_has_the_finished_others(tmp_path, tiny, commands):
    flags = ("--seeds=0", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}")
    for name, methods in (("PIAT", ["piat"]), ("PGD-AT", ["pgd_at"])):
        commands.clear()
        assert call("piat", "table1", f"--rows={name}", "--jobs=1", *flags) == 0
        assert [command[1].rpartition(":")[2] for command in commands if "train" in command[0]] == methods
    content = json.loads((tmp_path / "out" / "table1.json").read_text())
    assert {row["name"] for row in content["rows"] if row["ours"]} == {"PGD-AT", "PIAT"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which paper? piat, rpat, ecas"),
        (("piatt",), "paper='piatt' is unknown; did you mean 'piat'?"),
        (("piat", "tabel1"), "item='tabel1' is unknown; did you mean 'table1'?"),
        (("piat", "table1_fashion", "--scale=paper"), "table1_fashion has no --scale=paper; give --scale=small"),
        (("piat", "table1", "--data=embeded_512"), "data='embeded_512' is unknown; did you mean 'embedded_512'?"),
        (("piat", "table1", "--rows=TRADE"), "rows='TRADE' is unknown; did you mean 'TRADES'?"),
        (("piat", "table1", "--config.epoch=1"), "config.epoch is unknown; did you mean 'epochs'?"),
        (("piat", "table1", "--scale=large"), "--scale"),
        (("piat", "table1", "--dry_run", "--tflops=0"), "tflops=0"),
    ],
)
def test_refused_before_anything_runs(arguments, message, tmp_path, commands, capsys):
    folder = [f"--workdir={tmp_path / 'runs'}"] if arguments else []
    assert call(*arguments, *folder) == 2
    assert message in capsys.readouterr().err
    assert commands == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<<<<<<< HEAD", "runs.json is not JSON"),
        ('{"ran_on": []}', "as experiments.run writes them (KeyError('runs'))"),
        (
            '{"ran_on": [], "runs": {"embedded_512/piat-seed0": {"method": "piat"}}}',
            "as experiments.run writes them (KeyError('during_training'))",
        ),
    ],
)
def test_broken_results_are_noticed_before_anything_runs(text, message, tmp_path, tiny, commands, capsys):
    (tmp_path / "runs.json").write_text(text)
    assert call("piat", "table1", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path}") == 2
    assert message in capsys.readouterr().err
    assert commands == []
    assert (tmp_path / "runs.json").read_text() == text


def test_items_are_reported_in_the_papers_order(tmp_path, tiny, commands):
    flags = ("--seeds=0", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path}")
    assert call("piat", "table1", *flags) == 0
    first = json.loads((tmp_path / "table1.json").read_text())
    for key in ("fig9", "fig10", "extra"):
        (tmp_path / f"{key}.json").write_text(json.dumps({**first, "item": key, "title": key}))
    (path, _) = report.write(tmp_path, "piat", ["fig9", "table1", "fig10"])
    titles = re.findall(r"^## (.*)$", path.read_text(), re.MULTILINE)
    assert titles[1:-1] == ["fig9", "Table I", "fig10", "extra"]


@pytest.mark.parametrize(
    "text", ["ReBAT*, *a*, **b**", "a|b", "_a_ __b__ wrn34_10 _", "<b>x</b>", "[a](b)", "`a` ~~b~~", "\\"]
)
def test_a_report_shows_every_text_as_it_is(text, tmp_path):
    page = report.to_html(f"# x\n\n| a |\n|---|\n| {report.plain(text)} |", tmp_path)
    assert f"<td>{html.escape(text)}</td>" in page


def test_a_pictures_caption_is_text(tmp_path):
    (tmp_path / "a.png").write_bytes(b"abc")
    page = report.to_html(f"# x\n\n![{report.plain('of <PIAT> [0, 1], *')}](a.png)", tmp_path)
    assert 'src="data:image/png;base64,YWJj">' in page
    assert "<figcaption>of &lt;PIAT&gt; [0, 1], *</figcaption>" in page


def test_p_values_are_the_paired_t_tests():
    from scipy.stats import ttest_1samp

    values = np.random.default_rng(0).normal(0.4, 1.0, 7)
    for edge in (0.0, -1.0):
        assert p_value(interval(values), 7, edge) == pytest.approx(ttest_1samp(values, edge).pvalue)
    assert p_value(interval(np.ones(3)), 3) == 0.0
    assert p_value(interval(np.zeros(3)), 3) == 1.0
    assert border("kept") == -1.0
    assert border("higher") == border("lower") == 0.0


def test_holms_correction_bounds_false_rejections():
    rng = np.random.default_rng(1)
    draws = rng.uniform(size=(4000, 10))  # no claim of any report is true
    any_rejected = np.mean([min(holm(row.tolist())) < 0.05 for row in draws])
    assert any_rejected == pytest.approx(1 - (1 - 0.005) ** 10, abs=0.012)
    assert np.mean(draws.min(axis=1) < 0.05) > 0.35  # uncorrected
    assert holm([None, 0.2]) == [None, 0.2]


def test_an_empty_report_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no results of 'ecas'"):
        report.write(tmp_path, "ecas")


def test_a_failed_run_stops_with_its_last_line(tmp_path):
    with pytest.raises(InputError, match=r"x failed with exit code 2: error: --config is missing"):
        sweep._run([sweep.sys.executable, "-m", "piat_jax.cli.train"], "x", dict(sweep.os.environ), sweep.Processes())


def test_a_list_of_everything(capsys):
    for paper in run.PAPERS:
        assert call(paper) == 0
    listed = capsys.readouterr().out
    for key in ("table1 ", "table4 ", "fig8 ", "fig4b "):
        assert key in listed


def file_of(job):
    return job.config.partition(":")[0]


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_every_run_of_every_item_has_a_config_that_is_right(scale, tmp_path):
    seen, checked, spelt = {}, {}, {}
    for items in ITEMS.values():
        for item in items:
            for setting in item.settings.get(scale, ()):
                for job in item.at(scale).jobs(setting, [0], tmp_path, {}):
                    # One folder, one run.
                    content = (job.config, *sorted(job.overrides.items()))
                    assert seen.setdefault(job.folder, content) == content
                    # One run, one folder.
                    method = str(parse_method(job.method))
                    run_ = (job.folder.parent, method, *sorted(job.overrides.items()))
                    assert spelt.setdefault(run_, job.folder) == job.folder
                    # Each method, each of its overrides and each config file at least once.
                    file = file_of(job)
                    own = tuple(sorted(job.overrides.keys() - setting.overrides.keys()))
                    if not sweep.teachers(method) and not {file, (method, own)} <= checked.keys():
                        checked |= {file: job, (method, own): job}
    assert len(seen) > 60
    sweep.check(list({job.folder: job for job in checked.values()}.values()))


def test_every_published_number_stands_beside_a_row():
    reached = set()
    for paper, items in ITEMS.items():
        for item in items:
            for setting in item.settings.get("paper", ()):
                assert setting.beside
                for row in item.rows:
                    for key in run.keys_of(item):
                        if results.published(paper, item, setting.beside, row, key) is not None and ":" in key:
                            checkpoint, attack = key.split(":")
                            name = row.published or row.name
                            metric = results.IN_TABLES.get(attack, attack)
                            reached.add((paper.upper(), item.published, *setting.beside, name, checkpoint, metric))
    with results.PAPER_TABLES.open(newline="") as file:
        lines = list(csv.reader(file))[1:]
    everything = {tuple(line[:-1]) for line in lines}
    assert len(everything) == len(lines) == 799
    assert everything - reached == set()


def test_time_is_compared_at_the_papers_scale_only():
    item = next(item for item in ITEMS["ecas"] if item.key == "table3")
    of_time = [claim for claim in item.claims if claim.measure == "seconds"]
    assert of_time
    assert "seconds" in run.keys_of(item.at("paper"))
    small = item.at("small")
    assert "seconds" not in run.keys_of(small)
    assert len(small.claims) == len(item.claims) - len(of_time) > 0


def test_teachers_come_first_and_are_named(tmp_path):
    setting = Setting("tiny", "", "configs/embedded_512.py")
    item = Item("x", "", (Row("KD+SWA", "kd+swa"), Row("PGD-AT", "pgd_at")), {"small": (setting,)})
    due = item.jobs(setting, [3], tmp_path, {"epochs": "2"})
    assert [job.folder.name for job in due] == ["standard-seed3", "pgd_at-seed3", "kd+swa-seed3"]
    assert due[2].overrides["kd.robust"] == str(run_folder(tmp_path, setting, item.rows[1], 3))
    assert all(job.overrides["epochs"] == "2" for job in due)


def test_what_a_papers_other_codes_do_stands_in_its_items():
    def jobs(paper, key):
        item = next(item for item in ITEMS[paper] if item.key == key).at("paper")
        return {
            (setting.name, job.config.partition(":")[2]): job
            for setting in item.settings["paper"]
            for job in item.jobs(setting, [0], Path("x"), {})
        }

    ecas = jobs("ecas", "table3")
    rates = {method: job.overrides["optimizer.lr_values"] for (_, method), job in ecas.items()}
    assert rates["trades+ecas"] == "0.1,0.1,0.01,0.01"  # its second drop is never reached
    assert rates["ecas"] == rates["trades"] == "0.1,0.1,0.01,0.01,0.001,0.001"
    for key in ("table3", "table4"):
        for (setting, _), job in jobs("rpat", key).items():
            assert job.overrides["dataset.padding_mode"] == "reflect"
            assert job.overrides["model.mean"].startswith("0.5071" if "cifar100" in setting else "0.4914")
    assert all("dataset.padding_mode" not in job.overrides for job in jobs("rpat", "table1").values())
    (vit, *_) = next(item for item in ITEMS["piat"] if item.key == "table4").settings["paper"]
    assert "36th and 38th" in vit.differs
