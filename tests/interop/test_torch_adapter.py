import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.attacks import pgd
from piat_jax.core.checks import InputError
from piat_jax.evaluation import AutoAttack
from piat_jax.interop import torch_logits_fn

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
W = RNG.normal(size=(3 * 4 * 2, 8)).astype(np.float32), RNG.normal(size=(8, 4)).astype(np.float32)
IMAGES = RNG.uniform(size=(24, 4, 2, 3)).astype(np.float32)


def ours(x):
    # PyTorch flattens channels first.
    return jnp.tanh((x.transpose(0, 3, 1, 2).reshape(len(x), -1) - 0.5) @ W[0]) @ W[1]


class Theirs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (torch.nn.Parameter(torch.tensor(w)) for w in W)

    def forward(self, x):
        return torch.tanh((x.flatten(1) - 0.5) @ self.first) @ self.second


THEIRS = torch_logits_fn(Theirs().eval())
LABELS = np.argmax(ours(IMAGES), axis=1)


def test_values_and_gradients():
    np.testing.assert_allclose(jax.jit(THEIRS)(IMAGES), ours(IMAGES), atol=1e-5)
    weights = jnp.asarray(RNG.normal(size=(24, 4)), jnp.float32)
    got, expected = (jax.jit(jax.grad(lambda x: jnp.sum(f(x) * weights)))(IMAGES) for f in (THEIRS, ours))  # noqa: B023
    np.testing.assert_allclose(got, expected, atol=1e-5)
    # A forward whose graph was dropped meanwhile is computed again.
    _, pullback = jax.vjp(THEIRS, IMAGES)
    for _ in range(20):
        jax.vjp(THEIRS, IMAGES)
    np.testing.assert_allclose(pullback(weights)[0], expected, atol=1e-5)


def test_in_a_loop_of_an_attack():
    options = {"key": jax.random.key(0), "eps": 0.1, "step_size": 0.02, "steps": 5}
    got, expected = (jax.jit(lambda x, y: pgd(f, x, y, **options))(IMAGES, LABELS) for f in (THEIRS, ours))  # noqa: B023
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_autoattack():
    attack = AutoAttack(eps=0.05, steps=5, queries=20, targets=2, block_size=24)
    got, expected = (attack.run(f, IMAGES, LABELS, devices=jax.devices()[:1]) for f in (THEIRS, ours))
    assert got.findings == ()
    assert 0 < got.accuracy < 1
    np.testing.assert_array_equal(got.robust, expected.robust)


def test_a_large_batch_and_several_devices():
    images = RNG.uniform(size=(512, 32, 32, 3)).astype(np.float32)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(5))
    module(torch.zeros(1, 3, 32, 32))
    fn = torch_logits_fn(module.eval())
    labels = np.argmax(jax.jit(fn)(images), axis=1)
    result = AutoAttack(eps=0.01, attacks=("apgd-ce",), steps=3).run(fn, images, labels, devices=jax.devices()[:2])
    assert result.clean_accuracy == 1
    assert result.accuracy < 1


def test_bad_modules_are_refused():
    with pytest.raises(InputError, match="in training mode"):
        torch_logits_fn(Theirs())
    with pytest.raises(InputError, match="returns shape"):
        torch_logits_fn(torch.nn.Identity().eval())(IMAGES)


def test_attacks_name_the_adapter_where_a_module_is_given_as_it_is():
    message = r"logits_fn is a PyTorch Theirs, .* give piat_jax.interop.torch_logits_fn\(module.eval\(\)\)"
    with pytest.raises(InputError, match=message):
        pgd(Theirs(), IMAGES, LABELS, key=jax.random.key(0))
    with pytest.raises(InputError, match=message):
        AutoAttack().run(Theirs(), IMAGES, LABELS)
