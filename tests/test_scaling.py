"""The cost of a step as it grows: what is measured, and the figure of what was."""

import json
import shutil
from pathlib import Path

from experiments.throughput import scaling
from piat_jax.cli import errors

ROWS = Path("experiments/results/throughput/scaling.jsonl")


def test_every_point_is_measured_and_described():
    wanted = [(point.varied, point.settings) for point in scaling.points()]
    assert [(row["varied"], row["settings"]) for row in map(json.loads, ROWS.read_text().splitlines())] == wanted
    case = next(point.case for point in scaling.points() if point.varied == "devices" and point.value == 8)
    assert (case.what, case.model, case.batch) == ("apgd-ce", "16-32-8", 64)


def test_it_draws_what_was_measured(tmp_path):
    shutil.copy(ROWS, tmp_path)
    assert errors.run(scaling.main, [f"--out={tmp_path}", "--redraw"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"scaling.jsonl", "scaling.png", "scaling.svg"}


def test_what_is_refused(tmp_path, capsys):
    assert errors.run(scaling.main, [f"--out={tmp_path / 'none'}"]) == 2
    assert errors.run(scaling.main, [f"--out={tmp_path}", "--redraw"]) == 2
    assert "is no folder; make it first" in (printed := capsys.readouterr().err)
    assert "has nothing to draw; leave --redraw out" in printed
