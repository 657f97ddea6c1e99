"""Images/s that the host decodes and crops: with grain's workers, and with torchvision's DataLoader if installed.

    python -m experiments.throughput.decoding --out=/tmp/decoding --workers=0,1,2

The files are JPEGs of about 500 x 375 pixels, as ImageNet's are, made of crops that packages ship; both sides read the
same ones, take a random resized crop of 224 and hand out batches of 64 as uint8. A first epoch warms up.
"""

import argparse
import importlib.util
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.throughput.small_set import find_pictures
from piat_jax.cli import errors
from piat_jax.core.checks import InputError, check_count
from piat_jax.data.records.geometry import Decoding, evaluation_crop, open_image
from piat_jax.data.records.images import RecordImages
from piat_jax.data.records.loader import Loader
from piat_jax.data.records.opening import read_records
from piat_jax.data.records.writing import Encoded, write_split

BATCH, SIZE = 64, 224


class Rate(NamedTuple):
    """How fast images are decoded."""

    wall: float  # images/s of the fastest epoch
    core: float  # images per second of this process's CPU time, independent of other load; for 0 workers only


def like_imagenet(count: int) -> Iterator[Encoded]:
    """JPEGs of quality 90 whose sides are near 500 and 375 pixels."""
    from PIL import Image

    pictures = [Image.open(path).convert("RGB") for path in find_pictures().values()]
    rng = np.random.default_rng(0)
    for number in range(count):
        picture = pictures[number % len(pictures)]
        width, height = (int(side * factor) for side, factor in zip((500, 375), rng.uniform(0.9, 1.1, 2)))
        w, h = min(width, picture.width), min(height, picture.height)
        left, top = int(rng.integers(0, picture.width - w + 1)), int(rng.integers(0, picture.height - h + 1))
        part = picture.crop((left, top, left + w, top + h)).resize((width, height), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        part.save(file, "JPEG", quality=90)
        yield Encoded(file.getvalue(), number % len(pictures))


def ours(folder: Path, workers: int, epochs: int) -> Rate:
    """Images/s of our loader, over the epochs after the first."""
    images: Any = read_records(str(folder), Decoding(size=SIZE)).train[0]
    assert isinstance(images, RecordImages)
    steps = len(images) // BATCH
    loader = Loader(images, words=(1, 2), batch_rows=BATCH, steps=steps, workers=workers, ahead=2 * BATCH)
    for number in range(epochs + 2):
        loader.announce(number, np.random.default_rng(number).permutation(len(images))[: steps * BATCH])
    pixels, indices = np.empty((BATCH, SIZE, SIZE, 3), np.uint8), np.empty(BATCH, np.int64)

    def epoch(number: int) -> None:
        for step in range(steps):
            loader.take(number, step * BATCH, pixels, indices)

    rate = measure(epoch, epochs, steps * BATCH)
    loader.close()
    return rate


def torchvisions(folder: Path, workers: int, epochs: int) -> Rate:
    """Images/s of torchvision's ImageFolder and DataLoader, over the epochs after the first."""
    import torch  # pyright: ignore[reportMissingImports]
    from torchvision import datasets, transforms  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    data = datasets.ImageFolder(
        str(folder / "train"), transforms.Compose([transforms.RandomResizedCrop(SIZE), transforms.PILToTensor()])
    )
    steps = len(data) // BATCH
    loader = torch.utils.data.DataLoader(
        data, BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )

    def epoch(number: int) -> None:
        for _ in loader:
            pass

    return measure(epoch, epochs, steps * BATCH)


def measure(epoch: Callable[[int], None], epochs: int, images: int) -> Rate:
    """The rates of some epochs, after one that does not count."""
    epoch(0)
    times = []
    cpu = time.process_time()
    for number in range(1, epochs + 1):
        began = time.perf_counter()
        epoch(number)
        times.append(time.perf_counter() - began)
    return Rate(round(images / min(times), 1), round(epochs * images / (time.process_time() - cpu), 1))


def draft(folder: Path, count: int = 100) -> dict[str, float]:
    """Effect of JPEG's draft mode on evaluation crops: seconds saved per image, and change in levels of 255."""
    from PIL import Image

    decoding = Decoding(size=SIZE)
    files = [path.read_bytes() for path in sorted((folder / "train").rglob("*.jpg"))[:count]]
    began = time.perf_counter()
    whole = [evaluation_crop(open_image("x", data), decoding).astype(int) for data in files]
    between = time.perf_counter()
    fast = []
    for data in files:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (decoding.short_side, decoding.short_side))
        fast.append(evaluation_crop(image.convert("RGB"), decoding).astype(int))
    ended = time.perf_counter()
    change = [np.abs(a - b) for a, b in zip(whole, fast)]
    return {
        "ms": 1000 * (between - began) / len(files),
        "ms_draft": 1000 * (ended - between) / len(files),
        "mean_change": float(np.mean(change)),
        "largest_change": float(np.max(change)),
    }


def main(argv: Sequence[str]) -> None:
    """The command: one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the files, made if it is not there")
    parser.add_argument("--workers", default="0,1,2")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args(argv)
    workers = _numbers(given.workers)
    check_count("images", given.images, 1)
    check_count("epochs", given.epochs, 1)
    if not (given.out / "train").is_dir():
        for split, count in (("train", given.images), ("test", BATCH)):
            write_split(given.out, "folders", split, like_imagenet(count), class_names=list(find_pictures()))
    found: dict[str, Any] = {"cores": os.cpu_count(), "ours": {}, "torchvision": {}, "draft": draft(given.out)}
    sides = {"ours": ours} | ({"torchvision": torchvisions} if importlib.util.find_spec("torchvision") else {})
    for count in workers:
        for name, side in sides.items():
            rate = side(given.out, count, given.epochs)
            found[name][count] = rate.wall if count else rate._asdict()
            print(f"{name}, workers {count}: {found[name][count]} images/s", flush=True)
    print(json.dumps(found))


def _numbers(workers: str) -> list[int]:
    try:
        counts = [int(number) for number in workers.split(",")]
    except ValueError:
        raise InputError(f"workers={workers!r} is not a list of numbers; give such as 0,1,2") from None
    for count in counts:
        check_count("workers", count, 0)
    return counts


if __name__ == "__main__":
    errors.leave(errors.run(main))
