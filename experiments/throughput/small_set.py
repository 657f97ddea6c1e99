"""A small real set of encoded images of mixed sizes, in each of the forms: crops of what installed packages ship.

    python -m experiments.throughput.small_set --out=data/small

Each picture is a class; its crops have sides of 40 to 320 pixels and are JPEG, PNG or WebP. Those of the test set come
from the right quarter of the picture, those of the training set from the rest.
"""

import argparse
import importlib.util
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from piat_jax.cli import errors
from piat_jax.core.checks import InputError, check_count
from piat_jax.data.records.writing import KINDS, Encoded, write_split

PICTURES = {
    "hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    "minduka": ("matplotlib", "mpl-data/sample_data/Minduka_Present_Blue_Pack.png"),
    "logo": ("matplotlib", "mpl-data/sample_data/logo2.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "astronaut": ("skimage", "data/astronaut.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
}
"""Pictures by their class: package, and path in it."""
FORMATS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("JPEG", ".jpg", {"quality": 90}),
    ("PNG", ".png", {}),
    ("WEBP", ".webp", {"quality": 90}),
)
LEAST, MOST = 40, 320
TEST_SHARE = 0.25


def find_pictures() -> dict[str, Path]:
    """The pictures that are installed, by class; at least two."""
    found = {}
    for name, (package, path) in PICTURES.items():
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(place) / path).is_file():
                found[name] = Path(place) / path
    if len(found) < 2:
        raise InputError(f"{len(found)} of the pictures of this script are installed; pip install matplotlib")
    return dict(sorted(found.items()))  # as folders are numbered


def crops(path: Path, label: int, count: int, *, test: bool, scale: float = 1.0) -> Iterator[Encoded]:
    """Encoded crops of a picture, the same ones at each call.

    Args:
      path: of the picture.
      label: of its class.
      count: how many.
      test: from the right quarter, or else from the rest.
      scale: of their sides: the largest has 320 times as many pixels.
    """
    from PIL import Image

    picture = Image.open(path).convert("RGB")
    edge = int(picture.width * (1 - TEST_SHARE))
    picture = picture.crop((edge, 0, picture.width, picture.height) if test else (0, 0, edge, picture.height))
    rng = np.random.default_rng((label, test))
    for number in range(count):
        width, height = (int(side) for side in rng.integers(LEAST, MOST + 1, 2))
        w, h = min(width, picture.width), min(height, picture.height)
        left, top = int(rng.integers(0, picture.width - w + 1)), int(rng.integers(0, picture.height - h + 1))
        part = picture.crop((left, top, left + w, top + h))
        if scale != 1:
            part = part.resize((max(1, round(w * scale)), max(1, round(h * scale))), Image.Resampling.BICUBIC)
        kind, suffix, options = FORMATS[number % len(FORMATS)]
        file = io.BytesIO()
        part.save(file, kind, **options)
        yield Encoded(file.getvalue(), label, suffix)


def write_small_set(out: Path, kinds: Sequence[str] = tuple(KINDS), *, train: int = 80, test: int = 20) -> list[Path]:
    """Write the set to a folder for each form, and return these.

    Args:
      out: of the folders.
      kinds: which forms.
      train, test: crops of each picture.
    """
    pictures = find_pictures()
    folders = []
    for kind in kinds:
        for split, count in (("train", train), ("test", test)):
            examples = (
                example
                for label, path in enumerate(pictures.values())
                for example in crops(path, label, count, test=split == "test")
            )
            write_split(out / kind, kind, split, examples, class_names=list(pictures), per_shard=100)
        folders.append(out / kind)
    return folders


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=80, help="crops of each picture")
    parser.add_argument("--test", type=int, default=20)
    given = parser.parse_args(argv)
    check_count("train", given.train, 1)
    check_count("test", given.test, 1)
    for folder in write_small_set(given.out, train=given.train, test=given.test):
        print(folder)


if __name__ == "__main__":
    errors.leave(errors.run(main))
