"""BatchNorm with PyTorch's constants, and with sums over pixels that are fast on a CPU."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from piat_jax.core.checks import InputError
from piat_jax.core.types import Array

MOMENTUM, EPSILON = 0.1, 1e-5
_training: contextvars.ContextVar[tuple[int, float]] = contextvars.ContextVar("training", default=(1, MOMENTUM))


@contextlib.contextmanager
def batch_norm_training(groups: int, momentum: float = MOMENTUM) -> Iterator[None]:
    """In this context every `BatchNorm` in training mode uses this number of batch groups and this momentum.

    The values are read while a network is traced, so they must be part of what identifies the trace (`LinenModel`).
    """
    token = _training.set((groups, momentum))
    try:
        yield
    finally:
        _training.reset(token)


class BatchNorm(nn.Module):
    """`(x - mean) / sqrt(var + 1e-5) * scale + bias` for each channel, with batch statistics and running statistics.

    Parameters and statistics have Flax's names. Momentum is PyTorch's, the share of the new batch: its 0.1 is 0.9 in
    Flax, whose default is 0.99. The running variance is the biased one; PyTorch's is unbiased, larger by n/(n-1) with
    n = batch x height x width.

    With `batch_norm_training(G)`, example i of B belongs to group `i G // B`, and each group is normalised by its own
    mean and variance, as on G devices with PyTorch's DataParallel or DistributedDataParallel. The running statistics
    then move towards the mean of the groups' statistics. PyTorch's move towards those of the first device, whose copy
    is kept: equal in expectation, but from a G-th of the images.
    """

    train: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if not self.train:
            mean, var = running_mean.value, running_var.value
            return _affine(x, mean, scale * lax.rsqrt(var + EPSILON), bias).astype(self.dtype)
        groups, momentum = _training.get()
        if groups == 1:
            y, mean, var = _by_batch(x, scale, bias)
        else:
            if x.shape[0] % groups:
                raise InputError(f"bn_groups={groups} does not divide a batch of {x.shape[0]} images")
            grouped = x.reshape(groups, -1, *x.shape[1:])
            y, mean, var = jax.vmap(_by_batch, (0, None, None))(grouped, scale, bias)
            y, mean, var = y.reshape(x.shape), mean.mean(axis=0), var.mean(axis=0)
        if not self.is_initializing():
            running_mean.value += momentum * (mean - running_mean.value)
            running_var.value += momentum * (var - running_var.value)
        return y.astype(self.dtype)


def _by_batch(x: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
    """`x` normalised by its own mean and variance, and this mean and variance."""
    mean, var = _moments(x)
    return _normalize(x, mean, scale * lax.rsqrt(var + EPSILON), bias), mean, var


@jax.custom_vjp
def _moments(x: Array) -> tuple[Array, Array]:
    """Each channel's mean and variance, in float32, from one pass over x.

    The variance is `E[(x - c)^2] - E[x - c]^2` with c a pixel of the first image. Without c, rounding would destroy the
    variance if the mean is a thousand times the spread; with c the mean, x would be read twice.
    """
    middle = x[tuple(slice(size // 2, size // 2 + 1) for size in (0, *x.shape[1:-1]))].astype(jnp.float32)
    x = x.astype(jnp.float32)
    from_middle = x - middle
    mean, square = _sum(from_middle) / _count(x), _sum(from_middle**2) / _count(x)
    return mean + middle.reshape(-1), jnp.maximum(square - mean**2, 0.0)


def _moments_forward(x: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    mean, var = _moments(x)
    return (mean, var), (x, mean)


def _moments_backward(residuals: tuple[Array, Array], gradients: tuple[Array, Array]) -> tuple[Array]:
    x, centre = residuals
    mean, var, centre = (_as_channels(value, x) for value in (*gradients, centre))
    return (((mean + 2 * var * (x - centre)) / _count(x)).astype(x.dtype),)


_moments.defvjp(_moments_forward, _moments_backward)


def _affine(x: Array, mean: Array, scale: Array, bias: Array) -> Array:
    """`(x - mean) * scale + bias`, in float32."""
    mean, scale, bias = (_as_channels(value, x) for value in (mean, scale, bias))
    return (x - mean) * scale + bias


_normalize = jax.custom_vjp(_affine)
"""The same for training; its gradient with respect to the scale sums deviations from the mean."""


def _normalize_backward(residuals: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, Array, Array, Array]:
    x, mean, scale = residuals
    total, centred = _sum(gradient), x - _as_channels(mean, x)
    return (gradient * _as_channels(scale, x)).astype(x.dtype), -scale * total, _sum(gradient * centred), total


_normalize.defvjp(lambda x, mean, scale, bias: (_affine(x, mean, scale, bias), (x, mean, scale)), _normalize_backward)


def _sum(x: Array) -> Array:
    """The sum over all axes except the last."""
    return jnp.sum(x, tuple(range(x.ndim - 1)))


def _as_channels(values: Array, x: Array) -> Array:
    return values.reshape((1,) * (x.ndim - 1) + (-1,))


def _count(x: Array) -> int:
    return x.size // x.shape[-1]
