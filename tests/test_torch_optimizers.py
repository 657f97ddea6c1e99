"""Optimizers and schedules step by step beside PyTorch's, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from piat_jax.training import build_optimizer, build_rate

torch = pytest.importorskip("torch")

STEPS, EPOCHS = 10, 10
RNG = np.random.default_rng(0)
WEIGHTS = {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)}
GRADIENTS = [{name: RNG.normal(size=w.shape) for name, w in WEIGHTS.items()} for _ in range(STEPS * EPOCHS)]


@pytest.fixture(autouse=True)
def _in_float64():
    with jax.enable_x64(True):
        yield


def ours(name, rate, fields=None, **options):
    optimizer = build_optimizer(name, rate, fields or {}, **options)
    weights, path = jax.tree.map(jnp.asarray, WEIGHTS), []
    state = optimizer.init(weights)

    @jax.jit
    def step(weights, state, gradient):
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state

    for gradient in GRADIENTS:
        weights, state = step(weights, state, gradient)
        path.append(weights)
    return path


def theirs(make, schedule=None, every=1, max_norm=0.0, matrices=False, weight_decay=0.0):
    """`make(parameters or groups)` and `schedule(optimizer)` of PyTorch."""
    tensors = {name: torch.nn.Parameter(torch.tensor(w)) for name, w in WEIGHTS.items()}
    kernel, bias = ({"params": [tensors[name]], "weight_decay": weight_decay} for name in ("kernel", "bias"))
    optimizer = make([kernel, {**bias, "weight_decay": 0.0} if matrices else bias])
    scheduler, path = schedule(optimizer) if schedule else None, []
    for number, gradient in enumerate(GRADIENTS, 1):
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradient[name])
        if max_norm:
            torch.nn.utils.clip_grad_norm_(list(tensors.values()), max_norm)
        optimizer.step()
        if scheduler and number % every == 0:
            scheduler.step()
        path.append({name: tensor.detach().numpy().copy() for name, tensor in tensors.items()})
    return path


def compare(path, reference, tolerance=1e-9):
    for mine, other in zip(path, reference, strict=True):
        for name in WEIGHTS:
            np.testing.assert_allclose(mine[name], other[name], rtol=tolerance, atol=tolerance)
    assert np.abs(path[-1]["kernel"] - WEIGHTS["kernel"]).max() > 0.01


def rate(name, **fields):
    return build_rate(name, fields, epochs=EPOCHS, steps_per_epoch=STEPS)


def test_nesterov_with_clipping_and_coupled_decay():
    path = ours("sgd", 0.05, {"momentum": 0.9, "nesterov": True}, weight_decay=0.01, max_norm=1.0)
    sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True)
    # PyTorch clips to the norm over the norm plus 1e-6.
    compare(path, theirs(sgd, max_norm=1.0, weight_decay=0.01), tolerance=1e-6)


@pytest.mark.parametrize("anneal", ["cosine", "linear"])
@pytest.mark.parametrize("every", ["step", "epoch"])
def test_one_cycle_of_rate_and_momentum(anneal, every):
    moving = rate("one_cycle", lr=0.2, lr_peak=0.25, lr_unit="shares", lr_anneal=anneal, lr_every=every)
    path = ours("sgd", moving, {"nesterov": True}, weight_decay=5e-4, weight_decay_on="matrices")
    steps = 1 if every == "step" else STEPS
    one_cycle = functools.partial(
        torch.optim.lr_scheduler.OneCycleLR,
        max_lr=0.2,
        total_steps=STEPS * EPOCHS // steps,
        pct_start=0.25,
        anneal_strategy=anneal.replace("cosine", "cos"),
    )
    sgd = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True)
    compare(path, theirs(sgd, one_cycle, every=steps, matrices=True, weight_decay=5e-4))


def test_one_cycle_moves_the_first_moment_of_adam():
    path = ours("adamw", rate("one_cycle", lr=0.05, lr_peak=3.0, lr_every="step"), weight_decay=0.1)
    one_cycle = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.05, total_steps=STEPS * EPOCHS)
    compare(path, theirs(functools.partial(torch.optim.AdamW, lr=0.1), one_cycle, weight_decay=0.1))


def test_adamw_on_matrices_under_a_cosine_with_warmup():
    moving = rate("cosine", lr=0.02, lr_final=0.001, lr_warmup=2.0, lr_every="step")
    path = ours("adamw", moving, {"b2": 0.95}, weight_decay=0.3, weight_decay_on="matrices")
    warmup = 2 * STEPS

    def schedule(optimizer):
        rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS * EPOCHS - warmup, 0.001)
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], [warmup])

    adamw = functools.partial(torch.optim.AdamW, lr=0.02, betas=(0.9, 0.95))
    compare(path, theirs(adamw, schedule, matrices=True, weight_decay=0.3))


def test_drops_per_epoch():
    moving = rate("step", lr=0.1, lr_drops=(5.0, 8.0))
    path = ours("adam", moving, weight_decay=0.01)  # coupled, as PyTorch's Adam has it
    drops = functools.partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[5, 8])
    drops_at = functools.partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[5, 7])
    adam = functools.partial(torch.optim.Adam, lr=0.1)
    with pytest.raises(AssertionError):
        compare(path, theirs(adam, drops_at, every=STEPS, weight_decay=0.01))
    compare(path, theirs(adam, drops, every=STEPS, weight_decay=0.01))


def test_the_triangle_of_fast_training():
    moving = rate("triangular", lr=0.2, lr_peak=5.0, lr_every="step")
    path = ours("sgd", moving, weight_decay=5e-4)
    half = STEPS * EPOCHS / 2
    cyclic = functools.partial(
        torch.optim.lr_scheduler.CyclicLR,
        base_lr=0.0,
        max_lr=0.2,
        step_size_up=half,
        step_size_down=half,
    )
    compare(path, theirs(functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9), cyclic, weight_decay=5e-4))
