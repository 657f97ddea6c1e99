import io

import pytest
from PIL import Image

from experiments.throughput.small_set import FORMATS, find_pictures, write_small_set
from piat_jax.data.records import Decoding
from piat_jax.data.records.opening import read_records
from piat_jax.data.records.writing import KINDS


def test_every_form_holds_the_same_crops_of_mixed_sizes(tmp_path):
    found = []
    for folder in write_small_set(tmp_path, train=6, test=3):
        train = read_records(str(folder), Decoding(size=8)).train[0].records
        assert train.class_names == tuple(find_pictures())
        found.append(sorted(train[index] for index in range(len(train))))
    assert len(found) == len(KINDS)
    assert all(each == found[0] for each in found)
    opened = [Image.open(io.BytesIO(data)) for data, _ in found[0]]
    assert {image.format for image in opened} == {kind for kind, _, _ in FORMATS}
    assert len({image.size for image in opened}) > len(opened) / 2


def test_pictures_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="0 of the pictures of this script are installed"):
        find_pictures()
