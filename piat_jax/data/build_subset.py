"""Make the file behind `load("embedded")` from the official files of Fashion-MNIST.

python -m piat_jax.data.build_subset /usr/share/datasets/fashion-mnist piat_jax/data/fashion_mnist_subset.npz
"""

import io
import os
import sys
import zipfile

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded
from piat_jax.data import load
from piat_jax.data.embedded import KEYS, content_hash
from piat_jax.data.types import Split

TRAIN_EXAMPLES, TEST_EXAMPLES = 1024, 1000
SEED = 0


def choose(labels: np.ndarray, num_examples: int, rng: np.random.RandomState) -> np.ndarray:
    """Choose `num_examples` examples, balanced over the classes as far as possible; their indices in random order.

    >>> labels = np.array([0, 0, 0, 1, 1, 1])
    >>> np.bincount(labels[choose(labels, 4, np.random.RandomState(0))]).tolist()
    [2, 2]
    """
    num_classes = int(labels.max()) + 1
    share, rest = divmod(num_examples, num_classes)
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[: share + (label < rest)] for label in range(num_classes)
    ]
    return rng.permutation(np.concatenate(chosen))


def subset(train: Split, test: Split) -> tuple[Split, Split]:
    """The shipped examples from the official training and test sets."""
    # NumPy's compatibility policy freezes RandomState's stream; that of default_rng may change.
    rng = np.random.RandomState(SEED)
    train_indices = choose(train.labels, TRAIN_EXAMPLES, rng)
    test_indices = choose(test.labels, TEST_EXAMPLES, rng)
    return (
        Split(train.images[train_indices], train.labels[train_indices]),
        Split(test.images[test_indices], test.labels[test_indices]),
    )


def write(path: str | os.PathLike[str], train: Split, test: Split) -> None:
    """Write an .npz whose bytes depend only on the arrays: no time stamps, fixed permissions."""
    arrays = (train.images, train.labels.astype(np.uint8), test.images, test.labels.astype(np.uint8))
    with zipfile.ZipFile(expanded(path), "w") as archive:
        for key, array in zip(KEYS, arrays):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{key}.npy")
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def main(arguments: list[str]) -> int:
    """Read SOURCE_DIR, write OUT.npz, print the hash of its content; return 2 if the input is invalid."""
    if len(arguments) != 2:
        print("usage: python -m piat_jax.data.build_subset SOURCE_DIR OUT.npz", file=sys.stderr)
        return 2
    source_dir, out = arguments
    try:
        official = load("fashion_mnist", data_dir=source_dir)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    train, test = subset(official.train, official.test)
    write(out, train, test)
    print(content_hash(train, test))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
