import csv
import json

import pytest

from piat_jax.core.checks import InputError
from piat_jax.loggers import MetricsWriter, read_metrics


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_jsonl_and_csv(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write({"epoch": 1, "train_loss": 2.0})
    writer.write({"epoch": 2, "train_loss": 1.5, "test_pgd20": 0.25})
    assert lines(tmp_path) == [{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1.5, "test_pgd20": 0.25}]
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"epoch": "1", "train_loss": "2.0", "test_pgd20": ""},
        {"epoch": "2", "train_loss": "1.5", "test_pgd20": "0.25"},
    ]


def test_a_resumed_run_drops_what_came_after_the_epoch_it_goes_on_from(tmp_path):
    writer = MetricsWriter(tmp_path)
    for epoch in (1, 2, 3):
        writer.write({"epoch": epoch})
    with (tmp_path / "metrics.jsonl").open("r+") as file:
        file.truncate(5)
    resumed = MetricsWriter(tmp_path, records=writer.records[:2])
    assert lines(tmp_path) == resumed.records == [{"epoch": 1}, {"epoch": 2}]
    resumed.write({"epoch": 3, "again": 1})
    assert lines(tmp_path) == [{"epoch": 1}, {"epoch": 2}, {"epoch": 3, "again": 1}]


def test_a_new_run_starts_empty(tmp_path):
    MetricsWriter(tmp_path).write({"epoch": 1})
    assert MetricsWriter(tmp_path).records == []
    assert lines(tmp_path) == []


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"epoch": 1}\n{"epoch": 2}\n{"epo\xc3')
    assert [record["epoch"] for record in read_metrics(tmp_path)] == [1, 2]
    assert read_metrics(tmp_path / "nowhere") == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.csv.partial"])
def test_a_full_disk_is_told_by_the_file_and_what_was_there_stays(tmp_path, name):
    writer = MetricsWriter(tmp_path)
    writer.write({"epoch": 1})
    before = (tmp_path / "metrics.csv").read_bytes()
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("/dev/full")  # every write to it fails as on a full disk
    with pytest.raises(InputError, match=f"{name.removesuffix('.partial')} cannot be written: No space left on device"):
        writer.write({"epoch": 2})
    assert (tmp_path / "metrics.csv").read_bytes() == before
