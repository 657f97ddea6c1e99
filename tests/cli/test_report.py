import json

import pytest

from piat_jax.analysis import curves
from piat_jax.cli import errors, report

FILES = [
    "figures", "piat.md", "report.html", "robust_accuracy.png", "runs.csv", "stability.md", "table.csv", "table.md"
]  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    """A folder with two runs and something else."""
    for name, method, final in (("b_plain", "pgd_at", 0.4), ("a_piat", "pgd_at+piat", 0.5)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        config = {"method": method, "dataset": {"name": "d"}, "model": {"name": "m"}, "epochs": 2, "seed": 0}
        (folder / "config.json").write_text(json.dumps(config))
        lines = [{"epoch": i, "test_pgd20": value} for i, value in ((1, 0.5), (2, final))]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        points = {"best": {"epoch": 1, "accuracy": {"pgd20": 0.5}}, "final": {"epoch": 2, "accuracy": {"pgd20": final}}}
        (folder / "evaluation.json").write_text(json.dumps({"num_examples": 10, "checkpoints": points}))
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path / "runs"


def call(*arguments):
    return errors.run(report.main, [str(argument) for argument in arguments])


def test_a_folder_of_runs(runs, capsys):
    assert call(runs) == 0
    out = runs / "report"
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert (out / "table.csv").read_text().splitlines() == [
        "Method,Seeds,PGD-20 Best,PGD-20 Final,PGD-20 Diff",
        "PIAT,1,50.0000,50.0000,0.0000",
        "PGD-AT,1,50.0000,40.0000,10.0000",
    ]
    assert "**10.00**" not in (out / "table.md").read_text()
    assert "| PIAT   |     1 |   **50.00** |    **50.00** |" in (out / "table.md").read_text()
    assert "Oscillation" in (out / "stability.md").read_text()
    assert (out / "robust_accuracy.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["Method", "Seeds", "PGD-20", "Best", "PGD-20", "Final", "PGD-20", "Diff"]
    written = ("table.md", "table.csv", "stability.md", "runs.csv", "piat.md", "robust_accuracy.png", "report.html")
    assert printed.splitlines()[-7:] == [str(out / name) for name in written]
    assert (out / "runs.csv").read_text().splitlines()[:4] == [
        "dataset,model,method,seed,what,epoch,pgd20",
        "d,m,pgd_at+piat,0,best,1,50",
        "d,m,pgd_at+piat,0,final,2,50",
        "d,m,pgd_at+piat,0,training,1,50",
    ]
    # Its own output is no run.
    assert call(runs) == 0


def test_the_worst_class(runs, capsys):
    path = runs / "b_plain" / "evaluation.json"
    content = json.loads(path.read_text()) | {"class_names": ["cat", "dog", "eel"]}
    found = {"worst_class": "dog", "worst": 0.125, "classes": [0.5, 0.125, None]}
    content["checkpoints"]["final"]["by_class"] = {"pgd20": found}
    path.write_text(json.dumps(content))
    assert call(runs) == 0
    out = runs / "report"
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "classes.csv", "worst_class.md"])
    table = (out / "worst_class.md").read_text().splitlines()
    assert table[0].replace(" ", "") == "|Method|Seeds|PGD-20Best|PGD-20Final|"
    # What is not known has a dash.
    assert [line.replace(" ", "") for line in table[2:4]] == [
        "|PIAT|1|\N{EN DASH}|\N{EN DASH}|",
        "|PGD-AT|1|\N{EN DASH}|12.50|",
    ]
    lines = (out / "classes.csv").read_text().splitlines()
    assert lines[0] == "dataset,model,method,seed,what,attack,class,accuracy"
    assert lines[1:] == [f"d,m,pgd_at,0,final,pgd20,{text}" for text in ("cat,50", "dog,12.5", "eel,")]
    assert "\nWorst class\n" in capsys.readouterr().out
    for change, message in (
        ({"worst": 1.5}, "worst=1.5; accuracies are fractions"),
        ({"classes": [0.5]}, "has 1 accur"),
    ):
        content["checkpoints"]["final"]["by_class"] = {"pgd20": found | change}
        path.write_text(json.dumps(content))
        assert call(runs) == 2
        assert message in capsys.readouterr().err


def test_minimum_norms(runs, capsys):
    for name, median in (("a_piat", 0.25), ("b_plain", None)):
        path = runs / name / "evaluation.json"
        content = json.loads(path.read_text())
        curve = {"eps": [0.0, 0.25, 0.5], "accuracy": [0.75, 0.5, 0.0]}
        found = {"norm": "l2", "median": median, "found": 0.75, "curve": curve}
        content["checkpoints"]["final"]["minimum_norm"] = {"fmn100": found}
        path.write_text(json.dumps(content))
    assert call(runs) == 0
    out = runs / "report"
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "fmn100.png", "minimum_norm.md"])
    assert (out / "fmn100.png").read_bytes().startswith(b"\x89PNG")
    table = [line.replace(" ", "") for line in (out / "minimum_norm.md").read_text().splitlines()]
    dash = "\N{EN DASH}"
    assert table[0] == "|Method|Seeds|FMN-100(L2)Best|FMN-100(L2)Final|"
    assert table[2:4] == [f"|PIAT|1|{dash}|0.25000|", f"|PGD-AT|1|{dash}|{dash}|"]
    assert "Median of the smallest norms\n" in capsys.readouterr().out
    # Other norms do not go into one figure.
    content["checkpoints"]["final"]["minimum_norm"] = {"fmn100": found | {"norm": "linf"}}
    path.write_text(json.dumps(content))
    (out / "fmn100.png").unlink()
    assert call(runs) == 0
    assert not (out / "fmn100.png").exists()
    assert "no fmn100.png: fmn100 was run on the final checkpoints in l2 and linf" in capsys.readouterr().err
    assert "FMN-100 (L2 or L-inf) Final" in (out / "minimum_norm.md").read_text()
    for change, message in (
        ({"curve": {"eps": [0.0, 0.25], "accuracy": [0.5]}}, "2 radii of fmn100 for 1 accuracies"),
        ({"curve": {"eps": [0.0, 0.1], "accuracy": [7, 0.5]}}, "accuracy[0]=7; accuracies are fractions"),
        ({"found": 2.0}, "found=2.0; accuracies are fractions"),
    ):
        content["checkpoints"]["final"]["minimum_norm"] = {"fmn100": found | change}
        path.write_text(json.dumps(content))
        assert call(runs) == 2
        assert message in capsys.readouterr().err


def test_given_runs_keep_their_order_and_count_once(runs, tmp_path):
    out = tmp_path / "x" / "y"
    assert call(runs / "b_plain", runs / "a_piat", f"{runs}/notes/../b_plain", runs, f"--out={out}") == 0
    assert [line.split(",")[0] for line in (out / "table.csv").read_text().splitlines()] == ["Method", "PGD-AT", "PIAT"]
    assert not (runs / "report").exists()


def test_where_a_report_goes_by_default(runs, monkeypatch, capsys):
    assert call(runs / "b_plain", runs / "a_piat") == 0
    assert (runs / "report" / "table.md").exists()
    monkeypatch.chdir(runs)
    assert call("a_piat") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "a_piat/report/report.html"
    assert (runs / "a_piat" / "report" / "table.md").exists()


def test_too_many_lines_are_not_drawn(runs, capsys, monkeypatch):
    monkeypatch.setattr(curves, "MOST_LINES", 1)
    assert call(runs) == 0
    assert "2 methods are too many lines for robust_accuracy.png; give at most 1" in capsys.readouterr().out
    assert not (runs / "report" / "robust_accuracy.png").exists()


def test_a_run_without_curves_is_in_the_table_alone(runs, capsys):
    (runs / "a_piat" / "metrics.jsonl").write_text('{"epoch": 2}\n')
    assert call(runs) == 0
    assert f"{runs / 'a_piat'} has no test_pgd20 in its metrics and is not in the figure" in capsys.readouterr().out
    (runs / "b_plain" / "metrics.jsonl").write_text('{"epoch": 2}\n')
    assert call(runs, f"--out={runs / 'out'}") == 0
    assert sorted(path.name for path in (runs / "out").iterdir()) == [
        name for name in FILES if name not in ("figures", "robust_accuracy.png")
    ]


def fails(capsys, *arguments):
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_errors_are_one_line_and_nothing_is_written(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert "no run folders" in fails(capsys, f"--out={out}")
    assert f"{runs / 'gone'} does not exist" in fails(capsys, runs / "gone", f"--out={out}")
    assert f"{runs / 'notes'} is not a run and holds none" in fails(capsys, runs / "notes", f"--out={out}")
    assert "oot" in fails(capsys, runs, f"--oot={out}")
    assert not out.exists()
    assert not (runs / "report").exists()


def test_an_out_that_is_a_file(runs, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    assert "give another --out" in fails(capsys, runs, f"--out={tmp_path / 'file'}")
    assert (tmp_path / "file").read_text() == "kept"


def test_help(capsys):
    assert call("--help") == 0
    assert "--out" in capsys.readouterr().out


def test_a_run_that_was_not_evaluated_is_left_out_with_a_note(runs, tmp_path, capsys):
    (runs / "b_plain" / "evaluation.json").unlink()
    assert call(runs, f"--out={tmp_path / 'out'}") == 0
    told = capsys.readouterr()
    how = f"piat-evaluate --workdir={runs / 'b_plain'}"
    assert told.err == f"note: {runs / 'b_plain'} is left out because it has not been evaluated; run {how}\n"
    assert "PIAT" in told.out
    assert "PGD-AT" not in told.out
    (runs / "a_piat" / "evaluation.json").unlink()
    assert call(runs, f"--out={tmp_path / 'other'}") == 2
    assert "error: none of the 2 runs has been evaluated; run piat-evaluate RUN first\n" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_what_chose_the_best_epoch_is_drawn(runs, capsys):
    for name in ("a_piat", "b_plain"):
        for file in ("metrics.jsonl", "config.json"):
            path = runs / name / file
            path.write_text(path.read_text().replace("test_pgd20", "test_cw7"))
        config = json.loads((runs / name / "config.json").read_text())
        (runs / name / "config.json").write_text(json.dumps(config | {"evaluation": {"select": "cw7"}}))
    assert call(runs) == 0
    assert str(runs / "report" / "robust_accuracy.png") in capsys.readouterr().out
    assert "| Method | Seeds | CW-7 Best | CW-7 Final |" in (runs / "report" / "stability.md").read_text()


def test_an_export_beside_the_runs_is_no_run(runs, capsys):
    (runs / "exported").mkdir()
    for name in ("config.json", "model.safetensors"):
        (runs / "exported" / name).write_text("{}")
    assert call(runs) == 0
    assert "exported" not in capsys.readouterr().err
