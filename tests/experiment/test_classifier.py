"""`piat_jax.load`: a network with its weights, wherever they are from."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import piat_jax
from piat_jax.attacks import bind, pgd
from piat_jax.core.checks import InputError
from piat_jax.core.rng import named_key
from piat_jax.data import load
from piat_jax.experiment import Experiment, Run, classifier
from piat_jax.experiment.classifier import Classifier
from piat_jax.interop import About, weights
from piat_jax.models import create

SHAPE = (4, 4, 1)
ABOUT = About(model="mlp", num_classes=3, image_shape=SHAPE, options={"hidden": (6,)})
RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 256, (11, *SHAPE), np.uint8), RNG.integers(0, 3, 11)


def make(seed=0, **about):
    net = create("mlp", num_classes=3, hidden=(6,))
    weights = net.init(jax.random.key(seed), jnp.zeros((1, *SHAPE)))
    return Classifier.of(net, weights, dataclasses.replace(ABOUT, **about))


def test_logits_of_bytes_and_of_floats_whatever_the_batch():
    model = make()
    pixels = (IMAGES / np.float32(255)).astype(np.float32)
    logits = model.logits(IMAGES)
    assert (logits.shape, logits.dtype) == ((11, 3), np.float32)
    np.testing.assert_allclose(logits, np.asarray(model(jnp.asarray(pixels))), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(model(jnp.asarray(IMAGES))), np.asarray(model(jnp.asarray(pixels))))
    np.testing.assert_array_equal(model.logits(pixels), logits)
    np.testing.assert_allclose(model.logits(IMAGES, batch_size=3), logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.predict(IMAGES), logits.argmax(1))


@dataclasses.dataclass(frozen=True)
class WithSoftmax:
    """A network of which the outputs are probabilities."""

    net: Any

    def apply(self, *variables, **options):
        logits, state = self.net.apply(*variables, **options)
        return jax.nn.softmax(logits), state


@pytest.mark.parametrize("attack", ["pgd", "apgd-ce", "fmn"])
def test_what_makes_a_result_doubtful_is_told_once(attack, monkeypatch):
    monkeypatch.setattr(classifier.console, "note", lambda text: told.append(text))
    for softmax in (False, True):
        told, model = [], make()
        if softmax:
            model = dataclasses.replace(model, model=WithSoftmax(model.model))
        model.evaluate(IMAGES, model.predict(IMAGES), [f"{attack}5", f"{attack}6"])
        assert sum("the outputs look like probabilities" in text for text in told) == softmax


def test_it_is_a_pytree_and_another_one_compiles_nothing():
    traced = []

    @jax.jit
    def accuracy(model, images, labels):
        traced.append(1)
        return jnp.mean(jnp.argmax(model(images), axis=1) == labels)

    pixels = jnp.asarray(IMAGES / np.float32(255))
    for model in (make(), make(seed=1), make(seed=2, dataset="cifar10", accuracy={"clean": 0.5})):
        expected = np.mean(model.predict(IMAGES) == LABELS)
        assert float(accuracy(model, pixels, LABELS)) == pytest.approx(expected)
    assert len(traced) == 1
    np.testing.assert_allclose(jax.jit(make())(pixels), make().logits(IMAGES), rtol=1e-5, atol=1e-6)
    (doubled,) = [jax.tree.map(lambda leaf: 2 * leaf, make())]
    assert doubled.about == ABOUT


def test_every_attack_takes_it_as_a_network():
    model, pixels = make(), jnp.asarray(IMAGES / np.float32(255))
    attack = bind(pgd, eps=0.1, step_size=0.05, steps=3)
    key = named_key(jax.random.key(0), "evaluate")
    by_hand = jax.jit(lambda model, x: attack(model, x, jnp.asarray(LABELS), key=key))(model, pixels)
    found = model.attack(IMAGES, LABELS, "pgd3", eps=0.1, step_size=0.05, batch_size=4)
    np.testing.assert_allclose(found, by_hand, atol=1e-6)
    assert 0.05 < np.abs(found - pixels).max() <= 0.1 + 1e-6
    np.testing.assert_array_equal(model.attack(IMAGES, LABELS, "clean"), pixels)
    scores = model.evaluate(IMAGES, LABELS, "clean, pgd3,apgd-ce2", eps=0.1, step_size=0.05)
    assert list(scores) == ["clean", "pgd3", "apgd-ce2"]
    assert scores["clean"] == pytest.approx(np.mean(model.predict(IMAGES) == LABELS))
    assert scores["pgd3"] == pytest.approx(np.mean(model.predict(found) == LABELS))
    assert scores["apgd-ce2"] <= scores["clean"]
    broken = model.attack(IMAGES, LABELS, "apgd-ce2", eps=0.1)
    assert np.mean(model.predict(broken) == LABELS) == pytest.approx(scores["apgd-ce2"])


def test_the_precision_that_is_asked_for_is_taken(monkeypatch):
    asked, real = [], classifier.Blocks
    monkeypatch.setattr(classifier, "Blocks", lambda *given: asked.append(given[-1]) or real(*given))
    make().attack(IMAGES, LABELS, "fgsm", precision="default")
    make().attack(IMAGES, LABELS, "fgsm")
    assert asked == ["default", "highest"]


def test_it_says_what_it_is():
    parameters = 16 * 6 + 6 + 6 * 3 + 3
    assert repr(make()) == f"mlp ({parameters} parameters), 4x4x1 -> 3 classes"
    assert repr(make(dataset="cifar10", method="trades, 3 epochs")).endswith("classes; cifar10, trades, 3 epochs")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.logits(IMAGES[0]), r"images have the shape \(4, 4, 1\); give \[N, 4, 4, 1\], N at least 1"),
        (lambda m: m.predict(IMAGES[:0]), "N at least 1"),
        (lambda m: m.logits(IMAGES.astype(np.float32)), r"images range from .*; give pixels in \[0, 1\]"),
        (lambda m: m.logits(IMAGES.astype(np.int32)), "images has dtype int32; give floats"),
        (lambda m: m.attack(IMAGES, LABELS[:3]), "labels have shape"),
        (lambda m: m.attack(IMAGES, LABELS + 1), "labels range from 1 to 3"),
        (lambda m: m.attack(IMAGES, LABELS, "pdg20"), "did you mean 'pgd20'"),
        (lambda m: m.evaluate(IMAGES, LABELS, "clean", esp=1), "did you mean 'eps'"),
        (lambda m: m.attack(IMAGES, LABELS, "pgd2", eps=8), r"eps=8 must be in \[0, 1\]; did you mean 8/255"),
        (lambda m: m.attack(IMAGES, LABELS, "pgd2", eps=-1), "eps=-1 must be"),
        (lambda m: m.attack(IMAGES, LABELS, "pgd2", eps=-1, norm="l2"), "eps=-1 must be at least 0"),
        (lambda m: m.show(IMAGES, LABELS, "pgd2", eps=8), r"eps=8 must be in \[0, 1\]"),
        (lambda m: m.evaluate(IMAGES, LABELS, "pgd2", eps=8), r"eps=8 must be in \[0, 1\]"),
        (lambda m: m.evaluate(IMAGES, LABELS, "pgd2", norm="l3"), "norm='l3' is unknown"),
        (lambda m: m.to_run("x", Experiment.from_plain({"method": "awp+awp"})), "twice"),
    ],
)
def test_what_it_cannot_use_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call(make())


def test_it_goes_out_and_comes_back_in_every_form(tmp_path):
    model = make()
    logits = model.logits(IMAGES)
    model.to_safetensors(tmp_path / "exported")
    back = piat_jax.load(tmp_path / "exported")
    assert back.about.options == {"hidden": (6,)}
    np.testing.assert_array_equal(back.logits(IMAGES), logits)
    file = tmp_path / "exported" / "model.safetensors"
    options = {"num_classes": 3, "options": {"hidden": (6,)}, "image_shape": SHAPE}
    np.testing.assert_array_equal(piat_jax.load(file, model="mlp", **options).logits(IMAGES), logits)
    model.to_run(tmp_path / "run", "embedded")
    of_run = piat_jax.load(Run(tmp_path / "run").folder, image_shape=SHAPE)
    np.testing.assert_array_equal(of_run.logits(IMAGES), logits)
    assert of_run.origin.experiment.evaluation.eps == 0.1  # as it will be evaluated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "model is missing: weights do not say which network they are of"),
        ({"model": "mlp"}, "num_classes is missing"),
        ({"model": "mpl", "num_classes": 3}, "did you mean 'mlp'"),
        ({"model": "mlp", "num_classes": 3, "image_shape": (4, 4)}, "is not height, width, channels"),
    ],
)
def test_weights_that_do_not_say_what_they_are(tmp_path, options, message):
    np.savez(tmp_path / "x.npz", a=np.zeros(2))
    with pytest.raises(InputError, match=message):
        piat_jax.load(tmp_path / "x.npz", **options)
    with pytest.raises(InputError, match="is not a file or a folder"):
        piat_jax.load(tmp_path / "absent")


@pytest.mark.parametrize("adapt", [False, True])
@pytest.mark.parametrize("form", ["folder", "file"])
def test_weights_are_read_once(form, adapt, tmp_path, monkeypatch):
    read = []

    def counted(name):
        inner = getattr(weights, name)
        monkeypatch.setattr(weights, name, lambda *args, **options: read.append(name) or inner(*args, **options))

    model = make()
    model.to_safetensors(tmp_path / "exported")
    source = tmp_path / "exported" / ("" if form == "folder" else "model.safetensors")
    for name in ("read_tensors", "read_safetensors"):
        counted(name)
    given = {"model": "mlp", "num_classes": 3, "options": {"hidden": (6,)}, "image_shape": SHAPE}
    loaded = piat_jax.load(source, **given, adapt=adapt)
    np.testing.assert_array_equal(loaded.logits(IMAGES), model.logits(IMAGES))
    assert len(read) == 1
    with pytest.raises(InputError, match="model='mpl' is unknown"):
        piat_jax.load(source, **{**given, "model": "mpl"})
    assert len(read) == 1  # what is wrong without the file is told without reading it


def test_the_data_of_the_package_goes_straight_in():
    net = create("small_resnet", num_classes=10, width=2, stage_sizes=(1,))
    weights = net.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    model = Classifier.of(net, weights, About(model="small_resnet", num_classes=10, image_shape=(28, 28, 1)))
    test = load("embedded", test_examples=20).test
    assert model.logits(test.images).shape == (20, 10)
