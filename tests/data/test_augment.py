import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.rng import example_keys
from piat_jax.data.augment import augment, check_augmentation, crop_offsets, flip_mask

KEYS = example_keys(jax.random.key(0), jnp.arange(24))
IMAGES = np.random.RandomState(0).randint(1, 256, (24, 6, 5, 3)).astype(np.uint8)


def reference(images, offsets, mirrored, padding, numpy_mode):
    out = np.empty_like(images)
    for i, image in enumerate(images):
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=numpy_mode)
        row, column = offsets[i]
        crop = padded[row : row + image.shape[0], column : column + image.shape[1]]
        out[i] = crop[:, ::-1] if mirrored[i] else crop
    return out


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(("padding_mode", "numpy_mode"), [("zeros", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("flip", [False, True])
def test_equals_a_loop_in_numpy(padding_mode, numpy_mode, flip, dtype):
    images = IMAGES.astype(dtype)
    ours = augment(jnp.asarray(images), KEYS, crop_padding=2, padding_mode=padding_mode, flip=flip)
    mirrored = np.asarray(flip_mask(KEYS)) & flip
    expected = reference(images, np.asarray(crop_offsets(KEYS, 2)), mirrored, 2, numpy_mode)
    np.testing.assert_array_equal(ours, expected, strict=True)


def test_flip_alone_equals_a_loop_in_numpy():
    ours = augment(jnp.asarray(IMAGES), KEYS, crop_padding=0, padding_mode="zeros", flip=True)
    expected = reference(IMAGES, np.zeros((24, 2), int), np.asarray(flip_mask(KEYS)), 0, "constant")
    np.testing.assert_array_equal(ours, expected, strict=True)
    assert 0 < np.asarray(flip_mask(KEYS)).sum() < 24


def test_reflection_does_not_repeat_the_edge():
    row = jnp.array([10, 20, 30, 40], jnp.uint8)
    images = jnp.broadcast_to(row[None, None, :, None], (64, 3, 4, 1))
    keys = example_keys(jax.random.key(1), jnp.arange(64))
    cropped = augment(images, keys, crop_padding=2, padding_mode="reflect", flip=False)
    padded = [30, 20, 10, 20, 30, 40, 30, 20]
    for image, (_, column) in zip(np.asarray(cropped), np.asarray(crop_offsets(keys, 2))):
        np.testing.assert_array_equal(image[:, :, 0], [padded[column : column + 4]] * 3)


def test_offsets_are_uniform_within_their_range_and_rows_do_not_follow_columns():
    keys = example_keys(jax.random.key(2), jnp.arange(20_000))
    rows, columns = np.asarray(crop_offsets(keys, 2)).T
    counts = np.histogram2d(rows, columns, bins=5, range=[[0, 5], [0, 5]])[0]
    assert counts.sum() == 20_000  # None outside [0, 4].
    # 25 cells of mean 800, standard deviation 27.7: five of them are 139.
    assert np.abs(counts - 800).max() < 139


def test_half_of_the_examples_flip_independently_of_their_offsets():
    keys = example_keys(jax.random.key(3), jnp.arange(20_000))
    mirrored = np.asarray(flip_mask(keys))
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(20_000)
    rows = np.asarray(crop_offsets(keys, 4))[:, 0]
    assert abs(np.corrcoef(mirrored, rows)[0, 1]) < 5 / np.sqrt(20_000)


def test_what_happens_to_an_example_does_not_depend_on_its_batch():
    options = {"crop_padding": 2, "padding_mode": "reflect", "flip": True}
    whole = augment(jnp.asarray(IMAGES), KEYS, **options)
    chosen = jnp.array([17, 3, 20])
    part = augment(jnp.asarray(IMAGES)[chosen], KEYS[chosen], **options)
    np.testing.assert_array_equal(part, whole[chosen], strict=True)


def test_other_keys_give_other_images():
    options = {"crop_padding": 2, "padding_mode": "zeros", "flip": True}
    other = example_keys(jax.random.key(9), jnp.arange(24))
    same = augment(jnp.asarray(IMAGES), KEYS, **options) == augment(jnp.asarray(IMAGES), other, **options)
    assert np.asarray(same).all(axis=(1, 2, 3)).mean() < 0.5


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_compiled_equals_not_compiled(padding_mode):
    def run(images, keys):
        return augment(images, keys, crop_padding=2, padding_mode=padding_mode, flip=True)

    images = jnp.asarray(IMAGES)
    np.testing.assert_array_equal(jax.jit(run)(images, KEYS), run(images, KEYS), strict=True)


def test_nothing_to_do_costs_nothing():
    def run(images, keys):
        return augment(images, keys, crop_padding=0, padding_mode="reflect", flip=False)

    images = jnp.asarray(IMAGES)
    assert run(images, KEYS) is images
    assert not jax.make_jaxpr(run)(images, KEYS).eqns


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_padding": -1}, "crop_padding=-1 must be at least 0"),
        ({"padding_mode": "reflct"}, "padding_mode='reflct' is unknown; did you mean 'reflect'"),
        ({"padding_mode": "reflect", "crop_padding": 5}, r"crop_padding=5 must be less than the image size \(6, 5\)"),
        ({"keys": KEYS[:3]}, r"keys has shape \(3,\); give one typed key per image, \(24,\)"),
        ({"keys": KEYS[0]}, r"keys has shape \(\); give one typed key per image"),
        ({"images": jnp.asarray(IMAGES[0])}, "images has 3 axes; give images as"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    options = {"images": jnp.asarray(IMAGES), "keys": KEYS, "crop_padding": 2, "padding_mode": "zeros", "flip": True}
    options |= change
    with pytest.raises(InputError, match=message):
        augment(options.pop("images"), options.pop("keys"), **options)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("embedded", True),
        ("fashion_mnist", True),
        ("cifar10", True),
        ("cifar100", True),
        ("npz", True),
        ("tfds:cifar10", True),
        ("tfds:fashion_mnist", True),
        ("my own", True),
        ("/data/mnist of mine/pets/cats.npz", True),
        ("/data/Fashion-MNIST/raw", True),
        ("mnist", False),
        ("svhn", False),
        ("tfds:mnist", False),
        ("/data/MNIST/raw", False),
        ("tfds:emnist/digits", False),
        ("tfds:svhn_cropped:3.1.0", False),
    ],
)
def test_digits_are_never_mirrored(name, allowed):
    check_augmentation(name, False)
    if allowed:
        check_augmentation(name, True)
    else:
        with pytest.raises(InputError, match=f"flip=True would mirror the digits of '{name}'; give flip=False"):
            check_augmentation(name, True)
