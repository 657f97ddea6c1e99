# %% [markdown]
# # A data set of your own
#
# Three ways, from the simplest to the one for data larger than memory: arrays in an `.npz` file, a folder of images, and encoded images of any size that stay on disk.

# %%
import tempfile
from pathlib import Path

import numpy as np

import piat_jax

folder = Path(tempfile.mkdtemp())
rng = np.random.default_rng(0)


def discs(count):
    """Gray pictures of a small or a large disc, with labels."""
    labels = rng.integers(0, 2, count)
    y, x = np.mgrid[:24, :24]
    centre = rng.uniform(9, 15, (count, 2, 1, 1))
    inside = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < (4 + 4 * labels)[:, None, None] ** 2
    return (200 * inside + rng.integers(0, 40, inside.shape)).astype(np.uint8)[..., None], labels


# %% [markdown]
# ## Arrays
#
# Images are uint8 `[N, H, W, C]`, labels 0 to K - 1.

# %%
(x_train, y_train), (x_test, y_test) = discs(256), discs(64)
np.savez(folder / "discs.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
small = {
    "dataset.crop_padding": 0,
    "model.options.width": 4,
    "attack.steps": 3,
    "evaluation.attacks": ("clean", "pgd5"),
    "evaluation.select": "pgd5",
    "batch_size": 64,
}
run = piat_jax.train(
    "embedded:piat", workdir=folder / "arrays", epochs=3, overrides={"dataset.name": str(folder / "discs.npz"), **small}
)
print(run.metrics()[-1]["test_pgd5"])

# %% [markdown]
# In a shell: `piat-train --config=embedded:piat --config.dataset.name=./discs.npz --workdir=runs/discs`. Problems of the data are reported before training:

# %%
np.savez(folder / "wrong.npz", x_train=x_train, y_train=y_train + 1, x_test=x_test, y_test=y_test + 1)
try:
    piat_jax.data.load(str(folder / "wrong.npz"))
except piat_jax.InputError as error:
    print(error)

# %% [markdown]
# ## A folder of images
#
# `train/CLASS/*.png` and `test/CLASS/*.png`, all of one size. `piat-data inspect FOLDER` counts examples, measures pixel statistics and finds duplicates; here the same from Python.

# %%
from PIL import Image

from piat_jax.data import open_dataset
from piat_jax.data.inspection import inspect, to_text

for split, images, labels in (("train", x_train, y_train), ("test", x_test, y_test)):
    for number, (image, label) in enumerate(zip(images, labels)):
        path = folder / "pictures" / split / ("small", "large")[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
dataset = open_dataset(str(folder / "pictures"))
print(to_text(dataset, inspect(dataset)))

# %% [markdown]
# ## Images of any size
#
# With `dataset.image_size` images stay encoded on disk and are decoded and cropped while the device trains: photographs, ImageNet, any data larger than memory. Class
# folders, tar files, parquet, array_record and tfrecord are supported. This needs `pip install 'piat_jax[data]'`.

# %%
for path in (folder / "pictures").rglob("*.png"):
    image = Image.open(path).convert("RGB")
    image.resize(tuple(rng.integers(30, 60, 2))).save(path.with_suffix(".jpg"), quality=90)
    path.unlink()
run = piat_jax.train(
    "embedded:piat",
    workdir=folder / "encoded",
    epochs=2,
    overrides={**small, "dataset.name": str(folder / "pictures"), "dataset.image_size": 24},
)
print(run.metrics()[-1]["test_pgd5"])

# %% [markdown]
# [Data](../../guides/data/) has the other formats, [Encoded images](../../encoded_images/) the details, and [ImageNet from nothing](../../imagenet/) the largest case.
