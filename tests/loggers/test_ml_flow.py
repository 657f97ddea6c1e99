"""Against the real package, with its local database."""

import json
import os

import numpy as np
import pytest

from piat_jax.loggers import RunInfo, Trackers

mlflow = pytest.importorskip("mlflow")
pytest.importorskip("sqlalchemy")  # which the small package leaves out, and our extra does not
pytestmark = pytest.mark.filterwarnings("default")  # the packages' own
CONFIG = {"seed": 3, "attack": {"eps": 0.25, "name": "pgd"}, **{f"field{n}": n for n in range(150)}}
IMAGE = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3)


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)


def used(folder, notes, *, epochs=(1,), config=CONFIG, **options):
    folder.mkdir(parents=True, exist_ok=True)
    trackers = Trackers(("mlflow",), RunInfo(folder=folder, config=config, note=notes.append, **options))
    for epoch in epochs:
        trackers.write({"epoch": epoch, "train_loss": 2.0 / epoch, "test_pgd20": 0.25, "bad": float("inf")}, epoch)
    return trackers


def runs(uri, name="piat_jax"):
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(name)
    return client, client.search_runs([experiment.experiment_id])


def artifacts(client, run_id, path=None):
    found = {}
    for each in client.list_artifacts(run_id, path):
        found |= artifacts(client, run_id, each.path) if each.is_dir else {each.path: each.file_size}
    return found


def test_a_local_run_has_params_points_pictures_and_texts(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    notes = []
    trackers = used(tmp_path / "runs/x", notes, epochs=(1, 2))
    trackers.images("examples", IMAGE, "rows: clean", 2)
    trackers.text("diverged", "in words", 2)
    trackers.close()
    assert notes == []
    assert "INFO" not in capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}  # nothing in the current folder
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"x", "mlflow"}
    client, (run,) = runs(f"sqlite:///{tmp_path}/runs/mlflow/mlflow.db")
    assert (run.info.run_name, run.info.status) == ("x", "FINISHED")
    assert len(run.data.params) == 153
    assert {run.data.params[name] for name in ("seed", "attack.eps", "field149")} == {"3", "0.25", "149"}
    points = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in points] == [(1, 2.0), (2, 1.0)]
    assert "bad" not in run.data.metrics
    found = artifacts(client, run.info.run_id)
    assert {"config.txt", "diverged.txt", "examples/epoch2.txt"} <= set(found)
    assert any(path.startswith("images/examples") and path.endswith(".png") for path in found)
    kept = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path="config.txt", tracking_uri=f"sqlite:///{tmp_path}/runs/mlflow/mlflow.db"
    )
    with open(kept) as file:
        assert json.load(file)["attack"] == CONFIG["attack"]


def test_a_resumed_run_goes_on_under_its_id_with_another_config(tmp_path):
    notes = []
    used(tmp_path / "x", notes).close(finished=False)
    uri = f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    assert runs(uri)[1][0].info.status == "KILLED"
    used(tmp_path / "x", notes, epochs=(2,), config=CONFIG | {"seed": 4}, resumed=True, epochs_done=1).close()
    client, (run,) = runs(uri)
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in points] == [1, 2]
    used(tmp_path / "x", notes).close()  # begun anew: another run
    assert len(runs(uri)[1]) == 2
    assert notes == []


def test_the_environment_says_where(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mine.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.chdir(tmp_path)
    notes = []
    used(tmp_path / "runs/x", notes).close()
    assert notes == []
    assert len(runs(uri, "mine")[1]) == 1
    assert not (tmp_path / "runs/mlflow").exists()


def test_a_server_that_is_not_there_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    notes = []
    trackers = used(tmp_path / "x", notes)
    assert not trackers
    (note,) = notes
    assert note.startswith("mlflow is off from here on, training continues: start: ")
