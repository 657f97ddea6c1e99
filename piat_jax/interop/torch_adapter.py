"""A PyTorch network as a `logits_fn`, called from compiled JAX programs."""

import collections
import itertools
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.types import Array, LogitsFn


def torch_logits_fn(module: Any) -> LogitsFn:
    """`images -> module(images)` with PyTorch's gradient, for every attack and `AutoAttack` of this library.

    The network runs in PyTorch, on its device, with one call per iteration; only the attack around it is compiled. For
    a network that this library also has, converting the weights is faster.

    Args:
      module: a `torch.nn.Module` from NCHW float32 images in [0, 1] to logits `[B, K]`, in evaluation mode, including
        its normalisation.

    Returns:
      A function of NHWC images. It has first derivatives only.

    Raises:
      InputError: the module is in training mode, where the examples of a batch would depend on each other.

    Example:
        result = AutoAttack(eps=8 / 255).run(torch_logits_fn(module), images, labels, devices=jax.devices()[:1])
    """
    if module.training:
        raise InputError("module is in training mode; call module.eval() first")
    network = _Network(module)

    @jax.custom_vjp
    def logits_fn(images: Array) -> Array:
        return network.forward(images)[0]

    def forward(images: Array) -> tuple[Array, tuple[Array, Array]]:
        logits, ticket = network.forward(images, keep=True)
        return logits, (images, ticket)

    def backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array]:
        return (network.backward(*residuals, cotangent),)

    logits_fn.defvjp(forward, backward)
    return logits_fn


class _Network:
    """Calls on the host. A forward stores its graph under a ticket, by which the backward finds it."""

    def __init__(self, module: Any):
        self.module = module
        self.lock = threading.Lock()  # devices call at the same time
        self.tickets = itertools.count(1)
        # A few, since some forwards have no backward; dropped graphs are computed again.
        self.graphs: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self.classes: dict[tuple[int, ...], int] = {}

    def forward(self, images: Array, *, keep: bool = False) -> tuple[Array, Array]:
        """Logits, and the ticket of their graph if it is to be kept, else 0."""
        shape = (images.shape[0], self._count_classes(images.shape[1:]))
        results = (jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
        return jax.pure_callback(lambda x: self._forward(np.asarray(x), keep), results, images)

    def backward(self, images: Array, ticket: Array, cotangent: Array) -> Array:
        """The gradient with respect to the images."""
        result = jax.ShapeDtypeStruct(images.shape, jnp.float32)
        return jax.pure_callback(
            lambda *args: self._backward(*map(np.asarray, args)), result, images, ticket, cotangent
        )

    def _count_classes(self, shape: tuple[int, ...]) -> int:
        if shape not in self.classes:
            logits, _ = self._forward(np.zeros((1, *shape), np.float32), keep=False)
            if logits.ndim != 2:
                raise InputError(f"module returns shape {list(logits.shape)} for one image; it must be [1, K]")
            self.classes[shape] = logits.shape[1]
        return self.classes[shape]

    def _forward(self, images: np.ndarray, keep: bool) -> tuple[np.ndarray, np.ndarray]:
        import torch  # pyright: ignore[reportMissingImports]

        with self.lock, torch.set_grad_enabled(keep):
            x, logits = self._call(images, keep)
            ticket = next(self.tickets) if keep else 0
            if keep:
                self.graphs[ticket] = (x, logits)
                while len(self.graphs) > 16:
                    self.graphs.popitem(last=False)
            return logits.detach().float().cpu().numpy(), np.array(ticket, np.int32)

    def _backward(self, images: np.ndarray, ticket: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
        import torch  # pyright: ignore[reportMissingImports]

        with self.lock, torch.enable_grad():
            x, logits = self.graphs.pop(int(ticket), None) or self._call(images, True)
            weights = torch.tensor(cotangent).to(logits)
            (gradient,) = torch.autograd.grad(logits, x, weights)
            return gradient.permute(0, 2, 3, 1).float().cpu().contiguous().numpy()

    def _call(self, images: np.ndarray, keep: bool) -> tuple[Any, Any]:
        import torch  # pyright: ignore[reportMissingImports]

        parameter = next(self.module.parameters(), None)
        device = parameter.device if parameter is not None else "cpu"
        x = torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), device=device).requires_grad_(keep)
        return x, self.module(x)
