import numpy as np
import pytest

from piat_jax.cli import data, errors
from piat_jax.core.checks import InputError
from piat_jax.data import load
from piat_jax.data.records import Decoding
from piat_jax.data.records.inspection import NAMED, encoded_to_text, inspect_encoded
from tests.data.encoded_sets import encode, examples, picture, write_set


def run(*arguments):
    return errors.run(data.main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("encoded"), "folders", train=30, test=9)


def opened(folder):
    return load(str(folder), decoding=Decoding(size=16))


def test_it_counts_and_measures_what_is_there(folder):
    report = inspect_encoded(opened(folder), images=0)
    assert report["train"].counts.tolist() == [10, 10, 10]
    assert report["test"].counts.tolist() == [3, 3, 3]
    written = [(picture(index).size, len(each.data)) for index, each in enumerate(examples(30))]
    assert sorted(map(tuple, report["train"].sizes.tolist())) == sorted(size for size, _ in written)
    assert sorted(report["train"].file_bytes.tolist()) == sorted(length for _, length in written)
    assert report["train"].formats == {"JPEG": 12, "PNG": 12, "WEBP": 6}
    assert report["train"].bad == ()
    assert report["train"].per_core > 0


def test_a_sample_is_decoded_and_all_are_counted(folder):
    report = inspect_encoded(opened(folder), images=4)
    assert (report["train"].read, len(report["train"].sizes), report["train"].counts.sum()) == (4, 4, 30)
    text = encoded_to_text(opened(folder), report)
    assert "train: 30 examples, 10 to 10 of a class; 4 decoded" in text


def test_what_cannot_be_decoded_is_named(tmp_path):
    folder = write_set(tmp_path, "folders", train=30, test=9)
    bad = sorted((folder / "train" / "odd").iterdir())
    for path in bad:
        path.write_bytes(b"no image")
    report = inspect_encoded(opened(folder), images=0)
    assert sorted(line.split(" ")[0] for line in report["train"].bad) == [str(path) for path in bad]
    for path in sorted((folder / "train" / "even").iterdir())[:2]:
        path.write_bytes(b"")
    lines = encoded_to_text(opened(folder), inspect_encoded(opened(folder), images=0)).splitlines()
    assert "  12 of 30 cannot be decoded:" in lines
    assert sum(line.startswith("    /") for line in lines) == NAMED
    assert "    and 2 more" in lines
    for path in (folder / "train").rglob("*.*"):
        path.write_bytes(b"")
    found = inspect_encoded(opened(folder), images=0)
    assert found["train"].per_core == 0
    assert "training crops" not in encoded_to_text(opened(folder), found)


def test_the_command(folder, tmp_path, capsys):
    assert run("inspect", folder, "--image_size=16", "--images=5", "--sheet", tmp_path / "sheet.png") == 0
    out = capsys.readouterr().out
    assert "encoded images, 3 classes" in out
    assert "5 decoded" in out
    assert (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["inspect", "{}", "--image_size=-1"], "image_size=-1 must be at least 1"),
        (["inspect", "{}", "--image_size=16", "--images=-1"], "images=-1 must be at least 0"),
        (["inspect", "{}", "--image_size=16", "--data_dir=x"], "data_dir='x' is for named data sets"),
        (["inspect", "{}"], "--config.dataset.image_size=224"),
        (["prepare", "{}", "--image_size=16", "--out=x"], "encoded images need no prepare"),
        (["inspect", "/nowhere", "--image_size=16"], "/nowhere"),
    ],
)
def test_wrong_flags(flags, said, folder, capsys):
    assert run(*(flag.format(folder) for flag in flags)) == 2
    assert said in capsys.readouterr().err


def test_arrays_are_inspected_by_the_other():
    with pytest.raises(InputError, match="or call inspect"):
        inspect_encoded(load("embedded"))


def test_gray_and_deep_images_count(tmp_path):
    folder = write_set(tmp_path, "folders", train=30, test=9)
    path = next((folder / "train" / "odd").glob("*.png"))
    path.write_bytes(encode(picture(3).convert("L"), "PNG"))
    report = inspect_encoded(opened(folder), images=0)
    assert len(report["train"].sizes) == 30
    assert path.stat().st_size in report["train"].file_bytes
    assert np.all(report["train"].sizes >= 20)
