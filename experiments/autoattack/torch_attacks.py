"""AutoAttack, standard version in Linf and L2, as a PyTorch user would write the published one.

APGD on cross-entropy, APGD and FAB on nine targets, and Square, one after the other on what is still robust. As
published, entire batches take all steps of APGD and FAB, and Square continues with the rest of a batch. All draws are
those of a CPU generator, so that a seed means the same on every device.

Source: Croce & Hein (2020), arXiv:2003.01690; FAB: Croce & Hein (2020), arXiv:1907.02044; Square: Andriushchenko et al.
(2020), arXiv:1912.00049. Where the published code differs from the papers, it is followed.
"""

import bisect
import functools
import time
from collections.abc import Callable
from types import EllipsisType
from typing import NamedTuple

import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

Model = nn.Module | Callable[[torch.Tensor], torch.Tensor]

NOT_FOUND = 1e10
"""The distance of a boundary that FAB has not crossed."""

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""The iterations of Square after which the share of the pixels that change is halved."""


class Outcome(NamedTuple):
    """One attack's result on a batch."""

    images: torch.Tensor  # [B, C, H, W], the clean image where it is not fooled
    fooled: torch.Tensor  # [B] bool
    value: torch.Tensor  # [B], APGD: the highest loss; FAB: the least distance; Square: the least margin


class Result(NamedTuple):
    """AutoAttack's result on N images."""

    clean: torch.Tensor  # [N] bool, whether classified correctly without an attack
    robust: torch.Tensor  # [N] bool, whether classified correctly under all of them
    broken_by: list[str | None]  # the attack that fooled it; None if none did, or none had to
    images: torch.Tensor  # [N, C, H, W], adversarial where an attack fooled the model, else clean
    seconds: dict[str, float]  # of each attack
    accuracy: dict[str, float]  # after each attack, of all N, under those so far


@torch.no_grad()
def autoattack(
    model: Model,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    eps: float,
    norm: str = "linf",
    batch_size: int = 250,
    steps: int = 100,
    queries: int = 5000,
    targets: int = 9,
    seed: int = 0,
) -> Result:
    """AutoAttack: what one attack leaves robust goes to the next, in batches, always from the clean images.

    Args:
      model: images to logits `[B, K]`, in eval mode. Parameters that ask for no gradient save it memory.
      images: `[N, C, H, W]` floats in [0, 1], on the device of the model.
      labels: `[N]` integers.
      eps: radius in pixel units.
      norm: "linf" or "l2".
      batch_size: the last batch of an attack may be smaller.
      steps: of every run of APGD and FAB.
      queries: windows that Square tries.
      targets: classes that APGD-T and FAB-T aim at, no more than there are.
      seed: every attack starts from it again for every batch, as published; noise depends on the place in the batch.

    Returns:
      A Result. An attack that had nothing left to attack is missing from its dictionaries.
    """
    robust = torch.cat([model(x).argmax(1) for x in images.split(batch_size)]) == labels
    clean, adversarial = robust.clone(), images.clone()
    broken_by: list[str | None] = [None] * len(labels)
    seconds, accuracy = {}, {}
    for name, attack in _attacks(model, eps, norm, steps, queries, targets).items():
        left = robust.nonzero().squeeze(1)
        if not len(left):
            break
        start = time.perf_counter()
        for rows in left.split(batch_size):
            x, y = images[rows], labels[rows]
            attacked = attack(x, y, torch.Generator().manual_seed(seed))
            # A separate forward decides, not the attack's bookkeeping.
            fell = model(attacked).argmax(1) != y
            rows = rows[fell]
            robust[rows], adversarial[rows] = False, attacked[fell]
            for row in rows.tolist():
                broken_by[row] = name
        accuracy[name] = robust.float().mean().item()
        seconds[name] = time.perf_counter() - start
    return Result(clean, robust, broken_by, adversarial, seconds, accuracy)


def _attacks(
    model: Model, eps: float, norm: str, steps: int, queries: int, targets: int
) -> dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]]:
    """The four attacks in their order, functions of images, labels and a generator to adversarial images."""

    def apgd_ce(x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return apgd(model, x, y, eps=eps, norm=norm, loss="ce", steps=steps, generator=generator).images

    def apgd_t(x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        attack = functools.partial(apgd, model, eps=eps, norm=norm, loss="targeted", steps=steps, generator=generator)
        return _one_target_after_the_other(model, attack, x, y, targets)

    def fab_t(x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        del generator  # the first run of FAB starts at the image, and there is no other
        attack = functools.partial(fab_target, model, eps=eps, norm=norm, steps=steps)
        return _one_target_after_the_other(model, attack, x, y, targets)

    def square_(x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return square(model, x, y, eps=eps, norm=norm, queries=queries, generator=generator).images

    return {"apgd-ce": apgd_ce, "apgd-t": apgd_t, "fab-t": fab_t, "square": square_}


def _one_target_after_the_other(
    model: Model, attack: Callable[..., Outcome], x: torch.Tensor, y: torch.Tensor, targets: int
) -> torch.Tensor:
    """Adversarial images of an attack that aims at the class of the second highest clean logit, the third, ..."""
    logits = model(x)
    ranked = logits.topk(min(targets + 1, logits.shape[1])).indices
    images, rows = x.clone(), torch.arange(len(x), device=x.device)
    for target in ranked.T[1:]:
        outcome = attack(x[rows], y[rows], target=target[rows])
        images[rows] = outcome.images
        rows = rows[~outcome.fooled]
        if not len(rows):
            break
    return images


@torch.no_grad()
def apgd(
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    norm: str,
    loss: str,
    target: torch.Tensor | None = None,
    steps: int = 100,
    start: str = "random",
    generator: torch.Generator | None = None,
) -> Outcome:
    """One run of Auto-PGD: gradient steps with momentum, halved where they stall, on the whole batch to the end.

    Args:
      model: images to logits `[B, K]`, in eval mode.
      x: clean images `[B, C, H, W]` in [0, 1].
      y: labels `[B]`.
      eps: radius in pixel units.
      norm: "linf" or "l2".
      loss: "ce", cross-entropy, or "targeted", the DLR loss of `target`.
      target: classes `[B]` to aim at; any wrong class counts as success.
      steps: iterations, one forward and one backward each.
      start: "random", on the surface of the ball, or "none", at the image.
      generator: of the random start, on the CPU.

    Returns:
      An Outcome with the last misclassified point of the run, and the highest loss met, misclassified or not.

    Source: Croce & Hein (2020), arXiv:2003.01690, Algorithm 1.
    """
    ball = _Ball(x, eps, norm)

    def objective(logits: torch.Tensor) -> torch.Tensor:
        if loss == "ce":
            return F.cross_entropy(logits, y, reduction="none")
        assert target is not None, "loss='targeted' needs a target"
        return _targeted(logits, y, target)

    def evaluate(point: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        value, gradient, logits = _ascend(model, point, objective)
        return value, gradient, logits.argmax(1) != y

    point = previous = ball.random_point(generator) if start == "random" else x
    value, gradient, fooled = evaluate(point)
    best_point, best_gradient, best_value = point, gradient, value
    adversarial = torch.where(_wide(fooled), point, x)
    step = torch.full_like(value, 2 * eps)
    # The published history begins with a 0 in the place of the first loss, and the start counts as a halving.
    last_value, check_value = torch.zeros_like(value), value
    gains, halved = torch.zeros_like(value), torch.ones_like(fooled)
    windows = _windows(steps)
    for number in range(1, steps + 1):
        share = 1.0 if number == 1 else 0.75
        ahead = ball.project(ball.ascent(gradient).mul_(_wide(step)).add_(point))
        momentum = (point - previous).mul_(1 - share)
        previous, point = point, ball.project(ahead.sub_(point).mul_(share).add_(point).add_(momentum))

        value, gradient, wrong = evaluate(point)
        fooled |= wrong
        adversarial = torch.where(_wide(wrong), point, adversarial)
        gains += value > last_value
        last_value = value
        higher = value > best_value
        best_value = torch.where(higher, value, best_value)
        best_point = torch.where(_wide(higher), point, best_point)
        best_gradient = torch.where(_wide(higher), gradient, best_gradient)

        if number in windows:
            stands_still = ~halved & (check_value >= best_value)
            halved = (gains <= 0.75 * windows[number]) | stands_still
            step = torch.where(halved, step / 2, step)
            point = torch.where(_wide(halved), best_point, point)
            gradient = torch.where(_wide(halved), best_gradient, gradient)
            check_value = best_value
            gains.zero_()
    return Outcome(adversarial, fooled, best_value)


def _windows(steps: int) -> dict[int, int]:
    """The iterations after which APGD looks back, and how many it looks back at."""
    window, least, decrease = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    windows, done = {}, window
    while done <= steps:
        windows[done] = window
        window = max(window - decrease, least)
        done += window
    return windows


class _Ball:
    """The points within `eps` of `x` and in the box."""

    def __init__(self, x: torch.Tensor, eps: float, norm: str):
        self.x, self.eps, self.norm = x, eps, norm
        if norm == "linf":
            self.low, self.high = (x - eps).clamp_(min=0), (x + eps).clamp_(max=1)

    def project(self, points: torch.Tensor) -> torch.Tensor:
        """Onto the ball first, the box last; in place."""
        if self.norm == "linf":
            return points.clamp_(self.low, self.high)
        delta = points.sub_(self.x)
        length = _length(delta, "l2")
        return delta.mul_(_wide(length.clamp(max=self.eps) / (length + 1e-12))).add_(self.x).clamp_(0, 1)

    def ascent(self, gradient: torch.Tensor) -> torch.Tensor:
        """The steepest direction of length 1."""
        return gradient.sign() if self.norm == "linf" else gradient / _wide(_length(gradient, "l2") + 1e-12)

    def random_point(self, generator: torch.Generator | None) -> torch.Tensor:
        """A point at distance `eps`, clipped to the box; under "linf" it is noise whose largest entry is scaled."""
        if self.norm == "linf":
            noise = torch.rand(self.x.shape, generator=generator).mul_(2).sub_(1)
        else:
            noise = torch.randn(self.x.shape, generator=generator)
        noise = noise.to(self.x.device)
        return noise.mul_(_wide(self.eps / (_length(noise, self.norm) + 1e-12))).add_(self.x).clamp_(0, 1)


def _targeted(logits: torch.Tensor, y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The targeted DLR loss `[B]`; below four classes, which it needs, the difference of the logits."""
    gap = _gap(logits, y, target)
    if logits.shape[1] <= 3:
        return gap
    top = logits.topk(4).values
    return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def _gap(logits: torch.Tensor, y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """`z_target - z_y`, `[B]`."""
    pairs = logits.gather(1, torch.stack([target, y], dim=1))
    return pairs[:, 0] - pairs[:, 1]


@torch.no_grad()
def fab_target(
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    target: torch.Tensor,
    *,
    eps: float,
    norm: str,
    steps: int = 100,
) -> Outcome:
    """One run of FAB: from the image over the linearised boundary of one target, back and over again, ever nearer.

    Args:
      model: images to logits `[B, K]`, in eval mode.
      x: clean images `[B, C, H, W]` in [0, 1].
      y: labels `[B]`.
      target: classes `[B]` to aim at; any wrong class counts as success.
      eps: radius in pixel units, which decides on success only.
      norm: "linf" or "l2".
      steps: iterations, two forwards and one backward each.

    Returns:
      An Outcome with the nearest misclassified point, where it is in the ball, and its distance wherever it is.

    Source: Croce & Hein (2020), arXiv:1907.02044, Algorithm 1, without its final search.
    """
    shape = x.shape
    point = clean = x.flatten(1)
    nearest, distance = clean, torch.full_like(clean[:, 0], NOT_FOUND)
    for _ in range(steps):
        gap, normal, _ = _ascend(model, point.view(shape), lambda z: _gap(z, y, target))
        normal = normal.flatten(1)
        # The way to the same hyperplane from both points, in one call.
        needed = torch.stack([-gap, -gap - torch.linalg.vecdot(normal, clean - point)])
        way = step_to_hyperplane(torch.stack([point, clean]), normal, needed, norm)
        lengths = _length(way.flatten(0, 1), norm).view(2, -1).clamp_(min=1e-8)
        alpha = (lengths[0] / lengths.sum(0)).clamp_(0, 0.1).unsqueeze(1)
        ahead, ahead_of_clean = way.mul_(1.05)
        ahead.add_(point).mul_(1 - alpha)
        point = ahead_of_clean.add_(clean).mul_(alpha).add_(ahead).clamp_(0, 1)

        wrong = model(point.view(shape)).argmax(1) != y
        delta = point - clean
        away = _length(delta, norm)
        nearer = wrong & (away < distance)
        distance = torch.where(nearer, away, distance)
        nearest = torch.where(nearer.unsqueeze(1), point, nearest)
        point = torch.where(wrong.unsqueeze(1), delta.mul_(0.9).add_(clean), point)
    fooled = (distance <= eps) & (model(nearest.view(shape)).argmax(1) != y)
    return Outcome(torch.where(_wide(fooled), nearest.view(shape), x), fooled, distance)


def step_to_hyperplane(points: torch.Tensor, normals: torch.Tensor, needed: torch.Tensor, norm: str) -> torch.Tensor:
    """`argmin |d|  subject to  <w, d> = needed  and  0 <= t + d <= 1`, for every row.

    Args:
      points: `t`, `[..., N, D]` in [0, 1].
      normals: `w`, `[N, D]`.
      needed: `[..., N]`.
      norm: "linf" or "l2".

    Returns:
      `d`, `[..., N, D]`. Where the box holds no point of the hyperplane, the way to the corner nearest to it.

    A coordinate moves by `min(lam, room)` under "linf" and `min(lam |w|, room)` under "l2". The published code sorts
    the coordinates by the `lam` that uses up their room; `_level` finds lam without, 5 to 10 times as fast on a CPU.

    Source: Croce & Hein (2020), arXiv:1907.02044, Section 3.1.
    """
    direction = normals.sign() * needed.sign().unsqueeze(-1)
    room = torch.where(direction > 0, 1 - points, points)
    weights = normals.abs()
    if norm == "linf":
        moved = torch.minimum(room, _level(weights, room, weights * room, needed.abs()).unsqueeze(-1))
    else:
        # As published, what has next to no weight does not move.
        weights = F.threshold(weights, 1e-8, 0)
        limits = room / weights.clamp(min=1e-8)
        level = _level(weights * weights, limits, weights * room, needed.abs())
        moved = torch.minimum(limits, level.unsqueeze(-1)).mul_(weights)
    return moved.mul_(direction)


def _level(rates: torch.Tensor, limits: torch.Tensor, reach: torch.Tensor, needed: torch.Tensor) -> torch.Tensor:
    """The `lam[..., N]` with `sum_j rates_j min(lam, limits_j) = needed`, huge where there is none.

    `reach` is `rates limits`. The sum is concave, increasing and piecewise linear in lam: Newton's iteration from below
    lands on the solution. Each rise uses up at least one more coordinate, so it ends; on images after 4 to 10 rounds.
    """
    tiny = torch.finfo(rates.dtype).tiny
    level = needed / rates.sum(-1).clamp_(min=tiny)
    free = torch.empty_like(limits)  # 1 where a coordinate has room left, else 0
    while True:
        torch.gt(limits, level.unsqueeze(-1), out=free)
        slope = torch.linalg.vecdot(rates, free).clamp_(min=tiny)
        rest = needed - torch.linalg.vecdot(reach, free.neg_().add_(1))
        higher = rest.div_(slope)
        if not (higher > level).any():
            return level
        level = torch.maximum(level, higher)


@torch.no_grad()
def square(
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    norm: str,
    queries: int = 5000,
    generator: torch.Generator | None = None,
) -> Outcome:
    """The Square Attack: random windows, the same for the whole batch, kept where they lower the margin of the label.

    Args:
      model: images to logits `[B, K]`, in eval mode.
      x: clean images `[B, C, H, W]` in [0, 1].
      y: labels `[B]`.
      eps: radius in pixel units.
      norm: "linf" or "l2".
      queries: windows tried; a forward each, of those not yet fooled.
      generator: of all draws, on the CPU.

    Returns:
      An Outcome with the points of least margin `z_y - max_{k != y} z_k`; it is success when not positive.

    Source: Andriushchenko et al. (2020), arXiv:1912.00049, with the schedule of AutoAttack.
    """
    start, change = (_stripes, _change_square) if norm == "linf" else (_tiling, _move_mass)
    images, margins = x.clone(), torch.empty(len(x), device=x.device)
    rows = torch.arange(len(x), device=x.device)
    best = start(x, eps, generator)
    margin = _margin(model(best), y)
    for number in range(queries):
        left = margin > 0
        if not left.all():
            fell = ~left
            images[rows[fell]], margins[rows[fell]] = best[fell], margin[fell]
            rows, x, y, best, margin = (tensor[left] for tensor in (rows, x, y, best, margin))
            if not len(rows):
                break
        tried = change(x, best, eps, window_side(number, x.shape[2:], norm), generator)
        its_margin = _margin(model(tried), y)
        take = (its_margin < margin) | (its_margin <= 0)
        best = torch.where(_wide(take), tried, best)
        margin = torch.where(take, its_margin, margin)
    images[rows], margins[rows] = torch.where(_wide(margin <= 0), best, x), margin
    return Outcome(images, margins <= 0, margins)


def window_side(iteration: int, size: tuple[int, ...], norm: str) -> int:
    """The side of Square's window at this iteration, from 0, on images of this height and width; odd under "l2".

    >>> [window_side(20, (32, 32), norm) for norm in ("linf", "l2")]
    [20, 21]
    """
    height, width = size
    share = 0.8 / 2 ** bisect.bisect_left(HALVED_AFTER, iteration)
    side = max(round((share * height * width) ** 0.5), 1)
    if norm == "l2":
        side = max(side, 3)
        side += side % 2 == 0
    return min(side, height, width)


def _margin(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    label = y.unsqueeze(1)
    others = logits.scatter(1, label, -torch.inf).amax(1)
    return logits.gather(1, label).squeeze(1).sub_(others)


def _stripes(x: torch.Tensor, eps: float, generator: torch.Generator | None) -> torch.Tensor:
    """The "linf" start: vertical stripes at the edge of the ball."""
    batch, channels, _, width = x.shape
    return (x + eps * _signs((batch, channels, 1, width), x, generator)).clamp_(0, 1)


def _change_square(
    x: torch.Tensor, best: torch.Tensor, eps: float, side: int, generator: torch.Generator | None
) -> torch.Tensor:
    """The "linf" change: each channel of one window goes to one edge of the ball."""
    window = _window(x, side, generator)
    signs = _signs((x.shape[1], 1, 1), x, generator)
    tried = best.clone()
    low, high = x[window] - eps, x[window] + eps
    tried[window].add_(signs.mul_(2 * eps)).clamp_(low, high).clamp_(0, 1)
    return tried


def _tiling(x: torch.Tensor, eps: float, generator: torch.Generator | None) -> torch.Tensor:
    """The "l2" start: the image tiled by bumps, a sign for each channel and image, scaled to the sphere."""
    height, width = x.shape[2:]
    side = max(height // 5, 1)
    offset = max(height - 5 * side, 0) // 2
    delta = torch.zeros_like(x)
    for row in range(height // side):
        for column in range(width // side):
            top, left = offset + row * side, offset + column * side
            tile = delta[..., top : top + side, left : left + side]
            bump = _bump(side, x, generator)[: tile.shape[2], : tile.shape[3]]
            tile.copy_(bump * _signs((*x.shape[:2], 1, 1), x, generator))
    return _onto_sphere(x, delta, eps)


def _move_mass(
    x: torch.Tensor, best: torch.Tensor, eps: float, side: int, generator: torch.Generator | None
) -> torch.Tensor:
    """The "l2" change: what is in a second window, and what eps leaves, go into a bump in the first."""
    first, second = _window(x, side, generator), _window(x, side, generator)
    bump = _bump(side, x, generator) * _signs((*x.shape[:2], 1, 1), x, generator)
    delta = best - x
    inside = delta[first]
    own = _length_of_channels(inside)
    new = bump.add_(inside / (own + 1e-12))
    left = _wide(eps**2 - _length(delta, "l2") ** 2).clamp_(min=0) / x.shape[1]
    # The union is what is in the first, and what the second has left once the first is empty.
    inside.zero_()
    union = own**2 + _length_of_channels(delta[second]) ** 2
    new.mul_((left + union).sqrt_() / (_length_of_channels(new) + 1e-12))
    delta[second] = 0
    delta[first] = new
    return _onto_sphere(x, delta, eps)


def _onto_sphere(x: torch.Tensor, delta: torch.Tensor, eps: float) -> torch.Tensor:
    return delta.mul_(_wide(eps / (_length(delta, "l2") + 1e-12))).add_(x).clamp_(0, 1)


def _bump(side: int, like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """The l2 tile of this side, `[side, side]`, lying or standing."""
    bump = tile(side, like.device)
    return bump.T if torch.rand((), generator=generator) < 0.5 else bump


@functools.cache
def tile(side: int, device: torch.device) -> torch.Tensor:
    """eta(side), `[side, side]` of norm 1: a positive pyramid in the upper `side // 2` rows, a negative one below.

    >>> [round(mass, 4) for mass in tile(3, torch.device("cpu"))[0].tolist()]
    [0.1361, 0.6804, 0.1361]
    """
    upper = side // 2
    halves = torch.cat([_pyramid(upper, side), -_pyramid(side - upper, side)])
    return (halves / halves.norm()).to(device)


def _pyramid(rows: int, columns: int) -> torch.Tensor:
    """`1 / (k + 1)^2` on each of the centred squares of side `2k + 1` around a pixel, summed, scaled to norm 1."""
    row, column = torch.arange(rows) - rows // 2, torch.arange(columns) - columns // 2
    away = torch.maximum(row.abs().unsqueeze(1), column.abs())
    masses = 1 / torch.arange(1, max(rows, columns) // 2 + 2).square()
    # A pixel at Chebyshev distance d is in the squares d, d + 1, ...
    mass = masses.flip(0).cumsum(0).flip(0)[away]
    return mass / mass.norm()


def _window(x: torch.Tensor, side: int, generator: torch.Generator | None) -> tuple[slice | EllipsisType, ...]:
    """A random window; as published, the last place is never drawn, unless it is the only one."""
    top, left = (int(torch.randint(max(extent - side, 1), (), generator=generator)) for extent in x.shape[2:])
    return ..., slice(top, top + side), slice(left, left + side)


def _signs(shape: tuple[int, ...], like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    return torch.randint(2, shape, generator=generator).mul_(2).sub_(1).to(like)


def _ascend(
    model: Model, x: torch.Tensor, objective: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The objective of the logits at `x`, `[B]`, its gradient, and the logits."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = model(x)
        value = objective(logits)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient, logits.detach()


def _length(x: torch.Tensor, norm: str) -> torch.Tensor:
    """The norm of each example, `[B]`."""
    x = x.flatten(1)
    # vector_norm takes several times as long for the largest entry (on a CPU).
    return x.abs().amax(1) if norm == "linf" else torch.linalg.vector_norm(x, dim=1)


def _length_of_channels(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)


def _wide(per_example: torch.Tensor) -> torch.Tensor:
    """`[B]` as `[B, 1, 1, 1]`."""
    return per_example.view(-1, 1, 1, 1)
