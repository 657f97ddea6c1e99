"""Images that are sent block by block: the same results as of images that are on the device, in as much memory."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.attacks import fmn, pgd
from piat_jax.core.bound import bind
from piat_jax.core.pixels import to_float
from piat_jax.core.sharding import data_mesh
from piat_jax.evaluation import correct_under_attack, sending
from piat_jax.evaluation.accuracy import _correct_block
from piat_jax.evaluation.minimum_norm import minimum_norms
from tests.processors import same_bits

KEY = jax.random.key(5)
PGD = bind(pgd, eps=0.02, step_size=0.01, steps=3)
MESHES = {"one device": None, "four devices": data_mesh(4, jax.devices()[:4])}


@pytest.fixture(scope="module")
def setup():
    """A network with convolutions, 21 images, and labels of which some fall."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (21, 8, 8, 3), np.uint8)

    def forward(kernel, dense, bias, x):
        x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.nn.relu(x).reshape(len(x), -1) @ dense - bias[None]

    networks = []
    for _ in range(2):
        kernel, dense = jnp.float32(rng.normal(size=(3, 3, 3, 4))), jnp.float32(rng.normal(size=(64, 3)))
        mean = forward(kernel, dense, jnp.zeros(3), to_float(images)).mean(axis=0)  # so that there are all classes
        networks.append(jax.tree_util.Partial(forward, kernel, dense, mean))
    labels = np.asarray(jnp.argmax(networks[0](to_float(images)), axis=1), np.int32)
    return networks, images, labels


@pytest.fixture
def sent(monkeypatch):
    """Every image of the host is sent in blocks."""
    monkeypatch.setattr(sending, "ON_DEVICE_BYTES", 0)


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("kind", ["uint8", "floats", "a map"])
def test_results_are_the_same_to_the_bit(setup, sent, mesh, kind, tmp_path):
    (network, other), images, labels = setup
    if kind == "floats":
        images = np.asarray(to_float(jnp.asarray(images)))
    elif kind == "a map":
        np.save(tmp_path / "x.npy", images)
        images = np.load(tmp_path / "x.npy", mmap_mode="r")
    options = {"key": KEY, "mesh": mesh, "batch_size": 8}
    on_device = jnp.asarray(images)
    for source in (None, other):
        flags = [
            correct_under_attack(network, given, labels, PGD, source=source, **options) for given in (on_device, images)
        ]
        np.testing.assert_array_equal(*flags)
        assert source is other or 0 < flags[0].sum() < 21
    norms = [
        minimum_norms(network, given, labels, bind(fmn, norm="l2", steps=10), **options).distances
        for given in (on_device, images)
    ]
    same_bits(*norms)
    assert len(set(norms[0].tolist())) > 10


def test_more_images_compile_nothing(setup, sent):
    (network, _), images, labels = setup
    counts = []
    for count in (21, 16, 9, 8):
        correct_under_attack(network, images[:count], labels[:count], PGD, key=KEY, batch_size=8)
        counts.append(_correct_block._cache_size())
    assert len(set(counts)) == 1


def test_few_images_are_there_as_a_whole(setup):
    blocks = list(sending.sent_blocks(*setup[1:], 8, None))
    assert [(block.sent, block.images.shape[0]) for block in blocks] == [(False, 21)] * 3
    assert blocks[0].images is blocks[2].images


def test_the_next_block_is_sent_while_one_is_worked_on(setup, sent):
    """When block n is handed out, block n + 1 is asked for, and none beyond."""
    asked = []

    class Images:
        shape, dtype = setup[1].shape, setup[1].dtype

        def __getitem__(self, rows):
            asked.append(rows.tolist())
            return setup[1][rows]

    blocks = sending.sent_blocks(Images(), setup[2], 8, None)
    first = next(blocks)
    np.testing.assert_array_equal(first.images, setup[1][:8])
    second = next(blocks)  # so the first two have been sent, and maybe the third is asked for
    assert asked[:2] == [list(range(8)), list(range(8, 16))]
    np.testing.assert_array_equal(second.images, setup[1][8:16])
    third = next(blocks)
    assert asked == [list(range(8)), list(range(8, 16)), [*range(16, 21), 20, 20, 20]]
    np.testing.assert_array_equal(third.indices, asked[2])
    assert list(blocks) == []


def test_an_evaluation_that_is_stopped_says_why(setup, sent):
    def stop():
        raise RuntimeError("stopped")

    (network, _), images, labels = setup
    with pytest.raises(RuntimeError, match="stopped"):
        correct_under_attack(network, images, labels, None, key=KEY, batch_size=8, on_block=stop)


def test_memory_is_that_of_some_blocks(sent, tmp_path):
    """Of 60 and of 600 images in a file, 8 a block, on the host and on the device."""
    network = jax.tree_util.Partial(lambda x: jnp.stack([x.mean((1, 2, 3)), jnp.full(len(x), 0.5)], axis=1))
    one = 128 * 128 * 3

    def peak(count):
        path = tmp_path / f"{count}.npy"
        images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, 128, 128, 3))
        images[:] = np.random.default_rng(0).integers(0, 256, count, np.uint8)[:, None, None, None]
        labels, on_device = np.zeros(count, np.int32), []

        def look():
            on_device.append(sum(array.nbytes for array in jax.live_arrays() if array.shape[1:] == (128, 128, 3)))

        correct_under_attack(network, images, labels, PGD, key=KEY, batch_size=8)  # what is made once
        tracemalloc.start()
        correct_under_attack(network, images, labels, PGD, key=KEY, batch_size=8, on_block=look)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most / one, max(on_device) / one

    few, many = peak(60), peak(600)
    assert many[0] < few[0] + 32
    assert many[1] <= 4 * 8
    assert few[1] >= 8  # the measure sees blocks
