"""The HTML page of a report."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from piat_jax.analysis import charts, load_run, report
from piat_jax.analysis.charts import confusion_matrix, interpolation_weights, series_of
from piat_jax.analysis.html import Markup, tag
from piat_jax.analysis.report import make_report
from piat_jax.analysis.runs import group_runs
from piat_jax.core.checks import InputError

EVIL = "<script>alert(1)</script>"


class Parsed(HTMLParser):
    """Elements, what they refer to, their ids, and the texts."""

    EMPTY = ("br", "img", "meta")

    def __init__(self, source):
        super().__init__()
        self.names, self.links, self.ids, self.texts, self.open, self.handlers = [], [], [], [], [], []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.names.append(name)
        if name not in self.EMPTY:
            self.open.append(name)
        for key, value in attributes:
            if key in ("href", "src", "xlink:href"):
                self.links.append(value)
            if key == "id":
                self.ids.append(value)
            if key.startswith("on"):
                self.handlers.append(key)

    def handle_startendtag(self, name, attributes):
        self.handle_starttag(name, attributes)
        if name not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if data.strip() and "style" not in self.open:
            self.texts.append(data)


def change(folder, name, fill):
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    fill(content)
    path.write_text(json.dumps(content))


def made(runs, **options):
    return make_report([load_run(folder) for folder in runs], **options)


def test_a_page_is_whole_and_asks_for_nothing(run_at, tmp_path):
    page = made([run_at("1"), run_at("2", seed=1), run_at("3", "pgd_at+piat")])
    found = Parsed(page.html)
    assert page.html.startswith("<!doctype html>\n")
    for link in found.links:
        assert link.startswith(("#", "data:"))
    assert "script" not in found.names
    assert "link" not in found.names
    assert len(found.ids) == len(set(found.ids))
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    for name in re.findall(r"url\(#([^)]*)\)", page.html):
        assert name in found.ids
    assert "prefers-color-scheme: dark" in page.html
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", page.html)
    assert list(page.figures) == [
        "curve_test_pgd20", "curve_test_clean", "curve_train_adversarial_accuracy", "curve_train_loss"
    ]  # fmt: skip
    # What nothing is known of has no section.
    assert [text for text in found.texts if text in ("Accuracy against the radius", "Time and cost")] == []
    # The same runs give the same page.
    assert made([tmp_path / name for name in "123"]).html == page.html


def test_names_from_files_are_text(run_at):
    runs = [run_at("1", f"a{EVIL}", dataset=f"d{EVIL}"), run_at("2", "x$\\bad{$+y$", dataset='"><img src=x onerror=1>')]

    def evaluation(content):
        content["class_names"] = [EVIL, "b$c$"]
        content["settings"] = {"eps": 0.1, "norm": f"n{EVIL}"}
        of_classes = {"worst_class": EVIL, "worst": 0.1, "classes": [0.1, 0.2]}
        content["checkpoints"]["best"]["by_class"] = {f"pgd{EVIL}": of_classes}
        content["checkpoints"]["best"]["accuracy"][f"pgd{EVIL}"] = 0.1

    change(runs[0], "evaluation.json", evaluation)
    about = {"commit": EVIL, "devices": [EVIL], "versions": {EVIL: EVIL}, "machine": EVIL}
    change(runs[0], "run.json", lambda content: content.update(about))
    page = made(runs)
    found = Parsed(page.html)
    assert "script" not in found.names
    assert "img" not in found.names
    assert found.handlers == []
    texts = "".join(found.texts)
    for shown in (f"d{EVIL}", '"><img src=x onerror=1>', f"commit {EVIL[:12]}", f"PGD{EVIL.upper()}", "b$c$"):
        assert shown in texts
    assert "<script" not in page.html
    assert "default-src 'none'" in page.html.replace("&#x27;", "'")
    assert tag("a", "&", title='"<') == '<a title="&quot;&lt;">&amp;</a>'
    assert tag("p", Markup("<b>x</b>"), None, 1) == "<p><b>x</b>1</p>"


def test_facts_and_numbers_are_those_of_the_files(run_at):
    runs = [run_at("1"), run_at("2", seed=1, best={"clean": 0.9, "pgd20": 0.7}), run_at("3", "trades", pgd=(0.1, 0.2))]
    for folder in runs:
        change(folder, "config.json", lambda c: c.update(attack={"eps": 8 / 255, "norm": "linf", "steps": 7}))
        settings = {"eps": 4 / 255, "norm": "linf", "step_size": 1 / 255, "restarts": 1}
        change(folder, "evaluation.json", lambda c, settings=settings: c.update(settings=settings))
        about = {"devices": ["TPU v4"] * 2, "versions": {"jax": "9.9"}, "commit": "abcdef0123456789+"}
        change(folder, "run.json", lambda c, about=about: c.update(about))
    page = made(runs)
    texts = Parsed(page.html).texts
    for shown in ("L-inf, eps 8/255, 7 steps", "L-inf, eps 4/255", "0, 1", "85.00 ± 7.07", "65.00 ± 7.07"):
        assert shown in texts
    assert "Trained on 2 x TPU v4; jax 9.9; commit abcdef012345+." in texts
    joined = " ".join(texts)
    assert "1 of 2 settings were run with one seed" in joined
    assert "AutoAttack was not run" in joined
    assert "a step is 0.003922 (1/255); it starts once." in joined
    assert "1 of 3 runs have not reached their last epoch" in joined
    # Half of 1,000: 100 * sqrt(0.25 / 1000).
    assert "the standard error of each is at most 1.6 points" in joined
    assert "<b>85.00 ± 7.07</b>" in page.html


def test_time_is_added_up(run_at):
    folder = run_at("1")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        line |= {"train_seconds": 60.0, "evaluate_seconds": 30.0, "images_per_second": 100.0 * (number + 1)}
        line |= {"peak_memory_bytes": 10**9 * (number + 1)}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = Parsed(made([folder]).html).texts
    at = texts.index("Training (min)")
    assert texts[at : at + 9] == [
        "Training (min)",
        "Monitoring (min)",
        "Images/s in training",
        "Memory (GB)",
        "PGD-AT",
        "1",
        "4.00",
        "2.00",
        "250.00",
    ]
    assert texts[at + 9] == "4.00"


def test_scores_are_drawn_or_refused(run_at):
    runs = [run_at("1")]
    assert "curve_test_pgd20" in made(runs).figures
    lines = (runs[0] / "metrics.jsonl").read_text().replace('"train_loss"', '"grad norm/x"')
    (runs[0] / "metrics.jsonl").write_text(lines)
    page = made(runs, scores=["grad norm/x"])
    assert "curve_grad_norm_x" in page.figures
    (axes,) = page.figures["curve_grad_norm_x"].axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1, 1, 1, 1])
    with pytest.raises(
        InputError, match=r"scores='nope' is not in any run's metrics; they have epoch, grad norm/x, test_"
    ):
        made(runs, scores=["nope"])


def test_many_settings_stay_within_bounds(run_at, monkeypatch):
    monkeypatch.setattr(report, "MOST_LINES", 2)
    monkeypatch.setattr(charts, "MOST_LINES", 2)
    monkeypatch.setattr(report, "MOST_FOLDERS", 3)
    page = made([run_at(str(i), f"m{i}") for i in range(5)])
    assert [line.get_label() for line in page.figures["curve_test_clean"].axes[0].lines] == ["M0", "M1"]
    assert "Drawn: the first 2 of 5 settings." in page.html
    assert "The first 3 of 5 runs." in page.html


def test_the_weight_of_the_past_is_the_papers(run_at):
    fields = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 10.0, "first_epoch": 1}
    with_piat, without = run_at("1", "pgd_at+piat"), run_at("2")
    for folder in (with_piat, without):
        change(folder, "config.json", lambda c: c.update(piat=fields))
    epochs, weights = interpolation_weights(load_run(with_piat))
    np.testing.assert_array_equal(epochs, [1, 2, 3, 4])
    np.testing.assert_allclose(weights, [(n + 1) / (n + 10) for n in (1, 2, 3, 4)])
    assert len(interpolation_weights(load_run(without))[0]) == 0  # every config has the fields
    assert "curve_piat_weight" in made([with_piat, without]).figures


def test_series_of_seeds_meet_where_all_are(run_at):
    runs = [load_run(run_at("1", pgd=(0.2, 0.4, 0.6))), load_run(run_at("2", seed=1, pgd=(0.4, 0.4)))]
    (group,) = group_runs(runs)
    drawn = series_of(group, lambda run: run.series("test_pgd20"), 100.0)
    np.testing.assert_allclose(
        [drawn.epochs, drawn.low, drawn.mean, drawn.high], [[1, 2], [20, 40], [30, 40], [40, 40]]
    )


def test_a_confusion_matrix_by_hand():
    labels, predicted = np.array([0, 0, 0, 2, 2]), np.array([0, 1, 1, 2, 0])
    matrix = confusion_matrix(labels, predicted, ["a", "b", "c"])
    np.testing.assert_array_equal(matrix.counts, [[1, 2, 0], [0, 0, 0], [1, 0, 1]])
    assert matrix.accuracy == pytest.approx(2 / 5)
    assert charts.mistakes(matrix) == [("a", "b", 2), ("c", "a", 1)]
    figure = charts.draw_matrix(matrix)
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["33", "50", "50", "67"]
    with pytest.raises(InputError, match="predicted has classes 0 to 3, but there are 3 names"):
        confusion_matrix(labels, np.array([0, 1, 3, 0, 0]), ["a", "b", "c"])


def test_runs_at_several_radii_make_a_curve(run_at):
    def at(name, eps, accuracy, *, norm="linf", **options):
        folder = run_at(name, best={"clean": 0.9, "pgd20": accuracy}, **options)
        change(folder, "config.json", lambda c: c.update(evaluation={"eps": eps, "step_size": eps / 4}))
        change(folder, "evaluation.json", lambda c: c.update(settings={"eps": eps, "norm": norm}))
        return folder

    runs = [at("1", 0.1, 0.6), at("2", 0.2, 0.4), at("3", 0.1, 0.5, seed=1), at("4", 0.1, 0.7, seed=2, norm="l2")]
    (axes,) = made(runs).figures["radii_pgd20"].axes
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xydata(), [[0, 90], [0.1, 55], [0.2, 40]])
    assert axes.get_xlabel() == "L-inf radius"
    assert "radii_clean" not in made(runs).figures
    # One radius is no curve, and other experiments are no part of one.
    assert "radii_pgd20" not in made(runs[:1]).figures
    change(runs[1], "config.json", lambda c: c.update(epochs=5))
    assert "radii_pgd20" not in made(runs).figures
