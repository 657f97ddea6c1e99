"""PGD training with NMSE and evaluation under PGD, as a PyTorch user would write them for speed.

What `piat_jax.objectives.NMSE` and `piat_jax.attacks.pgd` compute, up to rounding; tests/test_throughput.py compares a
step. The start of PGD comes from outside, so that both can begin at the same point.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

LogitsFn = Callable[[torch.Tensor], torch.Tensor]


def make_logits_fn(module: nn.Module, dtype: torch.dtype, *, compiled: bool) -> LogitsFn:
    """Images `[B, C, H, W]` to logits `[B, K]` float32, in whatever mode the module is when it is called.

    Args:
      module: images to logits, on its device.
      dtype: of activations; below float32 by autocast, weights staying float32.
      compiled: whether by torch.compile, one graph for each mode.
    """
    forward = torch.compile(module, dynamic=False) if compiled else module
    device = next(module.parameters()).device.type

    def logits(images: torch.Tensor) -> torch.Tensor:
        narrow = dtype != torch.float32
        with torch.autocast(device, dtype) if narrow else contextlib.nullcontext():
            return forward(images).float()

    return logits


def pgd(
    logits_fn: LogitsFn,
    images: torch.Tensor,
    start: torch.Tensor,
    labels: torch.Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
) -> torch.Tensor:
    """L-inf PGD on cross-entropy: the last iterate, `[B, C, H, W]`.

    Args:
      logits_fn: of a frozen network: parameters that ask for a gradient would cost memory, and compiled also time.
      images: `[B, C, H, W]` in [0, 1].
      start: where to begin, of the same shape, in ball and box.
      labels: `[B]`.
      eps: radius in pixel units.
      step_size: in the same unit.
      steps: gradient steps.
    """
    low, high = (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)
    x = start
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits_fn(x), labels, reduction="sum"), x)
        x = x.detach().add(gradient.sign_(), alpha=step_size).clamp_(low, high)
    return x


def nmse_loss(clean: torch.Tensor, adversarial: torch.Tensor, labels: torch.Tensor, mu: float) -> torch.Tensor:
    """`mean_i [ CE(z'_i, y_i) + mu (1 - p_y(x_i)) | z_i/|z_i| - z'_i/|z'_i| |^2 ]` of logits `[B, K]`.

    Nothing is detached. Source: PIAT paper, Eq. 11 and 12.
    """
    weight = 1 - clean.softmax(1).gather(1, labels[:, None]).squeeze(1)
    nmse = weight * (_unit(clean) - _unit(adversarial)).square().sum(1)
    return F.cross_entropy(adversarial, labels) + mu * nmse.mean()


def _unit(z: torch.Tensor) -> torch.Tensor:
    return z * (z.square().sum(1, keepdim=True) + 1e-12).rsqrt()


def train_step(
    module: nn.Module,
    logits_fn: LogitsFn,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    start: torch.Tensor,
    labels: torch.Tensor,
    *,
    mu: float,
    **attack: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PGD with BatchNorm in evaluation mode, then one step on the loss in training mode, clean images first.

    Args:
      module: the network that is trained.
      logits_fn: its `make_logits_fn`.
      optimizer: of its parameters.
      images: `[B, C, H, W]` in [0, 1].
      start: of PGD.
      labels: `[B]`.
      mu: weight of NMSE.
      **attack: eps, step_size and steps of `pgd`.

    Returns:
      The adversarial images and the loss, both detached. Nothing waits for the device.
    """
    module.eval().requires_grad_(False)
    adversarial = pgd(logits_fn, images, start, labels, **attack)
    module.train().requires_grad_(True)
    loss = nmse_loss(logits_fn(images), logits_fn(adversarial), labels, mu)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return adversarial, loss.detach()


def correct_under_pgd(
    module: nn.Module,
    logits_fn: LogitsFn,
    images: torch.Tensor,
    start: torch.Tensor,
    labels: torch.Tensor,
    **attack: Any,
) -> torch.Tensor:
    """`[B]` bool, which images are still classified correctly under `pgd`; arguments as in `train_step`."""
    module.eval().requires_grad_(False)
    adversarial = pgd(logits_fn, images, start, labels, **attack)
    with torch.no_grad():
        return logits_fn(adversarial).argmax(1) == labels


def sgd(module: nn.Module, *, learning_rate: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """SGD with coupled weight decay on every parameter, in one kernel for all of them."""
    return torch.optim.SGD(
        module.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay, fused=True
    )


def as_cuda_graph(fn: Callable[..., Any], *examples: torch.Tensor) -> Callable[..., Any]:
    """`fn` recorded once and replayed in a single launch, on tensors of the shapes of `examples`.

    What it returns is overwritten by the next call. Warming up runs `fn` on the examples three times, and what it
    changes (weights, statistics) stays changed.
    """
    inputs = [example.clone() for example in examples]
    # As PyTorch's notes on CUDA graphs have it: warm up on another stream, so that what is lazy is done by then.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            fn(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = fn(*inputs)

    def replay(*arguments: torch.Tensor, keeps: Any = fn) -> Any:
        del keeps  # A graph reads the memory of the weights, but does not keep them; without `fn` it would be freed.
        for kept, argument in zip(inputs, arguments):
            kept.copy_(argument)
        graph.replay()
        return outputs

    return replay
