from dataclasses import replace

import numpy as np
import pytest

from piat_jax.analysis import display_name, load_run
from piat_jax.analysis.runs import group_runs, variants
from piat_jax.core.checks import InputError


def test_a_run_is_what_its_files_say(run_at):
    run = load_run(run_at("a", "trades+piat", seed=7, every=2, pgd=(0.25, 0.5), num_examples=50))
    assert (run.method, run.dataset, run.model, run.epochs, run.seed) == ("trades+piat", "cifar10", "resnet18", 4, 7)
    assert run.num_examples == 50
    assert (run.checkpoints["best"].epoch, run.checkpoints["final"].epoch) == (2, 4)
    assert run.checkpoints["final"].accuracy == {"clean": 0.83, "pgd20": 0.55}
    epochs, values = run.series("test_pgd20")
    np.testing.assert_array_equal(epochs, [2, 4])
    np.testing.assert_array_equal(values, [0.25, 0.5])
    assert run.series("nothing")[0].shape == (0,)


def test_held_out_examples_stand_in_for_the_test_set(run_at):
    folder = run_at("a", pgd=(0.1, 0.2))
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace("test_pgd20", "validation_pgd20"))
    np.testing.assert_array_equal(load_run(folder).series("test_pgd20")[1], [0.1, 0.2])


def test_of_an_epoch_that_was_repeated_the_later_line_counts(run_at):
    folder = run_at("a", pgd=(0.1, 0.2, 0.3))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "test_pgd20": 0.9}\n')
    epochs, values = load_run(folder).series("test_pgd20")
    np.testing.assert_array_equal(epochs, [1, 2, 3])
    np.testing.assert_array_equal(values, [0.1, 0.9, 0.3])


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("pgd_at", "PGD-AT"),
        ("alp", "ALP"),
        ("trades", "TRADES"),
        ("nmse", "NMSE"),
        ("pgd_at+piat", "PIAT"),
        ("nmse+piat", "PIAT+NMSE"),
        ("trades+piat", "PIAT+TRADES"),
        ("pgd_at+las", "LAS-AT"),
        ("consistency+rebat+seat", "Consistency+ReBAT+SEAT"),
        ("standard+of_a_file_elsewhere", "Standard+OF-A-FILE-ELSEWHERE"),
        ("pgd_at+rpatpp+swa", "RPAT+++SWA"),
        ("pgd_at+awp+piat", "PIAT+AWP"),
    ],
)
def test_names(method, name):
    assert display_name(method) == name


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("config.json", "piat-train"),
        ("metrics.jsonl", "piat-train"),
        ("evaluation.json", "piat-evaluate"),
    ],
)
def test_a_missing_file_is_named_with_the_command_that_writes_it(run_at, file, command):
    folder = run_at("a")
    (folder / file).unlink()
    with pytest.raises(InputError) as caught:
        load_run(folder)
    assert str(caught.value) == f"{folder / file} does not exist; {command} --workdir={folder} writes it"


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone does not exist; .*piat-train --workdir="):
        load_run(tmp_path / "gone")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("metrics.jsonl", '{"epoch": 1}\n\n{"epoch": 2', r"metrics.jsonl, line 3 is not JSON"),
        ("metrics.jsonl", '{"epoch": 1}\n[]\n', r"metrics.jsonl, line 2 holds a JSON list"),
        ("metrics.jsonl", '{"step": 1}\n', r"metrics.jsonl, line 1 has epoch=None"),
        (
            "metrics.jsonl",
            '{"epoch": 1, "test_pgd20": 65.0}\n',
            r"line 1 has test_pgd20=65.0; .* fractions in \[0, 1\]",
        ),
        ("metrics.jsonl", '{"epoch": 1, "test_pgd20": NaN}\n', r"line 1 has test_pgd20=nan; .* fractions"),
        ("metrics.jsonl", "", r"metrics.jsonl is empty"),
        ("config.json", "{", r"config.json is not JSON"),
        ("config.json", '{"method": "alp", "dataset": {}}', r"config.json has no dataset.name"),
        ("config.json", '{"method": 3}', r"config.json has method=3; it must be of type str"),
        ("evaluation.json", '{"num_examples": 1}', r"evaluation.json has no checkpoints"),
        (
            "evaluation.json",
            '{"checkpoints": {}}',
            r"evaluation.json has no checkpoint best or final; run piat-evaluate",
        ),
        (
            "evaluation.json",
            '{"checkpoints": {"best": {"epoch": 1, "accuracy": {"aa": 51}}}}',
            r"evaluation.json has aa=51; accuracies are fractions",
        ),
    ],
)
def test_what_cannot_be_used_is_named(run_at, file, text, message):
    folder = run_at("a")
    (folder / file).write_text(text)
    with pytest.raises(InputError, match=message):
        load_run(folder)


def test_groups_keep_data_sets_apart_and_together(run_at):
    runs = [
        load_run(run_at("1", "trades")),
        load_run(run_at("2", "trades", dataset="svhn")),
        load_run(run_at("3", "alp")),
        load_run(run_at("4", "trades", seed=1)),
    ]
    found = [(group.dataset, group.method, [run.folder.name for run in group.runs]) for group in group_runs(runs)]
    assert found == [("cifar10", "trades", ["1", "4"]), ("cifar10", "alp", ["3"]), ("svhn", "trades", ["2"])]


def test_runs_that_are_no_seeds_of_one_experiment_are_refused(run_at):
    first = load_run(run_at("1", seed=0))
    with pytest.raises(InputError, match="both PGD-AT on cifar10 with seed 0; give one of them"):
        group_runs([first, load_run(run_at("2", seed=0))])
    with pytest.raises(InputError, match="no runs"):
        group_runs([])


def test_runs_of_one_method_are_told_apart_by_what_is_set_otherwise(run_at):
    runs = [load_run(run_at(str(epochs + seed), seed=seed, epochs=epochs)) for epochs in (4, 8) for seed in (0, 1)]
    assert [(group.name, len(group.runs)) for group in group_runs(runs)] == [
        ("PGD-AT, epochs=4", 2),
        ("PGD-AT, epochs=8", 2),
    ]
    # What follows another field, is not there in all, or makes no other experiment says nothing.
    both = {"attack.eps": 8 / 255, "evaluation.eps": 8 / 255, "log.tensorboard": True}
    other = {"attack.eps": 0.5, "evaluation.eps": 0.5, "log.tensorboard": False, "average.warmup": True}
    found = variants([replace(runs[0], fields=fields) for fields in (both, other)])
    assert found == ["attack.eps=8/255", "attack.eps=0.5"]
