"""PyTorch's side of the benchmark, as strong as a user would make it.

Everywhere: channels_last, frozen weights while attacking, fused SGD, nothing waits within a round. On a CPU oneDNN with
all cores; on a GPU cuDNN's own search, torch.compile, and each step or evaluated batch a single CUDA graph.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from experiments.autoattack import torch_attacks
from experiments.autoattack.torch_model import ResNet, WideResNet
from experiments.throughput.torch_train import as_cuda_graph, correct_under_pgd, make_logits_fn, sgd, train_step
from piat_jax.benchmark import ours
from piat_jax.benchmark.interleaved import Case, Work
from piat_jax.core.cores import count_cores

ATTACK = {"eps": ours.EPS, "step_size": ours.STEP_SIZE}


def prepare(case: Case) -> Work:
    """A case as a user of PyTorch runs it."""
    torch.manual_seed(0)
    torch.set_num_threads(count_cores())
    torch.backends.cudnn.benchmark = True
    # As ours: training may round float32 products to TF32, what judges robustness may not.
    exact = case.what not in ("train", "matmul")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not exact
    run, units = {"train": _train, "evaluate": _evaluate, "matmul": _matmul}.get(case.what, _attack)(case)
    return Work(run, units, _device_memory, {"versions": {"torch": torch.__version__}})


def _train(case: Case) -> tuple[Callable[[int], None], float]:
    module, logits_fn = _network(case)
    optimizer = sgd(module, learning_rate=ours.LEARNING_RATE, momentum=ours.MOMENTUM, weight_decay=ours.WEIGHT_DECAY)
    images, labels = _data(case, 4)
    step = functools.partial(train_step, module, logits_fn, optimizer, mu=ours.MU, steps=case.steps, **ATTACK)
    step = _recorded(step, case, images, labels)

    def run(times: int) -> None:
        order = torch.randperm(len(labels), device=labels.device).split(case.batch)
        loss = torch.zeros(())
        for number in range(times):
            rows = order[number % len(order)]
            x = _pixels(images[rows])
            _, loss = step(x, _start(x), labels[rows])
        if not loss.isfinite():  # waits for the device
            raise RuntimeError("the loss is not finite")

    return run, case.batch


def _evaluate(case: Case) -> tuple[Callable[[int], None], float]:
    module, logits_fn = _network(case)
    images, labels = _data(case, ours.evaluated_batches(not torch.cuda.is_available()))
    correct = functools.partial(correct_under_pgd, module, logits_fn, steps=case.steps, **ATTACK)
    correct = _recorded(correct, case, images, labels)

    def run(times: int) -> None:
        for _ in range(times):
            found = torch.empty_like(labels, dtype=torch.bool)
            for x, y, place in zip(*(tensor.split(case.batch) for tensor in (images, labels, found))):
                x = _pixels(x)
                place.copy_(correct(x, _start(x), y))
            found.cpu()

    return run, len(labels)


def _attack(case: Case) -> tuple[Callable[[int], None], float]:
    module, logits_fn = _network(case)
    module.eval().requires_grad_(False)
    images, _ = _data(case, 1)
    x = _pixels(images)
    with torch.no_grad():
        ranked = logits_fn(x).argsort(1)
    y, target = ranked[:, -1], ranked[:, -2]
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"eps": ours.UNREACHED, "norm": "linf"}
    attack = {
        "apgd-ce": functools.partial(torch_attacks.apgd, loss="ce", steps=case.steps, generator=generator),
        "apgd-t": functools.partial(
            torch_attacks.apgd, loss="targeted", target=target, steps=case.steps, generator=generator
        ),
        "fab-t": functools.partial(torch_attacks.fab_target, target=target, steps=case.steps),
        "square": functools.partial(torch_attacks.square, queries=case.steps, generator=generator),
    }[case.what]

    def run(times: int) -> None:
        for _ in range(times):
            outcome = attack(logits_fn, x, y, **options)
            if outcome.fooled.any():  # waits for the device
                raise RuntimeError(f"rows of {case.what} were fooled within a radius of {ours.UNREACHED}")

    return run, case.batch


def _matmul(case: Case) -> tuple[Callable[[int], None], float]:
    size = ours.matrix_size(not torch.cuda.is_available())
    left, right = torch.randn(2, size, size, device=_device(), dtype=getattr(torch, case.dtype))

    def run(times: int) -> None:
        result = left
        for _ in range(times):
            result = left @ right
        result[0, 0].item()  # waits for the device

    return run, 2.0 * size**3


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _network(case: Case) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """The module, and its logits; compiled on a GPU."""
    network = ours.NETWORKS[case.model]
    module = {"wrn_32_10": WideResNet}.get(network.name, ResNet)(
        ours.CLASSES, channels=network.image_shape[-1], channels_last=True, **network.options
    )
    module = module.to(_device())
    return module, make_logits_fn(module, getattr(torch, case.dtype), compiled=torch.cuda.is_available())


def _data(case: Case, batches: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The images of our side, `[N, C, H, W]` uint8, and labels, on the device."""
    images, labels = ours.draw_data(case, batches)
    pixels = torch.tensor(images, device=_device()).permute(0, 3, 1, 2)
    return pixels, torch.tensor(labels, device=_device(), dtype=torch.int64)


def _pixels(images: torch.Tensor) -> torch.Tensor:
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)


def _start(x: torch.Tensor) -> torch.Tensor:
    """Uniform in the ball, clipped to the box."""
    return torch.empty_like(x).uniform_(-ours.EPS, ours.EPS).add_(x).clamp_(0, 1)


def _recorded(fn: Callable[..., Any], case: Case, images: torch.Tensor, labels: torch.Tensor) -> Callable[..., Any]:
    """`fn(images, start, labels)` of a batch as one CUDA graph, recorded at the first call; on a CPU itself."""
    if not torch.cuda.is_available():
        return fn

    @functools.cache
    def graph() -> Callable[..., Any]:
        x = _pixels(images[: case.batch])
        return as_cuda_graph(fn, x, _start(x), labels[: case.batch])

    return lambda *arguments: graph()(*arguments)


def _device_memory() -> int | None:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
