import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.forward import make_logits_fn
from piat_jax.evaluation import AutoAttack
from piat_jax.evaluation.sanity import of_attacks, of_outputs, of_program
from piat_jax.models import create

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0.2, 0.8, size=(48, 2, 2, 1)).astype(np.float32)
WEIGHTS = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
EXAMPLE = jax.ShapeDtypeStruct(IMAGES.shape, np.float32)


def linear(x):
    return (x.reshape(len(x), -1) - 0.5) @ WEIGHTS


LABELS = np.argmax(linear(IMAGES), axis=1)


def findings(logits_fn, labels=LABELS):
    # A black box that does nothing, for the checks that come before the attacks.
    quick = AutoAttack(eps=1e-6, attacks=("square",), queries=1, block_size=48)
    return {f.name: f.message for f in quick.run(logits_fn, IMAGES, labels, devices=jax.devices()[:1]).findings}


def test_nothing_is_wrong_with_a_plain_network():
    assert findings(linear) == {}


@jax.custom_vjp
def identity_backwards(x):
    return jnp.round(8 * x) / 8


identity_backwards.defvjp(lambda x: (jnp.round(8 * x) / 8, None), lambda _, g: (100 * g,))


@pytest.mark.parametrize(
    ("network", "name", "message"),
    [
        (lambda x: jax.nn.softmax(linear(x)), "probabilities", "give logits"),
        (lambda x: linear(jnp.round(10 * x) / 10), "vanishing_gradients", "vanishes at 44 of 44 correctly"),
        (lambda x: linear(jnp.round(10 * x) / 10), "non_differentiable", "between image and logits: round."),
        (lambda x: 1000 * linear(x), "saturated_loss", "the cross-entropy, unlike the margin's, vanishes at"),
        (
            lambda x: linear(identity_backwards(x)),
            "gradient_is_not_derivative",
            "along its gradient the margin changes",
        ),
        (
            lambda x: linear(x) + 1e-3 * jax.random.normal(jax.random.key(0), (len(x), 3)),
            "randomised",
            "from its own key",
        ),
        (lambda x: linear(x).at[3, 0].set(jnp.nan), "non_finite", "1 of 48 clean images have logits"),
    ],
)
def test_each_cause_has_its_name(network, name, message):
    found = findings(network)
    assert message in found[name]


def test_noise_from_outside_is_seen():
    calls = iter(range(10**6))

    def noisy(x):
        draw = lambda x: np.float32(next(calls)) * np.ones(len(x), np.float32)  # noqa: E731
        noise = jax.pure_callback(draw, jnp.zeros(48), jax.lax.stop_gradient(x))
        return linear(x) + 1e-3 * noise[:, None] * jnp.eye(3)[:1]

    assert "two calls on the same images" in findings(noisy)["randomised"]


def test_wrong_labels_are_seen():
    far = findings(linear, (LABELS + 1) % 3)["chance"]
    assert "the clean accuracy, 0.0%, is far below that of guessing among 3 classes, 33.3%; most likely labels" in far
    rows = np.random.default_rng(0).permutation(len(LABELS))
    assert "about that of guessing among 3 classes" in findings(linear, LABELS[rows])["chance"]


@pytest.mark.parametrize(
    ("count", "correct", "classes", "said"),
    [(64, 0, 10, 1), (32, 0, 10, 0), (64, 1, 10, 1), (64, 2, 10, 0), (7, 0, 2, 1), (6, 0, 2, 0)],
)
def test_few_images_far_below_chance_are_seen(count, correct, classes, said):
    # P(no guess of 64 among 10 classes is right) = 0.9^64 = 0.0012; of at most one right, 0.0095; of two, 0.037.
    logits = np.eye(classes, dtype=np.float32)[np.arange(count) % classes]
    labels = (np.arange(count) + (np.arange(count) >= correct)) % classes
    assert len([f for f in of_outputs(logits, labels) if "far below" in f.message]) == said


def names(network, *more):
    return [f.message.split("logits: ")[-1].split(".")[0] for f in of_program(network, EXAMPLE, *more)]


@pytest.mark.parametrize(
    ("network", "found"),
    [
        (lambda x: linear((x > 0.5).astype(jnp.float32)), "bool to float32"),
        (lambda x: linear((255 * x).astype(jnp.uint8) / 255.0), "float32 to uint8, uint8 to float32"),
        (lambda x: jax.nn.one_hot(jnp.argmax(linear(x), axis=1), 3), "argmax"),
        (lambda x: linear(jax.lax.stop_gradient(x)), "stop_gradient"),
        (lambda x: jax.jit(lambda x: linear(jnp.sign(x) + jnp.floor(x) + jnp.floor(2 * x)))(x), "floor (2), sign"),
        (lambda x: jax.lax.scan(lambda c, _: (jnp.ceil(c), None), linear(x), None, 2)[0], "ceil"),
        (lambda x: jax.checkpoint(lambda x: linear(jnp.round(x)))(x), "round"),
    ],
)
def test_operations_without_a_gradient_are_found_in_the_program(network, found):
    (listed,) = names(network)
    assert listed.startswith(found)


def test_what_has_a_gradient_is_not_blamed():
    def attention(x):
        tokens = x.reshape(len(x), 4, 1)
        weights = jax.nn.softmax(tokens @ tokens.swapaxes(1, 2), axis=-1)  # holds its maximum constant
        hidden = jax.nn.gelu(jax.nn.leaky_relu(weights @ tokens)) + jnp.where(tokens > 0, tokens, 0.1 * tokens)
        return jax.nn.log_softmax(linear(hidden)) + jnp.round(WEIGHTS[:1])

    assert names(attention) == []
    model = create("small_resnet", num_classes=3, width=2)
    variables = model.init(jax.random.key(0), jnp.zeros(IMAGES.shape))
    assert list(of_program(make_logits_fn(model, variables), EXAMPLE)) == []


def test_noise_from_given_keys_is_as_it_should_be():
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 48))

    def noisy(x, keys):
        return linear(x) + jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)

    assert names(noisy, keys) == []


def black_box(count, extra, left=900):
    """Findings where the gradient attacks left `left` of `count` images, and Square broke `extra` of these."""
    attempted, fooled = np.ones((3, count), bool), np.zeros((3, count), bool)
    fooled[0, left:] = fooled[1, left:] = fooled[1, :extra] = True
    attempted[1] = attempted[2] = ~fooled[0]
    return list(of_attacks(("apgd-ce", "square", "fab-t"), (True, False, True), attempted, fooled))


@pytest.mark.parametrize(("count", "left", "usual"), [(500, 333, 5), (1000, 900, 10), (10000, 5000, 40)])
def test_a_black_box_is_told_where_it_breaks_more_than_an_honest_network_shows(count, left, usual):
    assert black_box(count, 2, left) == []  # the published Square breaks as many on robust networks
    assert black_box(count, usual, left) == []
    (finding,) = black_box(count, usual + 1, left)
    assert finding.name == "black_box_is_stronger"
    assert finding.message.startswith(
        f"square, which uses no gradients, broke {usual + 1} of the {left} examples that earlier gradient attacks left"
    )
    assert f"(up to {usual} are usual): gradients may be masked at some images" in finding.message
    (finding,) = black_box(count, left // 10 + 1, left)
    assert "gradients are likely masked and the true robust accuracy is lower" in finding.message


def test_a_black_box_alone_is_stronger_than_nothing():
    assert list(of_attacks(("square",), (False,), np.ones((1, 50), bool), np.ones((1, 50), bool))) == []


def minus_the_mean(x):
    return linear(x) - linear(x).mean(axis=0, keepdims=True)


class TestRowsThatSeeEachOther:
    def found(self, logits_fn, images=IMAGES, devices=1, size=48):
        quick = AutoAttack(eps=1e-6, attacks=("square",), queries=1, block_size=size)
        labels = np.argmax(linear(images), axis=1)
        result = quick.run(logits_fn, images, labels, devices=jax.devices()[:devices])
        return {f.name: f.message for f in result.findings}

    @pytest.mark.parametrize("count", [1, 2, 7, 48])
    @pytest.mark.parametrize(("devices", "size"), [(1, 8), (1, 48), (2, 48)])
    def test_they_are_seen(self, count, devices, size):
        message = self.found(minus_the_mean, IMAGES[:count], devices, size)["rows_see_each_other"]
        assert "the logits of an image change by up to" in message
        assert "put BatchNorm into evaluation mode" in message

    def test_batch_norm_in_training_mode(self):
        model = create("small_resnet", num_classes=3, width=2, stage_sizes=(1,))
        variables = model.init(jax.random.key(0), jnp.zeros(IMAGES.shape))
        assert "rows_see_each_other" in self.found(make_logits_fn(model, variables, train=True))
        assert "rows_see_each_other" not in self.found(make_logits_fn(model, variables))


def test_a_gradient_that_is_not_finite_has_its_name():
    images = IMAGES.copy()
    images[:5, 0, 0] = 0.2
    labels = np.argmax(linear(images), axis=1)
    quick = AutoAttack(eps=1e-6, attacks=("square",), queries=1, block_size=48)
    found = {f.name: f.message for f in quick.run(frame, images, labels, devices=jax.devices()[:1]).findings}
    assert "is not finite at 5 of 48 correctly classified images (2.6% of the pixels)" in found["non_finite_gradients"]


def frame(x):
    """`linear`, with a root that has no slope at the pixels of 0.2."""
    return linear(x + 0 * jax.nn.relu(jnp.maximum(x - 0.2, 0.0) ** 0.5))
