"""What may stand among image files of any size: each kind that is no image, and each that only looks odd."""

import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.data import load
from piat_jax.data.records import Decoding
from piat_jax.data.records.images import decoded, row
from tests.data.encoded_sets import encode, picture, write_set
from tests.data.test_record_geometry import BAD, png16

ODD = {
    "gray": encode(picture(5).convert("L"), "JPEG"),
    "cmyk": encode(picture(5).convert("CMYK"), "JPEG"),
    "16 bits": png16(np.random.default_rng(1).integers(0, 65536, (20, 30, 3)), 2),
}
WORDS, AT = (1, 2), 3


@pytest.fixture
def opened(tmp_path):
    """Opens a set of class folders with these bytes in the place of image 3 of both splits."""

    def of(data, on_bad):
        folder = write_set(tmp_path / on_bad, "folders", train=9, test=6)
        found = load(str(folder), decoding=Decoding(size=12, on_bad=on_bad))
        for split in (found.train, found.test):
            with open(split.images.name(AT), "wb") as file:
                file.write(data)
        return found.train.images, found.test.images

    return of


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_image_stops(kind, opened):
    train, test = opened(BAD[kind], "stop")
    with pytest.raises(InputError, match=f"^{test.name(AT)} "):
        decoded(test)
    with pytest.raises(InputError, match=f"^{train.name(AT)} "):
        train.drawn_or_next(AT, WORDS, 0)
    assert row(train, WORDS, (0, AT))["index"] == -1 - AT  # as a worker tells it
    assert row(train, WORDS, (0, AT + 1))["index"] == AT + 1


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_image_is_skipped(kind, opened):
    train, test = opened(BAD[kind], "skip")
    split, lines = decoded(test)
    assert [line.startswith(f"{test.name(AT)} ") for line in lines] == [True]
    rest = [index for index in range(6) if index != AT]
    np.testing.assert_array_equal(split.images, test[np.array(rest)])
    np.testing.assert_array_equal(split.labels, test.labels[rest])
    shown = row(train, WORDS, (0, AT))
    assert shown["index"] == AT + 1
    np.testing.assert_array_equal(shown["image"], train.drawn(AT + 1, WORDS, 0))


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
@pytest.mark.parametrize("kind", ODD)
def test_what_only_looks_odd_is_an_image(kind, on_bad, opened):
    train, test = opened(ODD[kind], on_bad)
    split, lines = decoded(test)
    assert (len(split.labels), lines) == (6, [])
    assert split.images[AT].std() > 10
    assert row(train, WORDS, (0, AT))["index"] == AT
