import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from piat_jax.core.checks import InputError
from piat_jax.data import load
from piat_jax.data.records import Decoding
from piat_jax.data.records.geometry import (
    RATIO,
    crop_box,
    crop_draws,
    evaluation_crop,
    open_image,
    training_crop,
)
from piat_jax.data.records.images import decoded
from tests.data.encoded_sets import encode, examples, picture, write_set


def of_array(pixels):
    return Image.fromarray(np.asarray(pixels, np.uint8))


def opened(data):
    image = open_image("x.jpg", data)
    assert image.mode == "RGB"
    return np.asarray(image)


COLOURS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
GRAY = COLOURS[..., 0]


def test_gray_and_palette_and_one_bit_become_rgb():
    np.testing.assert_array_equal(opened(encode(of_array(GRAY), "PNG")), np.stack([GRAY] * 3, -1))
    palette = of_array(COLOURS // 64 * 64).quantize(64)
    np.testing.assert_array_equal(opened(encode(palette, "PNG")), np.asarray(palette.convert("RGB")))
    bits = of_array(GRAY).convert("1")
    np.testing.assert_array_equal(opened(encode(bits, "PNG"))[..., 1], np.asarray(bits) * np.uint8(255))


def test_transparency_is_dropped():
    alpha = np.dstack([COLOURS, GRAY])
    np.testing.assert_array_equal(opened(encode(of_array(alpha), "PNG")), COLOURS)
    lossless = opened(encode(of_array(alpha), "WEBP", lossless=True, exact=True))
    np.testing.assert_array_equal(lossless, COLOURS)
    two = Image.merge("LA", [of_array(GRAY)] * 2)
    np.testing.assert_array_equal(opened(encode(two, "PNG"))[..., 2], GRAY)
    palette = of_array(COLOURS).quantize(16)
    data = encode(palette, "PNG", transparency=bytes(range(16)))
    np.testing.assert_array_equal(opened(data), np.asarray(palette.convert("RGB")))


def test_cmyk_becomes_rgb():
    image = picture(4)
    pixels = opened(encode(image.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - np.asarray(image)).mean() < 4


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(values, colour):
    """A PNG of 16 bits a channel by hand; Pillow writes none of three channels."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    end = chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + end


def test_of_16_bits_the_upper_8_are_kept():
    deep = np.random.default_rng(1).integers(0, 65536, (4, 7, 3))
    np.testing.assert_array_equal(opened(png16(deep, 2)), deep >> 8)
    np.testing.assert_array_equal(opened(png16(deep[..., 0], 0)), np.stack([deep[..., 0] >> 8] * 3, -1))


def animation():
    file = io.BytesIO()
    frames = [picture(1, 20, 21), picture(2, 20, 21)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    return file.getvalue()


BAD = {
    "truncated": encode(picture(5, 200, 201), "JPEG")[:1500],
    "png": encode(picture(5), "PNG")[:200],
    "text": b"an article about cats",
    "empty": b"",
    "animation": animation(),
    "floats": encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_image_is_one_line_that_names_it(kind):
    with pytest.raises(InputError) as error:
        open_image("folder/x.jpg", BAD[kind])
    assert str(error.value).startswith("folder/x.jpg ")
    assert "\n" not in str(error.value)
    assert "0x" not in str(error.value)


def test_the_evaluation_crop_is_the_middle():
    y, x = np.mgrid[:40, :60]
    image = of_array(np.stack([4 * y, 4 * x, 0 * x], -1))
    crop = evaluation_crop(image, Decoding(size=20, resize=40))
    np.testing.assert_array_equal(crop, np.asarray(image)[10:30, 20:40])
    # Twice as small: a linear ramp stays one, at the middles of the pixels.
    crop = evaluation_crop(image, Decoding(size=20, resize=20)).astype(float)
    expected = 4 * (2 * (np.arange(20) + 5) + 0.5)  # from column 5 of 30
    assert np.abs(crop[5, :, 1] - expected)[1:-1].max() <= 1
    assert evaluation_crop(of_array(np.zeros((300, 11, 3))), Decoding(size=10)).shape == (10, 10, 3)


@pytest.mark.parametrize("low", [0.08, 0.5])
def test_training_crops_have_the_areas_and_ratios_that_are_asked_for(low):
    boxes = np.array([crop_box(400, 300, (low, 1.0), crop_draws((1, 2), 3, i)) for i in range(4000)], float)
    left, top, width, height = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= 400).all()
    assert (top + height <= 300).all()
    assert (width * height / 120_000 > low * 0.97).all()
    ratios = width / height
    assert RATIO[0] * 0.97 < ratios.min() < RATIO[0] * 1.05
    assert RATIO[1] * 0.95 < ratios.max() < RATIO[1] * 1.03
    tall = [crop_box(300, 400, (low, 1.0), crop_draws((1, 2), 3, i)) for i in range(500)]
    assert all(left + w <= 300 and top + h <= 400 for left, top, w, h in tall)
    small = width * height < 0.2 * 120_000  # always inside: places are even
    if small.any():
        place = left[small] / (400 - width[small])
        np.testing.assert_allclose(np.quantile(place, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.06)


def test_a_crop_that_never_fits_is_the_middle():
    assert crop_box(1000, 12, (0.9, 1.0), crop_draws((0,), 0, 0)) == (492, 0, 16, 12)
    assert crop_box(12, 1000, (0.9, 1.0), crop_draws((0,), 0, 0)) == (0, 492, 12, 16)
    assert crop_box(1, 1, (0.08, 1.0), crop_draws((0,), 0, 0))[2:] == (1, 1)


def test_a_training_crop_is_that_part_of_the_image():
    image, draws, decoding = picture(7, 80, 90), crop_draws((5, 6), 1, 2), Decoding(size=24, interpolation="bicubic")
    left, top, width, height = crop_box(*image.size, (0.08, 1.0), draws)
    part = of_array(np.asarray(image)[top : top + height, left : left + width])
    expected = np.asarray(part.resize((24, 24), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(training_crop(image, decoding, draws), expected)
    other = training_crop(image, Decoding(size=24), draws)
    assert (other != expected).any()


def test_draws_differ_by_key_epoch_and_example_alone():
    places = [((1, 2), 0, 0), ((1, 3), 0, 0), ((2, 2), 0, 0), ((1, 2), 1, 0), ((1, 2), 0, 1), ((1, 2, 3, 4), 0, 0)]
    drawn = [crop_draws(*place) for place in places]
    assert len({each.tobytes() for each in drawn}) == len(places)
    np.testing.assert_array_equal(crop_draws((1, 2), 0, 0), drawn[0])
    # Resumed runs and other machines have to draw these numbers.
    np.testing.assert_allclose(drawn[0][0], FIRST, rtol=1e-15)


FIRST = [0.3298622045981784, 0.4424691531246455, 0.23600463630752266, 0.5948233026027971]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, "image_size=0 must be at least 1"),
        ({"resize": 8}, "resize=8 is less than image_size=16; give at least as much, or 0"),
        ({"interpolation": "cubic"}, "interpolation='cubic' is unknown; did you mean 'bicubic'"),
        ({"scale": (0.5, 0.2)}, r"crop_scale=\(0.5, 0.2\) decreases; give the minimum first"),
        ({"scale": (0.0, 0.2)}, r"crop_scale=0.0 must be in \(0, 1\]"),
        ({"scale": (0.5,)}, "has 1 numbers; give the minimum and the maximum"),
        ({"on_bad": "raise"}, "on_bad_image='raise' is unknown; choose one of skip, stop"),
    ],
)
def test_values_out_of_range_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        Decoding(**{"size": 16, **fields})


def test_bad_test_images_stop_or_are_left_out(tmp_path):
    write_set(tmp_path, "folders")
    path = sorted((tmp_path / "test" / "odd").iterdir())[1]
    path.write_bytes(BAD["text"])
    data = load(str(tmp_path), decoding=Decoding(size=12))
    with pytest.raises(InputError, match=f"{path.name} cannot be decoded as an image"):
        decoded(data.test.images)
    data = load(str(tmp_path), decoding=Decoding(size=12, on_bad="skip"))
    split, lines = decoded(data.test.images)
    assert [str(path) in line for line in lines] == [True]
    assert np.bincount(split.labels).tolist() == [3, 2, 3]
    good = [i for i in range(9) if data.test.images.name(i) != str(path)]
    np.testing.assert_array_equal(split.images, data.test.images[np.array(good)])
    np.testing.assert_array_equal(split.labels, data.test.labels[good])
    for each in (tmp_path / "test").rglob("*.*"):
        each.write_bytes(b"")
    with pytest.raises(InputError, match=r"no image that can be decoded; the first error: .* has no bytes"):
        decoded(load(str(tmp_path), decoding=Decoding(size=12, on_bad="skip")).test.images)


def test_a_bad_training_image_is_replaced_by_the_next(tmp_path):
    write_set(tmp_path, "folders")
    images = load(str(tmp_path), decoding=Decoding(size=12, on_bad="skip")).train.images
    for index in (29, 0):
        with open(images.name(index), "wb") as file:
            file.write(b"no image")
    pixels, chosen = images.drawn_or_next(29, (1, 2), 4)
    assert chosen == 1
    np.testing.assert_array_equal(pixels, images.drawn(1, (1, 2), 4))
    assert images.drawn_or_next(5, (1, 2), 4)[1] == 5
    strict = load(str(tmp_path), decoding=Decoding(size=12)).train.images
    with pytest.raises(InputError, match="cannot be decoded as an image"):
        strict.drawn_or_next(29, (1, 2), 4)


def test_examples_have_mixed_sizes():
    sizes = {Image.open(io.BytesIO(each.data)).size for each in examples(12)}
    assert len(sizes) > 6


def center_crop(pixels, size):
    """torchvision's CenterCrop by hand: black around what is smaller, half of it before, then the middle."""
    height, width = pixels.shape[:2]
    around = [(max(size - length, 0) // 2, (max(size - length, 0) + 1) // 2) for length in (height, width)]
    pixels = np.pad(pixels, [*around, (0, 0)])
    top, left = (round((length - size) / 2) for length in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_both_sides_are_resized_or_none(interpolation):
    kind = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    for number in range(12):
        image = picture(number)  # from 20 to 59 pixels a side
        for size, resize in ((24, 24), (24, 31), (25, 0)):
            found = evaluation_crop(
                image, Decoding(size=size, resize=resize, resizing="both", interpolation=interpolation)
            )
            side = resize or round(size * 256 / 224)
            np.testing.assert_array_equal(found, center_crop(np.asarray(image.resize((side, side), kind)), size))
        for size in (16, 33, 40, 70):
            found = evaluation_crop(image, Decoding(size=size, resizing="none", interpolation=interpolation))
            np.testing.assert_array_equal(found, center_crop(np.asarray(image), size))


def test_what_is_not_resized_has_no_size_for_it():
    with pytest.raises(InputError, match="resize=30 with resizing='none'; leave out one of the two"):
        Decoding(size=16, resize=30, resizing="none")
    with pytest.raises(InputError, match="resizing='shrt' is unknown; did you mean 'short'"):
        Decoding(size=16, resizing="shrt")
