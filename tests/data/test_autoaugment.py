import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from piat_jax.core.checks import InputError
from piat_jax.core.rng import example_keys, named_key
from piat_jax.data.augment import augment, cutout_centres, erased_rectangles
from piat_jax.data.autoaugment import (
    CIFAR_POLICY,
    FILL,
    LEARNED,
    RANDOM_OPERATIONS,
    Operation,
    apply,
    autoaugment,
    encode,
    randaugment,
)
from tests.data import formats

HEIGHT, WIDTH = 26, 32
IMAGES = formats.examples(6, (HEIGHT, WIDTH, 3), 3, 0)[0]
IMAGES[4] = IMAGES[4] // 3 + 20  # little contrast
IMAGES[5] = 9  # none at all: nothing to stretch or to equalize
NAMES = sorted({name for pair in CIFAR_POLICY for name, *_ in pair} | {"ShearX"})
EXACT = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Posterize", "Solarize", "Invert", "Equalize"}


def by_pillow(image, name, magnitude, sign, most=9):
    """The operation by Pillow, with torchvision's numbers written out again."""
    pil = Image.fromarray(image)
    share = sign * magnitude / most
    bits = 8 - np.round(np.arange(most + 1) / (most / 4)).astype(int)
    fill = (FILL,) * 3

    def affine(*matrix):
        return pil.transform(pil.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=fill)

    changed = {
        "Identity": lambda: pil,
        "ShearX": lambda: affine(1, -0.3 * share, 0, 0, 1, 0),
        "ShearY": lambda: affine(1, 0, 0, -0.3 * share, 1, 0),
        "TranslateX": lambda: affine(1, 0, -int(150 / 331 * WIDTH * share), 0, 1, 0),
        "TranslateY": lambda: affine(1, 0, 0, 0, 1, -int(150 / 331 * HEIGHT * share)),
        "Rotate": lambda: pil.rotate(30 * share, fillcolor=fill),
        "Brightness": lambda: ImageEnhance.Brightness(pil).enhance(1 + 0.9 * share),
        "Color": lambda: ImageEnhance.Color(pil).enhance(1 + 0.9 * share),
        "Contrast": lambda: ImageEnhance.Contrast(pil).enhance(1 + 0.9 * share),
        "Sharpness": lambda: ImageEnhance.Sharpness(pil).enhance(1 + 0.9 * share),
        "Posterize": lambda: ImageOps.posterize(pil, int(bits[magnitude])),
        "Solarize": lambda: ImageOps.solarize(pil, np.linspace(255, 0, most + 1)[magnitude]),
        "AutoContrast": lambda: ImageOps.autocontrast(pil),
        "Equalize": lambda: ImageOps.equalize(pil),
        "Invert": lambda: ImageOps.invert(pil),
    }[name]()
    return np.asarray(changed)


@functools.cache
def compiled():
    return jax.jit(jax.vmap(apply))


@pytest.mark.parametrize("name", NAMES)
def test_every_operation_is_pillows(name):
    cases = [(m, s, image) for m in range(10) for s in (1, -1) for image in range(len(IMAGES))]
    operations = [encode(name, m, s, HEIGHT, WIDTH) for m, s, _ in cases]
    stacked = Operation(*(np.stack(leaves) for leaves in zip(*operations)))
    ours = np.asarray(compiled()(IMAGES[[image for *_, image in cases]], stacked))
    theirs = np.stack([by_pillow(IMAGES[image], name, m, s) for m, s, image in cases])
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert difference.max() <= (0 if name in EXACT else 1)
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("name", RANDOM_OPERATIONS)
def test_every_magnitude_of_randaugment_is_torchvisions(name):
    cases = [(m, s) for m in range(31) for s in (1, -1)]
    operations = [encode(name, m, s, HEIGHT, WIDTH, most=30) for m, s in cases]
    stacked = Operation(*(np.stack(leaves) for leaves in zip(*operations)))
    ours = np.asarray(compiled()(np.repeat(IMAGES[:1], len(cases), axis=0), stacked))
    theirs = np.stack([by_pillow(IMAGES[0], name, m, s, most=30) for m, s in cases])
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= (0 if name in EXACT | {"Identity"} else 1)


KEYS = example_keys(jax.random.key(0), jnp.arange(120))
MANY = jnp.asarray(np.tile(IMAGES[:4], (30, 1, 1, 1)))


@pytest.mark.parametrize("learned_on", LEARNED)
def test_an_example_gets_one_pair_of_the_policy_whatever_its_batch(learned_on):
    policy, run = LEARNED[learned_on], jax.jit(functools.partial(autoaugment, learned_on=learned_on))
    ours = np.asarray(run(MANY, KEYS))
    pairs = []
    for index, key in enumerate(KEYS):
        pair, first, second, *signs = np.asarray(jax.random.uniform(named_key(key, "autoaugment"), (5,)))
        pairs.append(int(25 * pair))
        image = np.asarray(MANY[index])
        for (name, probability, magnitude), drawn, sign in zip(policy[pairs[-1]], (first, second), signs):
            if drawn < probability:
                image = by_pillow(image, name, magnitude, 1 if sign >= 0.5 else -1)
        # A blend's last bit goes through the second operation.
        assert np.abs(ours[index].astype(int) - image).max() <= 3, policy[pairs[-1]]
    assert set(pairs) == set(range(25))
    # In batches of another size, the same.
    np.testing.assert_array_equal(run(MANY[7:9], KEYS[7:9]), ours[7:9])
    named = {"cifar": "autoaugment", "imagenet": "autoaugment_imagenet"}[learned_on]
    np.testing.assert_array_equal(
        augment(MANY[7:9], KEYS[7:9], policy=named, crop_padding=0, padding_mode="zeros", flip=False), ours[7:9]
    )


@pytest.mark.parametrize(("operations", "magnitude"), [(1, 9), (2, 9), (3, 30)])
def test_randaugment_draws_operations_for_each_example(operations, magnitude):
    options = {"operations": operations, "magnitude": magnitude}
    ours = np.asarray(jax.jit(functools.partial(randaugment, **options))(MANY, KEYS))
    seen = set()
    for index, key in enumerate(KEYS):
        image = np.asarray(MANY[index])
        for place, sign in np.asarray(jax.random.uniform(named_key(key, "randaugment"), (operations, 2))):
            name = RANDOM_OPERATIONS[int(len(RANDOM_OPERATIONS) * place)]
            seen.add(name)
            image = by_pillow(image, name, magnitude, 1 if sign >= 0.5 else -1, most=30)
        # Of one operation as Pillow; a blend's last bit goes through the operations after it.
        off = np.abs(ours[index].astype(int) - image)
        assert off.max() <= 1 if operations == 1 else (off > 3).mean() < 0.01
    assert seen == set(RANDOM_OPERATIONS)
    changed = (ours != np.asarray(MANY)).any(axis=(1, 2, 3))
    assert changed.mean() > 0.5
    np.testing.assert_array_equal(randaugment(MANY[7:9], KEYS[7:9], **options), ours[7:9])


def test_erasing_puts_noise_into_a_rectangle():
    options = {"crop_padding": 0, "padding_mode": "zeros", "flip": False}
    keys = example_keys(jax.random.key(1), jnp.arange(2000))
    black = jnp.zeros((2000, 20, 30, 1), jnp.uint8)
    ours = np.asarray(augment(black, keys, erasing=0.25, **options))
    sides, corners = map(np.asarray, erased_rectangles(keys, 0.25, 20, 30))
    erased = sides.prod(axis=1) > 0
    assert abs(erased.mean() - 0.25) < 0.03
    for image, (height, width), (row, column) in zip(ours, sides, corners):
        inside = np.zeros((20, 30), bool)
        inside[row : row + height, column : column + width] = True
        assert not image[~inside].any()
        assert inside.sum() == height * width  # none hangs over the border
    noise = ours[ours > 0] / 255  # what was cut off at 0 is not among them
    assert abs(np.median(noise) - 0.45) < 0.01
    areas = sides[erased].prod(axis=1) / 600
    assert areas.min() >= 0.01
    assert areas.max() <= 0.36
    assert areas.std() > 0.05
    ratios = np.log(sides[erased][:, 0] / sides[erased][:, 1])
    assert ratios.min() < -0.9 < 0.9 < ratios.max()
    assert len(np.unique(corners[erased], axis=0)) > 100
    np.testing.assert_array_equal(augment(black[:3], keys[:3], erasing=0.25, **options), ours[:3])
    floats = np.asarray(augment(black[:9] / 255.0, keys[:9], erasing=1.0, **options))
    assert floats.dtype == np.float32
    assert 0 < floats.max() <= 1


def test_cutout_blackens_a_square_that_may_hang_over_the_border():
    options = {"crop_padding": 0, "padding_mode": "zeros", "flip": False}
    white = jnp.full((120, 9, 7, 1), 255, jnp.uint8)
    ours = np.asarray(augment(white, KEYS, cutout=4, **options))
    centres = np.asarray(cutout_centres(KEYS, 9, 7))
    for image, (row, column) in zip(ours, centres):
        expected = np.full((9, 7, 1), 255, np.uint8)
        expected[max(row - 2, 0) : row + 2, max(column - 2, 0) : column + 2] = 0
        np.testing.assert_array_equal(image, expected)
    assert set(centres[:, 0]) == set(range(9))
    assert set(centres[:, 1]) == set(range(7))
    np.testing.assert_array_equal(augment(white[:3], KEYS[:3], cutout=4, **options), ours[:3])


def test_wrong_arguments_are_named():
    options = {"crop_padding": 0, "padding_mode": "zeros", "flip": False}
    with pytest.raises(InputError, match="policy='autoagment' is unknown; did you mean 'autoaugment'"):
        augment(MANY, KEYS, policy="autoagment", **options)
    with pytest.raises(InputError, match="cutout=-1 must be at least 0"):
        augment(MANY, KEYS, cutout=-1, **options)
    with pytest.raises(InputError, match=r"erasing=1.5 must be in \[0, 1\]"):
        augment(MANY, KEYS, erasing=1.5, **options)
    with pytest.raises(InputError, match=r"magnitude=31 must be in \[0, 30\]"):
        augment(MANY, KEYS, policy="randaugment", policy_magnitude=31, **options)
    with pytest.raises(InputError, match="operations=0 must be at least 1"):
        augment(MANY, KEYS, policy="randaugment", policy_operations=0, **options)
    with pytest.raises(InputError, match=r"images are float32 \(120, 26, 32, 3\); RandAugment takes uint8"):
        augment(MANY.astype(jnp.float32), KEYS, policy="randaugment", **options)
    with pytest.raises(InputError, match=r"images are float32 \(120, 26, 32, 3\); AutoAugment takes uint8"):
        augment(MANY.astype(jnp.float32), KEYS, policy="autoaugment", **options)
