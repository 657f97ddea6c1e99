import struct

import numpy as np
import pytest

from piat_jax.loggers import RunInfo, TensorBoard

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")


def events(folder):
    """What the event files of a run hold, file by file in the order of their names."""
    found = []
    for file in sorted((folder / "tensorboard").iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            found.append(event)
            at += 16 + size
    return found


def values(folder):
    return [(event.step, value) for event in events(folder) for value in event.summary.value]


def started(folder, **options):
    logger = TensorBoard()
    logger.start(RunInfo(folder=folder, config={"seed": 3, "attack": {"eps": 0.25}}, **options))
    return logger


def test_scalars_text_and_pictures(tmp_path):
    logger = started(tmp_path)
    logger.write({"epoch": 1, "step": 20, "train_loss": 2.0, "test_pgd20": 0.25, "bad": float("nan")}, 1)
    image = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3)
    logger.images("examples", image, "rows: clean", 1)
    logger.text("diverged", "in words", 1)
    logger.close()
    found = values(tmp_path)
    scalars = {value.tag: value.simple_value for _, value in found if value.WhichOneof("value") == "simple_value"}
    assert scalars == {"step": 20.0, "train/loss": 2.0, "test/pgd20": 0.25}
    pictures = [(step, value.tag, value.image) for step, value in found if value.WhichOneof("value") == "image"]
    ((step, tag, picture),) = pictures
    assert (step, tag, picture.height, picture.width, picture.colorspace) == (1, "examples", 7, 5, 3)
    texts = {value.tag: value.tensor.string_val[0].decode() for _, value in found if value.tensor.string_val}
    assert texts["config/text_summary"] == "| field | value |\n|---|---|\n| seed | 3 |\n| attack.eps | 0.25 |"
    assert (texts["examples caption/text_summary"], texts["diverged/text_summary"]) == ("rows: clean", "in words")


def test_a_resumed_run_purges_what_it_does_anew(tmp_path):
    first = started(tmp_path)
    for epoch in (1, 2, 3):
        first.write({"epoch": epoch, "train_loss": 1.0}, epoch)
    first.close()
    starts = [event for event in events(tmp_path) if event.session_log.status == 1]
    assert starts == []
    again = started(tmp_path, resumed=True, epochs_done=2)
    again.close()
    # What TensorBoard drops: steps from that of the START of a session on.
    assert [event.step for event in events(tmp_path) if event.session_log.status == 1] == [3]
