"""The named data sets: what was published, and what training on it usually does. The one table of its kind."""

from typing import NamedTuple

from piat_jax.core.checks import InputError

CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail
snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout
tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CLOTHES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"


class Known(NamedTuple):
    """A published data set."""

    title: str
    image_shape: tuple[int, int, int]  # height, width, channels
    train: int  # examples
    test: int
    classes: int
    class_names: tuple[str, ...]  # () where numbers are the names, or the files have them
    mean: tuple[float, ...]  # of the training pixels in [0, 1], per channel
    std: tuple[float, ...]
    crop_padding: int  # pixels, as adversarial training usually crops it; 0 = not
    flip: bool  # whether a mirrored image keeps its label: a mirrored digit is no digit
    names: tuple[str, ...]  # folders it is kept in under a root, as TFDS, the hubs and torchvision call it
    home: str  # where it is published


KNOWN = {
    "cifar10": Known(
        "CIFAR-10",
        (32, 32, 3),
        50_000,
        10_000,
        10,
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        4,
        True,
        ("cifar10",),
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ),
    "cifar100": Known(
        "CIFAR-100 (fine labels)",
        (32, 32, 3),
        50_000,
        10_000,
        100,
        tuple(CIFAR100_NAMES.split()),
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        4,
        True,
        ("cifar100",),
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    ),
    "svhn": Known(
        "SVHN (cropped digits)",
        (32, 32, 3),
        73_257,
        26_032,
        10,
        (),
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        0,
        False,
        ("svhn", "SVHN", "svhn_cropped"),
        "http://ufldl.stanford.edu/housenumbers: train_32x32.mat and test_32x32.mat",
    ),
    "tiny_imagenet": Known(
        "Tiny-ImageNet",
        (64, 64, 3),
        100_000,
        10_000,
        200,
        (),
        (0.4802, 0.4481, 0.3975),
        (0.2770, 0.2691, 0.2821),
        4,
        True,
        ("tiny_imagenet", "tiny-imagenet"),
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip, unzip it",
    ),
    "fashion_mnist": Known(
        "Fashion-MNIST",
        (28, 28, 1),
        60_000,
        10_000,
        10,
        tuple(CLOTHES.split(",")),
        (0.2860,),
        (0.3530,),
        2,
        True,
        ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw"),
        "https://github.com/zalandoresearch/fashion-mnist: the four idx files, or `apt install dataset-fashion-mnist`",
    ),
    "mnist": Known(
        "MNIST",
        (28, 28, 1),
        60_000,
        10_000,
        10,
        (),
        (0.1307,),
        (0.3081,),
        0,
        False,
        ("mnist", "MNIST/raw"),
        "http://yann.lecun.com/exdb/mnist: the four idx files",
    ),
}
"""Means and standard deviations of the published training sets, as their users round them."""


def check_published(name: str, image_shape: tuple[int, ...], classes: int) -> None:
    """Raise InputError unless images and classes are those of the named data set; other names pass.

    >>> check_published("cifar10", (32, 32, 3), 100)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: cifar10 has 10 classes, but these files have 100; give the files of CIFAR-10
    """
    known = KNOWN.get(name)
    if known is None:
        return
    if image_shape != known.image_shape:
        raise InputError(
            f"{name} has images {known.image_shape}, but these files have {image_shape}; "
            f"give the files of {known.title}"
        )
    if classes != known.classes:
        raise InputError(
            f"{name} has {known.classes} classes, but these files have {classes}; give the files of {known.title}"
        )
