"""Networks and arguments as newcomers give them: each mistake has one message, for an attack and for AutoAttack."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from piat_jax.attacks import apgd, bind, fab, fmn, pgd, square
from piat_jax.core.checks import InputError
from piat_jax.evaluation import AutoAttack

IMAGES = jnp.full((8, 6, 6, 3), 0.5)
LABELS = jnp.arange(8) % 4
KEY = jax.random.key(0)


def attack(network, images=IMAGES, labels=LABELS):
    return pgd(network, images, labels, key=KEY, steps=2)


def compiled(network, images=IMAGES, labels=LABELS):
    return jax.jit(lambda x, y: attack(network, x, y))(images, labels)


def evaluate(network, images=IMAGES, labels=LABELS):
    return AutoAttack(eps=0.1, attacks=("apgd-ce",), steps=2).run(network, images, labels)


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv, self.norm = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.Conv(4, (3, 3))(x).mean((1, 2)))


@pytest.mark.parametrize("call", [attack, compiled, evaluate])
def test_nnx_in_training_mode(call):
    net = Net()
    with pytest.raises(InputError, match=re.escape("call net.eval() first")):
        call(net)
    net.eval()
    call(net)


@pytest.mark.parametrize("call", [attack, compiled, evaluate])
def test_channels_first(call):
    net, module = Net(), Linen()
    net.eval()
    variables = module.init(KEY, IMAGES)
    message = "images have shape [N, 3, 6, 6], which looks like [N, C, H, W], but logits_fn takes [N, H, W, C]; give"
    for network in (net, lambda x: module.apply(variables, x)):
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            call(network, IMAGES.transpose(0, 3, 1, 2))
        assert not isinstance(caught.value.__cause__, InputError | None)


@pytest.mark.parametrize("call", [attack, compiled, evaluate])
def test_an_error_of_the_network_itself_stays_and_says_the_shape(call):
    class OwnError(Exception):
        pass

    def network(images):
        raise OwnError("its own")

    with pytest.raises(OwnError) as caught:
        call(network)
    assert str(caught.value) == "its own"
    assert caught.value.__notes__[0] == "images have shape [N, 6, 6, 3]; logits_fn takes [N, H, W, C]"


@pytest.mark.parametrize("call", [attack, compiled, evaluate])
def test_networks_without_their_parameters(call):
    with pytest.raises(InputError, match=r"Linen Linen without its parameters; give lambda images: module\.apply"):
        call(Linen())
    hk = pytest.importorskip("haiku")
    transformed = hk.transform(lambda x: hk.Linear(4)(x.mean((1, 2))))
    with pytest.raises(InputError, match=r"a Transformed without its parameters; give lambda images: network\.apply"):
        call(transformed)
    params = transformed.init(KEY, IMAGES)
    call(lambda images: transformed.apply(params, None, images))
    call(Linen().bind(Linen().init(KEY, IMAGES)))


def test_equinox_in_training_mode():
    eqx = pytest.importorskip("equinox")

    class Module(eqx.Module):
        norm: eqx.nn.BatchNorm
        head: eqx.nn.Linear

        def __call__(self, x, state):
            x, state = self.norm(x.transpose(2, 0, 1), state)
            return self.head(x.mean((1, 2))), state

    def make():
        return Module(eqx.nn.BatchNorm(3, "batch", mode="batch"), eqx.nn.Linear(3, 4, key=KEY))

    module, state = eqx.nn.make_with_state(make)()

    def network(module):
        batched = jax.vmap(module, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return lambda x: batched(x, state)[0]

    with pytest.raises(InputError, match=r"updates an Equinox State.*give the network of eqx\.nn\.inference_mode"):
        evaluate(network(module))
    evaluate(network(eqx.nn.inference_mode(module)))


@pytest.mark.parametrize("call", [attack, evaluate])
def test_arguments_in_another_order(call):
    message = "logits_fn is an array float32[8, 6, 6, 3]; the order is (logits_fn, images, labels)"
    with pytest.raises(InputError, match=re.escape(message) + "$"):
        call(IMAGES, Linen(), LABELS)
    many = {f"layer{n}": np.zeros(100) for n in range(100)}
    with pytest.raises(InputError, match=r"logits_fn is a dict of 100; the order is \(logits_fn, images, labels\)$"):
        call(many)
    if call is attack:
        with pytest.raises(InputError, match=r"images is a function; give an array .* the order is \(logits_fn, im"):
            call(lambda x: x, lambda x: x)


def linear(images):
    return images.mean((1, 2)) @ jnp.ones((3, 4))


@pytest.mark.parametrize("of", [pgd, apgd, square, fab, fmn])
def test_labels_are_an_array(of):
    with pytest.raises(InputError, match=r"labels is a list of 8; give an array: numpy\.asarray\(labels\)"):
        of(linear, IMAGES, LABELS.tolist(), key=KEY)


def test_text_for_a_function():
    with pytest.raises(InputError, match=r"loss is 'margin'; give a function .* piat_jax\.losses\.margin$"):
        pgd(linear, IMAGES, LABELS, key=KEY, loss="margin")
    with pytest.raises(InputError, match=r"loss is 'nothing'; give a function .* piat_jax\.losses\.cross_entropy$"):
        pgd(linear, IMAGES, LABELS, key=KEY, loss="nothing")
    with pytest.raises(InputError, match="fn is 'pgd'; give the function itself"):
        bind("pgd")
