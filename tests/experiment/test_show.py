"""`model.show`: images in a notebook."""

import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.experiment.classifier import Classifier
from piat_jax.interop import About
from piat_jax.models import create

RNG = np.random.default_rng(0)


def make(channels=1, num_classes=3, **about):
    shape = (4, 4, channels)
    net = create("mlp", num_classes=num_classes, hidden=(6,))
    weights = net.init(jax.random.key(0), jnp.zeros((1, *shape)))
    images = RNG.integers(0, 256, (5, *shape), np.uint8)
    return Classifier.of(net, weights, About(model="mlp", num_classes=num_classes, image_shape=shape, **about)), images


def panels(figure):
    return np.array(figure.axes).reshape(3, -1)


def shown(axes):
    return np.asarray(axes.images[0].get_array())


@pytest.mark.parametrize("channels", [1, 3])
def test_it_shows_what_the_attack_makes(channels):
    model, images = make(channels)
    labels = model.predict(images)
    labels[1] = (labels[1] + 1) % 3
    figure = model.show(images, labels, "pgd3", 3, eps=0.25, step_size=0.1, seed=4)
    rows = panels(figure)
    assert rows.shape == (3, 3)
    attacked = model.attack(images[:3], labels[:3], "pgd3", eps=0.25, step_size=0.1, seed=4)
    for column in range(3):
        clean = images[column].astype(np.float32) / 255
        for axes, expected in ((rows[0, column], clean), (rows[1, column], attacked[column])):
            np.testing.assert_allclose(shown(axes), expected if channels == 3 else expected[..., 0], atol=1e-6)
        difference = 0.5 + (attacked[column] - clean) / 0.5
        expected = difference if channels == 3 else difference[..., 0]
        np.testing.assert_allclose(shown(rows[2, column]), np.clip(expected, 0, 1), atol=1e-5)
    predicted = model.predict(images)
    assert rows[0, 0].get_title() == str(labels[0])
    assert rows[0, 1].get_title() == f"{labels[1]}\n({predicted[1]})"
    assert [axes.get_title() for axes in rows[1]] == [str(each) for each in model.predict(attacked)]


def test_names_and_no_labels():
    model, images = make()
    names = ["cat", "dog", "eel"]
    figure = model.show(images, attack="pgd2", names=names, eps=1 / 255)
    predicted = model.predict(images)
    assert [axes.get_title() for axes in panels(figure)[0]] == [names[each] for each in predicted]
    # Those of a data set that is known by name.
    figure = make(dataset="cifar10", num_classes=10)[0].show(images, np.arange(5), attack="clean")
    assert [each.get_title().split("\n")[0] for each in panels(figure)[0]] == [
        "airplane", "automobile", "bird", "cat", "deer"
    ]  # fmt: skip
    assert panels(make(dataset="cifar10")[0].show(images, attack="clean"))[0, 0].get_title() == str(predicted[0])


def test_other_norms_are_scaled_to_their_largest_value():
    model, images = make()
    figure = model.show(images, attack="pgd2", norm="l2", eps=0.5, step_size=0.3)
    for axes in panels(figure)[2]:
        assert np.abs(shown(axes) - 0.5).max() == pytest.approx(0.5, abs=1e-5)


def test_a_notebook_shows_it_and_a_file_keeps_it(tmp_path):
    model, images = make()
    figure = model.show(images, attack="clean", count=2)
    assert figure._repr_png_().startswith(b"\x89PNG")
    figure.savefig(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    assert len(pickle.loads(pickle.dumps(figure)).axes) == 6


def test_what_cannot_be_shown():
    model, images = make()
    for options, message in (
        ({"count": 0}, "count=0"),
        ({"names": ["a"]}, "names has 1 names for 3 classes"),
        ({"labels": [0, 1]}, "labels"),
        ({"attack": "pgdd20"}, "unknown"),
        ({"attack": "fmn20"}, "has no radius"),
        ({"epsilon": 1}, "field"),
    ):
        with pytest.raises(InputError, match=message):
            model.show(images, **options)
    with pytest.raises(InputError, match="images have the shape"):
        model.show(images[0])


def test_matplotlib_is_imported_where_something_is_drawn():
    code = "import sys, piat_jax; piat_jax.load; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
