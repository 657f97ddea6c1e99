"""Weights from and to the published networks in PyTorch, where it is installed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from piat_jax.core.checks import InputError
from piat_jax.interop import load_weights, save_torch, state_dict
from piat_jax.models import LinenModel, create
from tests.models import conv_golden
from tests.models.test_architectures import logits_and_gradient
from tests.models.torch_reference import images

torch = pytest.importorskip("torch")

from tests import torch_networks  # noqa: E402

X = np.asarray(images(8, 8), np.float32)


def randomised(net):
    """Weights and statistics as after training; BatchNorm's are far from 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for name, values in net.state_dict().items():
        if values.is_floating_point():
            noise = torch.randn(values.shape, generator=generator)
            if name.endswith("running_var"):
                values.copy_(0.5 + noise.abs())
            elif values.ndim == 1:
                values.copy_((0.2 if name.endswith("bias") else 1.0) + 0.3 * noise)
            else:
                values.copy_(noise * (2 / values[0].numel()) ** 0.5)
        else:
            values.fill_(7)
    return net.eval()


@pytest.mark.parametrize("name", conv_golden.SMALL)
def test_logits_gradients_and_keys(name, tmp_path):
    net = randomised(torch_networks.NETWORKS[name](*conv_golden.sizes(name)))
    wrapped = {f"module.{key}": values for key, values in net.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": {"lr": 0.1}}, tmp_path / "a.pt")
    model, _ = conv_golden.small(name)
    loaded = load_weights(tmp_path / "a.pt", model, X.shape[1:])
    assert {"epoch", "optimizer"} <= set(loaded.report.dropped)
    logits, gradient = logits_and_gradient(model, loaded.variables)
    expected, expected_gradient = torch_networks.gradient(net, X, np.float32(conv_golden.WEIGHTS))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)
    # And out again: the same bits under the same keys, which PyTorch loads strictly.
    save_torch(tmp_path / "b.pt", model, loaded.variables)
    again = torch.load(tmp_path / "b.pt", weights_only=True)
    net.load_state_dict(again, strict=True)
    for key, values in net.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(values, again[key])
    assert len(again) == len(state_dict(model, loaded.variables)) == len(wrapped)


@pytest.mark.parametrize(
    ("name", "make", "tensors"),
    [
        ("resnet18", lambda: torch_networks.NETWORKS["resnet"]((2, 2, 2, 2), 64, 10), 122),
        ("resnet50", lambda: torch_networks.NETWORKS["resnet_bottleneck"]((3, 4, 6, 3), 64, 10), 320),
        ("preact_resnet18_v1", lambda: torch_networks.NETWORKS["preact_v1"]((2, 2, 2, 2), 64, 10), 102),
        ("preact_resnet18", lambda: torch_networks.NETWORKS["preact_v2"]((2, 2, 2, 2), 64, 10), 107),
        ("wrn_28_10", lambda: torch_networks.WideResNet(4, 10, 10), 155),
        ("wrn_34_10", lambda: torch_networks.WideResNet(5, 10, 10, sub_block=True), 252),
        ("dm_wrn_28_10", lambda: torch_networks.SwishWideResNet(4, 10, 10), 155),
        ("dm_preact_resnet18", lambda: torch_networks.SwishPreActResNet((2, 2, 2, 2), 64, 10), 107),
    ],
)
def test_keys_and_shapes_of_the_full_networks(name, make, tensors):
    with torch.device("meta"):
        theirs = {key: tuple(values.shape) for key, values in make().state_dict().items()}
    assert len(theirs) == tensors
    model = create(name, num_classes=10)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    # Arrays of these shapes that take no memory.
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), like)
    from piat_jax.interop.names import flatten, network_of, to_torch, torch_key

    ours = {torch_key(path, network_of(model)): to_torch(path, leaf).shape for path, leaf in flatten(empty).items()}
    counted = {key for key in theirs if key.endswith("num_batches_tracked") or key.startswith("sub_block1.")}
    assert ours == {key: shape for key, shape in theirs.items() if key not in counted}


def test_a_step_of_training_then_pytorch(tmp_path):
    model, variables = conv_golden.small("preact_v2")
    inside = LinenModel(model.module.clone(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)))

    @functools.partial(jax.jit, static_argnums=0)
    def step(model, variables):
        def loss(params):
            logits, state = model.apply(params, variables.model_state, X, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array([0, 2])).mean(), state

        gradient, state = jax.grad(loss, has_aux=True)(variables.params)
        return variables._replace(params=jax.tree.map(lambda w, g: w - 0.1 * g, variables.params, gradient)), state

    trained, state = step(inside, variables)
    trained = trained._replace(model_state=state)
    save_torch(tmp_path / "a.pt", inside, trained)
    net = torch_networks.NETWORKS["preact_v2"](*conv_golden.sizes("preact_v2")).eval()
    net.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True), strict=True)
    with torch.no_grad():
        x = (X - np.float32([0.4, 0.5, 0.6]).reshape(1, 1, 1, 3)) / np.float32([0.2, 0.25, 0.3]).reshape(1, 1, 1, 3)
        theirs = net(torch.as_tensor(x.transpose(0, 3, 1, 2).copy())).numpy()
    logits, _ = logits_and_gradient(inside, trained)
    np.testing.assert_allclose(logits, theirs, rtol=1e-5, atol=1e-5)
    assert np.abs(logits - logits_and_gradient(inside, variables)[0]).max() > 1e-3


class Evil:
    """Something that only unpickling with code of its own can make."""

    def __init__(self):
        self.lr = 0.1


def test_pickles_with_code_need_consent(tmp_path):
    model, variables = conv_golden.small("resnet")
    state = {key: torch.tensor(values) for key, values in state_dict(model, variables).items()}
    path = tmp_path / "a.pth"
    torch.save({"last": state, "best": {}, "arguments": Evil()}, path)
    with pytest.raises(InputError, match="may run any code in the file; if you trust"):
        load_weights(path, model, X.shape[1:])
    loaded = load_weights(path, model, X.shape[1:], unsafe_pickle=True)
    jax.tree.map(np.testing.assert_array_equal, tuple(loaded.variables), tuple(variables))
    assert set(loaded.report.dropped) >= {"best", "arguments"}
    for content, message in ((b"no zip", "cannot be read|holds more"), (path.read_bytes()[:-100], "cannot be read")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            load_weights(path, model, X.shape[1:])
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="holds a list, not a state_dict"):
        load_weights(path, model, X.shape[1:])
