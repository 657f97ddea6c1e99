"""Against the real package, offline."""

import json
import os
import struct

import numpy as np
import pytest

from piat_jax.loggers import RunInfo, Trackers, WeightsAndBiases

wandb = pytest.importorskip("wandb")
pytestmark = pytest.mark.filterwarnings("default")  # the package's own
CONFIG = {"seed": 3, "attack": {"eps": 0.25, "name": "pgd"}}
IMAGE = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3)


@pytest.fixture(autouse=True)
def nothing_of_this_machine(tmp_path, monkeypatch):
    """No key, no settings and no network."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    wandb.teardown()
    yield
    wandb.teardown()


def records(folder):
    """What the offline files of a run hold, the oldest file first: records of the LevelDB log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # as at the end of a process: only then everything is in the file
    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, at, parts = file.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            _, size, kind = struct.unpack_from("<IHB", data, at)
            parts += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):
                found.append(Record.FromString(parts))
                parts = b""
    return found


def history(folder):
    """The logged points, without wandb's own fields."""
    points = []
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            items = {
                (item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item
            }
            points.append({name: value for name, value in items.items() if not name.startswith("_")})
    return points


def used(folder, notes, *, epochs=(1,), **options):
    trackers = Trackers(("wandb",), RunInfo(folder=folder, config=CONFIG, note=notes.append, **options))
    for epoch in epochs:
        trackers.write({"epoch": epoch, "train_loss": 2.0 / epoch, "test_pgd20": 0.25}, epoch)
    return trackers


def test_without_a_key_it_is_offline_and_says_so(tmp_path, capfd):
    folder, notes = tmp_path / "run", []
    folder.mkdir()
    trackers = used(folder, notes)
    trackers.images("examples", IMAGE, "rows: clean", 1)
    trackers.text("diverged", "in words", 1)
    trackers.close()
    (note,) = notes
    assert note.startswith("wandb has no key and stays offline: wandb sync ")
    points = history(folder)
    assert points[0] == {"epoch": 1, "train/loss": 2.0, "test/pgd20": 0.25}
    shown = {name: points[1][f"examples.{name}"] for name in ("caption", "width", "height")}
    assert shown == {"caption": "rows: clean", "width": 5, "height": 7}
    (run,) = [record.run for record in records(folder) if record.WhichOneof("record_type") == "run"][:1]
    assert (run.project, run.display_name) == ("piat_jax", "run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {name: config[name] for name in CONFIG} == CONFIG
    (ended,) = [record.exit for record in records(folder) if record.WhichOneof("record_type") == "exit"]
    assert ended.exit_code == 0
    assert wandb.run is None
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")  # the terminal is the user's


def test_offline_by_choice_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    notes = []
    used(tmp_path, notes).close(finished=False)
    assert notes == []
    (run,) = [record.run for record in records(tmp_path) if record.WhichOneof("record_type") == "run"][:1]
    assert run.project == "mine"
    (ended,) = [record.exit for record in records(tmp_path) if record.WhichOneof("record_type") == "exit"]
    assert ended.exit_code == 1


def test_a_resumed_run_has_the_same_id_and_another_one_has_not(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    used(tmp_path, [], epochs=(1, 2)).close(finished=False)
    wandb.teardown()
    (before,) = tmp_path.glob("wandb/offline-run-*")
    before.rename(before.with_name("offline-run-00000000"))  # else another of the same second takes its place
    # From a checkpoint after epoch 1: epoch 2 is written again, with the epoch as its axis.
    used(tmp_path, [], epochs=(2, 3), resumed=True, epochs_done=1).close()
    ids = [record.run.run_id for record in records(tmp_path) if record.WhichOneof("record_type") == "run"]
    assert len(set(ids)) == 1
    assert [point["epoch"] for point in history(tmp_path) if "train/loss" in point] == [1, 2, 2, 3]
    before = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    assert ids[0] == before
    used(tmp_path, []).close()
    assert json.loads((tmp_path / "trackers.json").read_text())["wandb"] != before


@pytest.mark.parametrize("where", ["environment", "netrc"])
def test_a_key_is_found_and_a_server_that_is_not_there_stops_nothing(where, tmp_path, monkeypatch):
    if where == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    else:
        (tmp_path / "netrc").write_text("machine 127.0.0.1:1 login user password " + "k" * 40 + "\n")
        (tmp_path / "netrc").chmod(0o600)
    modes = []

    def init(*, mode, **options):
        modes.append(mode)
        raise OSError("no route")

    monkeypatch.setattr(wandb, "init", init)
    notes = []
    used(tmp_path, notes)
    assert modes == ["online"]
    assert notes == ["wandb is off from here on, training continues: start: OSError: no route"]


def test_nobody_is_asked_on_a_terminal(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(wandb, "login", lambda **options: asked.append(options))
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(text))
    modes = []
    real = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: modes.append(options["mode"]) or real(**options))
    logger = WeightsAndBiases()
    logger.start(RunInfo(folder=tmp_path, config=CONFIG))
    logger.close()
    assert (asked, modes) == ([], ["offline"])
