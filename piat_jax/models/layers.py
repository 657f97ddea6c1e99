"""Code that all networks share: PyTorch's initialisation, and the wrapper around Flax modules."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError
from piat_jax.core.rng import example_keys, flat_draw
from piat_jax.core.types import Array, PyTree, Variables
from piat_jax.models.batch_norm import MOMENTUM, batch_norm_training
from piat_jax.models.stochastic_depth import IMAGE_KEYS


def torch_uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """PyTorch's default for Conv2d and Linear: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), with a third of Flax's variance."""
    bound = 1 / math.sqrt(math.prod(shape[:-1]))
    return flat_draw(jax.random.uniform, key, shape, dtype, minval=-bound, maxval=bound)


def torch_bias(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for the bias of a layer with `fan_in` inputs per output: U(-1/sqrt(fan_in), ...)."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def small_normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """N(0, 0.02^2). The originals truncate it at +-2, which is a hundred standard deviations."""
    return 0.02 * flat_draw(jax.random.normal, key, shape, dtype)


def he_fan_out(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """He initialisation on fan-out, N(0, 2 / (k^2 C_out)), as in the WideResNet codes' convolutions."""
    fan_out = math.prod(shape) // shape[-2]
    return math.sqrt(2 / fan_out) * flat_draw(jax.random.normal, key, shape, dtype)


class Conv(nn.Module):
    """A square convolution with PyTorch's symmetric padding; a bias is initialised as in PyTorch.

    With `depthwise`, each output channel sees one input channel, and there are equally many of both.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    pads: tuple[int, int] | None = None  # before and after, on both axes, in place of the symmetric ones
    kernel_init: nn.initializers.Initializer = torch_uniform
    bias: bool = False
    zero_bias: bool = False
    depthwise: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # Symmetric padding, not "SAME": with stride 2 they differ by one pixel.
        pads = self.pads or (self.kernel // 2, self.kernel // 2)
        groups = x.shape[-1] if self.depthwise else 1
        return nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            strides=(self.stride, self.stride),
            padding=(pads, pads),
            feature_group_count=groups,
            use_bias=self.bias,
            kernel_init=self.kernel_init,
            bias_init=nn.initializers.zeros if self.zero_bias else torch_bias(self.kernel**2 * x.shape[-1] // groups),
            dtype=self.dtype,
            name="conv",
        )(x)


class Linear(nn.Module):
    """A dense layer initialised as in PyTorch; `zero_bias` as in the WideResNet codes."""

    features: int
    zero_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(
            self.features,
            kernel_init=torch_uniform,
            bias_init=nn.initializers.zeros if self.zero_bias else torch_bias(x.shape[-1]),
            dtype=self.dtype,
            name="dense",
        )(x)


def layer_norm(dtype: Any, name: str, epsilon: float = 1e-6) -> nn.LayerNorm:
    """LayerNorm with float32 statistics, and the variance as the mean of squared deviations, as in PyTorch."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


def layer_scale(module: nn.Module, name: str, value: float, x: Array) -> Array:
    """`x` times a learned factor for each channel, initialised to `value`."""
    gamma = module.param(name, nn.initializers.constant(value), x.shape[-1:], jnp.float32)
    return x * gamma.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def normalize(images: Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any) -> Array:
    """`(images - mean) / std` per channel, so that attacks stay in [0, 1]; empty tuples change nothing."""
    if mean:
        channels = images.shape[-1]
        if len(mean) != channels:
            raise InputError(
                f"mean has {len(mean)} entries, but the images have {channels} channel(s); give one for each"
            )
        shift, scale = (jnp.asarray(values, images.dtype).reshape(1, 1, 1, -1) for values in (mean, std))
        images = (images - shift) / scale
    return images.astype(dtype)


def remat_block(block: type[nn.Module]) -> Callable[..., nn.Module]:
    """`block`, called as `block(x, train)`, but keeping only its input for the backward pass; names do not change."""
    return nn.remat(block, static_argnums=(2,))  # 0 is the module itself


@dataclasses.dataclass(frozen=True)
class LinenModel:
    """A Flax Linen module as a pair of pure functions over plain dicts; equal modules are equal models.

    The module is called as `module(images, train=...)`. Its `params` collection becomes the weights, and all other
    collections the model state. A module that draws random numbers in training, such as with `nn.Dropout`, must declare
    `draws = True`.

    Attributes:
      module: a Flax Linen module.
      bn_groups: number of groups of the batch with their own BatchNorm statistics in training (`BatchNorm`).
      bn_momentum: share of a batch in BatchNorm's running statistics at each update, in (0, 1].
    """

    module: nn.Module
    bn_groups: int = 1
    bn_momentum: float = MOMENTUM

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            raise InputError(f"module={self.module!r} is not a Flax Linen module; give an instance, such as Net()")
        taken = inspect.signature(type(self.module).__call__).parameters.values()
        if not any(p.name == "train" or p.kind is p.VAR_KEYWORD for p in taken):
            name = type(self.module).__name__
            raise InputError(
                f"{name} takes no argument 'train'; give it __call__(self, images, *, train), True in training"
            )

    @property
    def attention_blocks(self) -> int:
        """The number of attention branches that read a gate from the model state (core/forward.py); may be 0."""
        return getattr(self.module, "attention_blocks", 0)

    @property
    def blocks_per_part(self) -> int:
        """The number of consecutive blocks of a stage with one learning rate (training/layer_scales.py)."""
        return getattr(self.module, "blocks_per_part", 1)

    @property
    def draws(self) -> bool:
        """Whether a forward in training mode draws random numbers and so needs a key (core/forward.py)."""
        return bool(getattr(self.module, "draws", False) or getattr(self.module, "drop_path", 0))

    def init(self, key: Array, images: Array) -> Variables:
        """Initial weights and state for images of this shape `[B, H, W, C]`."""
        variables = dict(_init(self.module, key, images))
        return Variables(variables.pop("params", {}), variables)

    def apply(
        self, params: PyTree, model_state: Mapping[str, PyTree], images: Array, *, train: bool, key: Array | None = None
    ) -> tuple[Array, PyTree]:
        """Logits `[B, K]` in float32 and the new state.

        `key` is one key, or one per image `[B]`. Stochastic depth draws from each image's key, and is off without a
        key. Flax's dropout draws for the whole batch, from the first key.
        """
        variables = {"params": params, **model_state}
        of_images = key is not None and key.ndim and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        rngs = None if key is None else {"dropout": key[0] if of_images else key}
        if not train:
            return self.module.apply(variables, images, train=False, rngs=rngs).astype(jnp.float32), model_state  # type: ignore[union-attr]
        if key is not None and getattr(self.module, "drop_path", 0):
            keys = key if of_images else example_keys(key, jnp.arange(len(images)))
            variables[IMAGE_KEYS] = {"keys": keys}
        with batch_norm_training(self.bn_groups, self.bn_momentum):
            logits, updated = self.module.apply(variables, images, train=True, rngs=rngs, mutable=list(model_state))
        return logits.astype(jnp.float32), updated


@functools.partial(jax.jit, static_argnums=0)
def _init(module: nn.Module, key: Array, images: Array) -> Mapping[str, PyTree]:
    # One compiled program: eager execution compiles one program per layer, which takes ten times as long.
    return module.init(key, images, train=False)


def check_normalization(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raise InputError unless mean and std are both empty or equally long, with positive std."""
    if len(mean) != len(std) or not all(s > 0 for s in std):
        raise InputError(f"mean={mean} and std={std} must have one entry per channel each, with std > 0, or both be ()")
