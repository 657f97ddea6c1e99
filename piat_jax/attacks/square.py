"""The Square Attack, AutoAttack's black-box member: random search with windows, using only the scores."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.attacks import square_proposals as proposals
from piat_jax.attacks.ascent import select
from piat_jax.attacks.outcome import Outcome
from piat_jax.core.checks import check_array, check_count, check_images, check_key, check_radius, check_range
from piat_jax.core.network_checks import check_network, checked_logits
from piat_jax.core.norms import cap_radius, norm_name, per_example
from piat_jax.core.rng import example_keys, fold_in
from piat_jax.core.types import Array, LogitsFn
from piat_jax.programs.frozen import frozen
from piat_jax.programs.loops import while_loop


class _State(NamedTuple):
    turn: Array  # forwards so far
    best: Array  # [B, H, W, C]
    margin: Array  # [B] of `best`
    fooled: Array
    queries: Array


def square(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    key: Array,
    indices: Array | None = None,
    active: Array | None = None,
    eps: Array | float = 8 / 255,
    norm: str = "linf",
    queries: int = 5000,
    p_init: float = 0.8,
    rescale_schedule: bool = False,
    restarts: int = 1,
) -> Outcome:
    """Square: changes a random window of x and keeps the change if `z_y - max_{j != y} z_j` falls, `queries` times.

    The window covers a share `p` of the pixels: `p_init` for 11 iterations, and halved at iterations 11, 51, 201, 501,
    1001, 2001, 4001, 6001 and 8001. Under "linf", x starts with vertical stripes at the edge of the ball, and each
    channel of a window moves to one edge. Under "l2" and "l1", x starts as a tiling of bumps, and a change moves the
    perturbation of one window into a bump in another. No gradients are used.

    Args:
      logits_fn: images to logits `[B, K]`; closes over weights, normalisation and BatchNorm mode.
      images: `[B, H, W, C]` floats in [0, 1], H and W may differ; the search itself is in float32.
      labels: `[B]` integers.
      key: typed threefry key; example i draws from `fold_in(key, indices[i])`, independent of the rest of the batch.
      indices: `[B]` each example's index in its data set; default `0..B-1`.
      active: `[B]` bool, which examples to attack; default all. The loop ends when all of these are fooled.
      eps: radius in pixel units (1 = the whole range), a scalar or `[B]`, may be traced.
      norm: "linf", "l2" or "l1".
      queries: windows to try in each restart, at least 0; may be traced. One more forward judges the start.
      p_init: share of the pixels in the first windows, in (0, 1]; may be traced.
      rescale_schedule: whether to scale the iterations above, which are for 10000 queries, to `queries`; AutoAttack
        never does.
      restarts: independent runs, for the examples not yet fooled.

    Returns:
      Outcome; an example that never falls costs `restarts * (queries + 1)` forwards.

    Raises:
      InputError: an unknown choice or an argument out of range.

    Source: Andriushchenko et al. (2020), arXiv:1912.00049, with the settings of AutoAttack, Croce & Hein (2020),
    arXiv:2003.01690. As in AutoAttack's code, and unlike the paper, windows never start at the last possible row or
    column, and a margin of at most 0 is always accepted. Unlike that code, each example draws its own windows,
    orientations and channel signs, while the code draws them once per batch: the distribution per example is the same,
    and results do not depend on batching. Also unlike that code: an example at margin 0 is attacked further while
    argmax still gives its label; logits that are not finite never count as success; if H > W, the tiles of the start
    are a fifth of W, and tiles at the border are cut. "l1" is a reconstruction from the idea of Croce & Hein (2021),
    arXiv:2103.01208, not checked against their code. Sizes, tiles, start and moves are those of "l2" with sums of
    absolute values in place of Euclidean norms, and candidates are projected onto the intersection of ball and box
    instead of being scaled to eps and clipped.

    >>> logits_fn = lambda x: jnp.stack([x.mean((1, 2, 3)), jnp.full(len(x), 0.45)], axis=1)
    >>> x = jnp.full((1, 4, 4, 1), 0.5)
    >>> outcome = square(logits_fn, x, jnp.array([0]), key=jax.random.key(0), eps=0.1, queries=50)
    >>> bool(outcome.fooled[0]), float(outcome.images.mean()) < 0.45
    (True, True)
    """
    check_network(logits_fn)
    check_images("images", images)
    check_array("labels", labels)
    check_key(key)
    norm = norm_name(norm)
    check_radius("eps", eps, norm)
    check_count("queries", queries, 0)
    check_range("p_init", p_init, 0, 1, open_low=True)
    check_count("restarts", restarts, 1)
    size, shape = images.shape[0], tuple(images.shape[1:])
    clean = jax.lax.stop_gradient(images.astype(jnp.float32))
    logits_fn = frozen(logits_fn, clean)
    eps = cap_radius(jax.lax.stop_gradient(jnp.asarray(eps)), shape, norm)
    radius = jnp.broadcast_to(per_example(eps, clean), (size, 1, 1, 1))
    keys = example_keys(key, jnp.arange(size) if indices is None else indices)
    active = jnp.full(size, True) if active is None else active
    of_start, of_change = proposals.draws_for(shape, norm)

    def draw(turn: Array, restart: Array, count: int) -> Array:
        return jax.vmap(lambda key: jax.random.uniform(key, (count,), jnp.float32))(fold_in(keys, restart, turn))

    def start(restart: Array, turn: Array, best: Array) -> Array:
        del best
        draws = draw(turn, restart, of_start)
        if norm == "linf":
            return jnp.clip(clean + radius * proposals.stripes(draws, shape), 0.0, 1.0)
        return proposals.into_ball_and_box(clean, proposals.tiling(draws, shape, norm), radius, norm)

    def change(restart: Array, turn: Array, best: Array) -> Array:
        draws = draw(turn, restart, of_change)
        share = proposals.pixel_share(turn - 1, queries, p_init, rescale_schedule)
        side = proposals.window_side(share, shape, norm)
        if norm == "linf":
            moved = best + 2 * radius * proposals.square(draws, side, shape)
            return jnp.clip(jnp.clip(moved, clean - radius, clean + radius), 0.0, 1.0)
        delta = proposals.move_mass(draws, best - clean, radius, side, norm)
        return proposals.into_ball_and_box(clean, delta, radius, norm)

    def step(state: _State) -> _State:
        restart, turn = state.turn // (queries + 1), state.turn % (queries + 1)
        tried = jax.lax.cond(turn == 0, start, change, restart, turn, state.best)
        margin, wrong = _judge(jax.lax.stop_gradient(checked_logits(logits_fn, tried)), labels)
        works = active & ~state.fooled
        take = works & ((turn == 0) | (margin < state.margin) | (margin <= 0))
        return _State(
            turn=state.turn + 1,
            best=select(take, tried, state.best),
            margin=jnp.where(take, margin, state.margin),
            fooled=state.fooled | (take & wrong),
            queries=state.queries + works.astype(jnp.int32),
        )

    def goes_on(state: _State) -> Array:
        return (state.turn < restarts * (queries + 1)) & jnp.any(active & ~state.fooled)

    first = _State(
        turn=jnp.int32(0),
        best=clean,
        margin=jnp.full(size, jnp.inf, jnp.float32),
        fooled=jnp.full(size, False),
        queries=jnp.zeros(size, jnp.int32),
    )
    last = while_loop(goes_on, step, first)
    return Outcome(select(last.fooled, last.best, clean), last.fooled, last.queries)


def _judge(logits: Array, labels: Array) -> tuple[Array, Array]:
    """The label's margin over the best other class, inf if a logit is not finite, and whether misclassified."""
    of_label, best_other = losses.label_and_best_other(logits, labels)
    finite = jnp.all(jnp.isfinite(logits), axis=-1)
    return jnp.where(finite, of_label - best_other, jnp.inf), losses.misclassified(logits, labels)
