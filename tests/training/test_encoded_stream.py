import dataclasses
import functools
import itertools
import subprocess
import sys
import time
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import models
from piat_jax.attacks import pgd
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.core.rng import named_key
from piat_jax.core.sharding import data_mesh
from piat_jax.data import Split, load
from piat_jax.data.batching import epoch_order
from piat_jax.data.records import Decoding, RecordImages
from piat_jax.data.records.loader import Loader
from piat_jax.data.records.writing import write_split
from piat_jax.objectives import NMSE
from piat_jax.training import Recipe, StopTraining, encoded_stream, init_state, run_epoch, sgd
from piat_jax.training.encoded_stream import EncodedStream, Speed, local_rows
from tests.data.encoded_sets import CLASSES, examples, write_set
from tests.processors import OLDER_EMITTER, same_bits

SIZE = 8
BATCH = 8 * SIZE * SIZE * 3  # bytes of a batch
KEY = jax.random.key(3)
WORDS = tuple(np.asarray(jax.random.key_data(named_key(KEY, "crop"))).tolist())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("encoded"), "tar", train=26, test=4)


@functools.cache
def train_split(folder, **options):
    return load(str(folder), decoding=Decoding(size=SIZE, **options)).train


@pytest.fixture
def stream(folder):
    """Makes streams, and closes them."""
    made = []

    def make(split=None, **options):
        made.append(EncodedStream(split or train_split(folder), **{"batch_size": 8, **options}))
        return made[-1]

    yield make
    for each in made:
        each.close()


def epochs(stream, key=KEY, numbers=(0, 1)):
    """All batches of some epochs: images, labels, indices."""
    batches = []
    for epoch in numbers:
        step = 0
        while step < stream.steps:
            window, end = stream.window(key, epoch, step)
            first = int(window.first)
            parts = jax.device_get((window.images, window.labels, window.indices))
            batches += [tuple(part[number - first] for part in parts) for number in range(step, end)]
            step = end
    return batches


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_batches_are_the_crops_of_the_epochs_order(folder, stream):
    split = train_split(folder)
    batches = epochs(stream(window_bytes=2 * BATCH))
    assert len(batches) == 6
    for epoch in range(2):
        order = np.asarray(epoch_order(jax.random.fold_in(named_key(KEY, "shuffle"), epoch), 26, 8))
        for step, (images, labels, indices) in enumerate(batches[3 * epoch : 3 * epoch + 3]):
            np.testing.assert_array_equal(indices, order[8 * step : 8 * step + 8])
            np.testing.assert_array_equal(labels, split.labels[indices])
            crops = [split.images.drawn(int(index), WORDS, epoch) for index in indices]
            np.testing.assert_array_equal(images, np.stack(crops))
    by_example = [
        {int(i): image.tobytes() for images, _, which in batches[3 * e : 3 * e + 3] for i, image in zip(which, images)}
        for e in range(2)
    ]
    both = by_example[0].keys() & by_example[1].keys()
    assert all(by_example[0][index] != by_example[1][index] for index in both)  # another crop in each epoch


def test_workers_and_windows_leave_no_trace(stream):
    expected = epochs(stream(window_bytes=BATCH))
    same(epochs(stream(window_bytes=9 * BATCH)), expected)
    with_workers = stream(window_bytes=2 * BATCH, workers=2)
    same(epochs(with_workers), expected)
    same(epochs(with_workers, numbers=(0,)), expected[:3])  # back to the beginning
    other = epochs(stream(), jax.random.key(4))
    assert all((one[0] != two[0]).any() for one, two in zip(other, expected))


def test_batches_of_other_sizes_show_the_same_crops(stream):
    def crops(batches):
        return {int(i): image.tobytes() for images, _, which in batches for i, image in zip(which, images)}

    whole, small = (crops(epochs(stream(batch_size=size), numbers=(1,))) for size in (26, 5))
    assert len(whole) == 26
    assert small.items() <= whole.items()


def test_each_process_decodes_its_own_rows(folder, stream, monkeypatch):
    split = train_split(folder)
    expected = epochs(stream(), numbers=(0,))
    for rows in (range(0, 4), range(4, 8)):
        read = []
        images = RecordImages(split.images.records, split.images.decoding, split.images.which)
        images.read = lambda index, read=read: read.append(index) or split.images.read(index)
        monkeypatch.setattr(encoded_stream, "local_rows", lambda batch_size, mesh, rows=rows: rows)
        part = stream(Split(images, split.labels))
        assert (part.rows, part.own) == (rows, 4)
        part._announce(KEY, 0)
        pixels = np.zeros((3, 4, SIZE, SIZE, 3), np.uint8)
        indices = part._decode(0, 0, pixels)
        same(
            (pixels, indices), tuple(np.stack([batch[k][rows.start : rows.stop] for batch in expected]) for k in (0, 2))
        )
        part.close()
        following = np.asarray(part._order(KEY, 1))[:24].reshape(3, 8)[:, rows.start : rows.stop]
        assert set(read) <= {*indices.ravel().tolist(), *following.ravel().tolist()}


def test_rows_of_a_process_are_those_on_its_devices():
    assert local_rows(8, data_mesh(8, jax.devices()[:4])) == range(8)  # all are here


def test_devices_get_their_share(stream):
    mesh = data_mesh(8, jax.devices()[:2])
    window, _ = stream(mesh=mesh).window(KEY, 0, 0)
    assert {shard.data.shape for shard in window.images.addressable_shards} == {(3, 4, SIZE, SIZE, 3)}
    single, _ = stream().window(KEY, 0, 0)
    for name in ("images", "labels", "indices"):
        np.testing.assert_array_equal(getattr(window, name), getattr(single, name))


def test_generated_examples_stand_beside(folder, stream):
    rng = np.random.default_rng(1)
    extra = Split(rng.integers(0, 256, (11, SIZE, SIZE, 3), np.uint8), rng.integers(0, 3, 11).astype(np.int32))
    split = train_split(folder)
    for images, labels, indices in epochs(stream(extra=extra, extra_per_batch=5), numbers=(0,)):
        assert (indices[:3] < 26).all()
        crops = [split.images.drawn(int(index), WORDS, 0) for index in indices[:3]]
        np.testing.assert_array_equal(images[:3], np.stack(crops))
        np.testing.assert_array_equal(labels[:3], split.labels[indices[:3]])
        np.testing.assert_array_equal(images[3:], extra.images[indices[3:] - 26])
        np.testing.assert_array_equal(labels[3:], extra.labels[indices[3:] - 26])


def test_a_process_may_have_generated_examples_alone(stream, monkeypatch):
    rng = np.random.default_rng(1)
    extra = Split(rng.integers(0, 256, (11, SIZE, SIZE, 3), np.uint8), rng.integers(0, 3, 11).astype(np.int32))
    whole = epochs(stream(extra=extra, extra_per_batch=5), numbers=(0,))
    for rows, own in ((range(4, 8), 0), (range(2, 6), 1)):
        monkeypatch.setattr(encoded_stream, "local_rows", lambda batch_size, mesh, rows=rows: rows)
        part = stream(extra=extra, extra_per_batch=5)
        assert part.own == own
        same(epochs(part, numbers=(0,)), [tuple(each[rows.start : rows.stop] for each in batch) for batch in whole])


@pytest.fixture(scope="module")
def problem():
    model = models.create("small_resnet", num_classes=3, width=2, stage_sizes=(1,))
    objective = NMSE(model=model, attack=bind(pgd, eps=0.1, step_size=0.05, steps=1))
    recipe = Recipe(sgd(0.1, weight_decay=1e-3), batch_size=8, flip=True)
    state = functools.partial(init_state, objective, recipe.optimizer, jnp.zeros((1, SIZE, SIZE, 3)), key=KEY)
    return functools.partial(run_epoch, objective=objective, key=KEY, recipe=recipe, epochs=9), state


def test_a_run_that_is_stopped_goes_on_at_the_very_batch(problem, stream):
    run, new = problem
    whole = new()
    for epoch in range(2):
        whole, metrics = run(
            dataclasses.replace(whole, epoch=jnp.int32(epoch)),
            examples=stream(window_bytes=2 * BATCH),
            steps_per_chunk=9,
        )
    state, _ = run(new(), examples=stream(), steps_per_chunk=2)
    state = dataclasses.replace(state, epoch=jnp.int32(1))
    with pytest.raises(StopTraining) as stopped:
        run(state, examples=stream(), steps_per_chunk=1, should_stop=lambda: True)
    at = stopped.value.position
    assert (at.epoch, at.steps) == (2, 1)
    rest, resumed = run(stopped.value.state, examples=stream(window_bytes=BATCH), position=at, steps_per_chunk=1)
    # Chunks of other lengths are other programs; a batch of other images changes far more than the tolerance.
    same_bits(rest.params, whole.params, rtol=1e-4)
    assert resumed == (pytest.approx(metrics, rel=1e-5) if OLDER_EMITTER else metrics)


def write_bad(folder, images, bad):
    for index in bad:
        with open(images.name(index), "wb") as file:
            file.write(b"no image")


def test_a_bad_image_stops_a_run_with_its_name(tmp_path, stream):
    split = load(str(write_set(tmp_path, "folders", train=12, test=4)), decoding=Decoding(size=SIZE)).train
    write_bad(tmp_path, split.images, [7])
    with pytest.raises(InputError, match=f"^{split.images.name(7)} cannot be decoded as an image"):
        epochs(stream(split, batch_size=12), numbers=(0,))


def test_bad_images_are_replaced_and_counted(tmp_path, stream):
    folder = write_set(tmp_path, "folders", train=12, test=4)
    split = load(str(folder), decoding=Decoding(size=SIZE, on_bad="skip")).train
    expected = epochs(stream(split, batch_size=12), numbers=(0,))[0]
    write_bad(tmp_path, split.images, [7, 8])
    bad = stream(split, batch_size=12)
    images, labels, indices = epochs(bad, numbers=(0,))[0]
    hit = np.isin(expected[2], [7, 8])
    np.testing.assert_array_equal(images[~hit], expected[0][~hit])
    assert set(indices[hit].tolist()) == {9}
    np.testing.assert_array_equal(labels, split.labels[indices])
    np.testing.assert_array_equal(images[hit], np.stack([split.images.drawn(9, WORDS, 0)] * 2))
    (line,) = bad.notes()
    assert line.startswith("2 training images could not be decoded, replaced by the next one: ")
    assert all(split.images.name(index) in line for index in (7, 8))
    assert bad.notes() == []  # each is said once


def test_memory_does_not_grow_with_the_set(tmp_path, stream):
    def peak(count):
        some = list(examples(20))
        for name, number in (("train", count), ("test", 3)):
            repeated = itertools.islice(itertools.cycle(some), number)
            write_split(tmp_path / str(count), "tar", name, repeated, class_names=CLASSES, per_shard=count)
        split = load(str(tmp_path / str(count)), decoding=Decoding(size=64)).train
        one = 64 * 64 * 3
        data = stream(split, batch_size=4, window_bytes=4 * 4 * one)
        data.window(KEY, 0, 0)  # what is imported and made once
        tracemalloc.start()
        step = 0
        while step < data.steps:
            _, step = data.window(KEY, 0, step)
            for coming in data._windows.values():  # as while a device trains: how many are alive is no matter of timing
                coming.result()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        data.close()
        return most / one

    small, large = peak(150), peak(1500)  # in images, of which a window has 16
    assert large < small + 32


def test_a_slow_host_is_said_with_both_rates(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    speed = Speed()

    def epoch(waits):
        for seconds in (9.0, waits, waits, waits):
            speed.asks()
            now[0] += seconds
            speed.has(50)
            speed.decoded(50, waits)
            now[0] += 0.25  # trains

    epoch(0.5)
    now[0] += 100  # evaluates
    line = speed.note(3, 8)
    assert line == (
        "the host is slower than the device: it decodes 100 images/s and the device trains on 200/s, waiting 67 % of "
        "the time; dataset.workers=3 of 8 cores"
    )
    epoch(0.5)
    assert "decodes 100 images/s and the device trains on 200/s" in speed.note(3, 8)  # what was between does not count
    epoch(0.001)
    assert speed.note(3, 8) == ""


def test_what_does_not_go_together_is_named(folder, stream):
    split = train_split(folder)
    with pytest.raises(InputError, match="images are ndarray; give RecordImages, or a Stream for arrays"):
        stream(Split(np.zeros((26, 8, 8, 3), np.uint8), split.labels))
    with pytest.raises(InputError, match="batch_size=27 is more than the 26 examples"):
        stream(batch_size=27)
    with pytest.raises(InputError, match="workers=-1 must be at least 0"):
        Loader(split.images, words=(1,), batch_rows=2, steps=1, workers=-1)


def test_a_worker_that_fails_says_so(folder, stream, monkeypatch):
    def fail(*args):
        raise MemoryError("no more")

    monkeypatch.setattr("piat_jax.data.records.loader.row", fail)
    with pytest.raises(InputError, match=r"a worker that decodes images of .*tar failed \(no more"):
        stream().window(KEY, 0, 0)


ENDS = """
import sys
import numpy as np
from piat_jax.data import load
from piat_jax.data.records import Decoding
from piat_jax.data.records.loader import Loader

if __name__ == "__main__":
    images = load(sys.argv[1], decoding=Decoding(size=16)).train.images
    loader = Loader(images, words=(1, 2), batch_rows=6, steps=5, workers=2, ahead=30)
    for epoch in range(3):
        loader.announce(epoch, np.arange(30))
    loader.take(0, 0, np.zeros((30, 16, 16, 3), np.uint8), np.zeros(30, np.int32))
    loader.close()
"""


def test_a_process_ends_without_a_word_of_shared_memory(tmp_path):
    folder = write_set(tmp_path / "set", "folders", train=30, test=6)
    (tmp_path / "ends.py").write_text(ENDS)
    ended = subprocess.run([sys.executable, tmp_path / "ends.py", folder], capture_output=True, text=True, check=True)
    assert ended.stderr == ""
