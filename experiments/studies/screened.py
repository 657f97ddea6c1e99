"""AutoAttack on images in the order of their margins under PGD-20 and CW-20, until it breaks hardly any.

    python -m experiments.studies.screened runs/papers/embedded_512/pgd_at-seed0

Most of AutoAttack's time goes into images that no attack breaks. An image's margin is `z_y - max_j z_j, j != y`, the
smaller of the two at the images that PGD-20 and CW-20 find. Images with a margin of 0 or less are broken. The others
are attacked in blocks, the smallest margins first. The last block is the first in whose second half
AutoAttack breaks at most one image. The images after it count as robust, so the accuracy is an upper bound of
AutoAttack's. experiments/results/piat/README.md compares the two. Where a network hides its gradients, AutoAttack also
breaks images with large margins, and the blocks go on.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import piat_jax
from piat_jax import losses
from piat_jax.analysis.runs import CHECKPOINTS
from piat_jax.attacks import bind, cw, pgd
from piat_jax.cli import errors
from piat_jax.core.checks import check_count
from piat_jax.core.files import write_json
from piat_jax.core.forward import as_argument
from piat_jax.core.pixels import as_float
from piat_jax.core.types import Array, Attack, LogitsFn
from piat_jax.evaluation import AutoAttack, Robustness
from piat_jax.experiment import Experiment, Run
from piat_jax.experiment.data import load_test
from piat_jax.experiment.run import read_json
from piat_jax.programs.jit import program_jit

FILE = "screened.json"
ROWS = 250


def screened(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    eps: float,
    step_size: float,
    norm: str = "linf",
    block: int,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The accuracy under PGD-20, CW-20 and AutoAttack on blocks of images in the order of their margins.

    Args:
      logits_fn: images `[B, H, W, C]` in [0, 1] to logits `[B, K]`.
      images: `[N, H, W, C]` uint8, or floats in [0, 1].
      labels: `[N]` integers.
      eps: radius in pixel units.
      step_size: of PGD and CW, in pixel units.
      norm: "linf" or "l2".
      block: number of images that are attacked at once.
      before: an earlier result with the same arguments, to go on from if it has attacked too few.

    Returns:
      "accuracy" in [0, 1] after all; "pgd_cw" before AutoAttack; "attacked", the number of images for AutoAttack;
      "broken", how many of them it broke, by attack; "ranks", their places in the order of margins, from 0; "cut", the
      largest attacked margin; "seconds", of AutoAttack.

    >>> logits_fn = lambda x: jnp.stack([x.mean((1, 2, 3)), jnp.full(len(x), 0.5)], axis=1)
    >>> images = np.linspace(0.4, 1.0, 7, dtype=np.float32).reshape(7, 1, 1, 1) * np.ones((7, 4, 4, 1), np.float32)
    >>> found = screened(logits_fn, images, np.zeros(7, int), eps=0.1, step_size=0.025, block=2)
    >>> round(found["accuracy"], 3), found["attacked"], sum(found["broken"].values())
    (0.571, 2, 0)
    """
    check_count("block", block, 1)
    margins = smallest_margins(logits_fn, images, labels, eps=eps, step_size=step_size, norm=norm)
    alive = by_margin(margins)
    attack = AutoAttack(eps=eps, norm=norm, block_size=min(256, block))
    done = before or {"attacked": 0, "broken": {}, "ranks": [], "seconds": 0.0}
    attacked, broken, ranks, seconds = done["attacked"], dict(done["broken"]), list(done["ranks"]), done["seconds"]
    while attacked < len(alive) and (not attacked or _goes_on(attacked, ranks, block)):
        chosen = alive[attacked : attacked + block]
        found = attack.run(logits_fn, images[chosen], labels[chosen])
        ranks += (attacked + np.flatnonzero(~found.robust)).tolist()
        for name, fooled in zip(found.attacks, found.fooled):
            broken[name] = broken.get(name, 0) + int(fooled.sum())
        seconds += sum(found.seconds.values())
        attacked += len(chosen)
    return {
        "accuracy": (len(alive) - len(ranks)) / len(labels),
        "pgd_cw": len(alive) / len(labels),
        "attacked": attacked,
        "broken": broken,
        "ranks": ranks,
        "cut": float(margins[alive[attacked - 1]]) if attacked else 0.0,
        "seconds": round(seconds, 1),
    }


def _goes_on(attacked: int, ranks: Sequence[int], block: int) -> bool:
    """Whether more than one image was broken in the second half of the last block."""
    return sum(rank >= attacked - block // 2 for rank in ranks) > 1


def screen_run(folder: Path, block: int) -> dict[str, Any]:
    """`screened` for the best and the final checkpoint of a run, kept in its folder; known results are read."""
    known = read(folder)
    due = [name for name in CHECKPOINTS if known.get(name, {}).get("blocks_of") != block]
    if not due:
        return known
    experiment = Run(folder).experiment()
    test = load_test(experiment).test
    for name in due:
        model = piat_jax.load(folder, checkpoint=name)
        how = {**_threat(experiment), "block": block, "before": known.get(name)}
        known[name] = {"blocks_of": block, **screened(model, test.images, test.labels, **how)}
        path_of(folder, name).parent.mkdir(parents=True, exist_ok=True)
        write_json(path_of(folder, name), known[name])
    return known


def read(folder: Path) -> dict[str, Any]:
    """What `screen_run` has kept in a run's folder, by checkpoint; {} if nothing."""
    return {name: read_json(path_of(folder, name)) for name in CHECKPOINTS if path_of(folder, name).exists()}


def path_of(folder: Path, checkpoint: str) -> Path:
    """Where a checkpoint's result is: with AutoAttack's, which are removed when its weights change."""
    return Run(folder).robustness(checkpoint, "screened") / FILE


def described(folder: Path, found: Mapping[str, Any]) -> str:
    """What `screen_run` has found, a line for each checkpoint."""
    return "\n".join(
        f"{folder}  {name:6}  PGD-20 and CW-20 {100 * each['pgd_cw']:.1f}%  AutoAttack {100 * each['accuracy']:.1f}%"
        for name, each in found.items()
    )


def smallest_margins(
    logits_fn: LogitsFn, images: np.ndarray, labels: np.ndarray, *, eps: float, step_size: float, norm: str = "linf"
) -> np.ndarray:
    """The margins `[N]` of the images at the smaller of PGD-20's and CW-20's; arguments as of `screened`."""
    attacks = [bind(attack, eps=eps, norm=norm, step_size=step_size, steps=20) for attack in (pgd, cw)]
    return np.min([_margins(logits_fn, images, labels, attack) for attack in attacks], axis=0)


def by_margin(margins: np.ndarray) -> np.ndarray:
    """The images with a margin above 0, the smallest first.

    >>> by_margin(np.array([0.3, -1.0, 0.1, 2.0])).tolist()
    [2, 0, 3]
    """
    alive = np.flatnonzero(margins > 0)
    return alive[np.argsort(margins[alive], kind="stable")]


def against_autoattack(folder: Path, name: str, block: int) -> str:
    """A table's line on a checkpoint that AutoAttack was run on: what `screened` would have found.

    Args:
      folder: of a run that was evaluated by AutoAttack on all its test images.
      name: "best" or "final".
      block: as in `screened`.
    """
    run = Run(folder)
    found = Robustness.load(run.robustness(name, "aa"))
    model, experiment = piat_jax.load(folder, checkpoint=name), run.experiment()
    test = load_test(experiment).test
    margins = smallest_margins(model, test.images, test.labels, **_threat(experiment))
    order = by_margin(margins)
    places = np.flatnonzero(~found.robust[order])
    attacked = block
    while attacked < len(order) and _goes_on(attacked, places[places < attacked].tolist(), block):
        attacked += block
    missed = int((places >= attacked).sum())
    last = ", ".join(map(str, places[-3:] + 1))
    after = found.accuracy + missed / len(test.labels)
    shares = [f"{100 * value:.1f}" for value in (len(order) / len(test.labels), after, found.accuracy)]
    return f"| {folder.name} {name} | {' | '.join(shares)} | {len(places)} | {last} | {attacked} | {missed} |"


def _threat(experiment: Experiment) -> dict[str, Any]:
    return {name: getattr(experiment.evaluation, name) for name in ("eps", "step_size", "norm")}


def _margins(logits_fn: LogitsFn, images: np.ndarray, labels: np.ndarray, attack: Attack) -> np.ndarray:
    logits_fn, found = as_argument(logits_fn), []
    for start in range(0, len(labels), ROWS):
        # The last block is filled up with the first images, so that there is one compilation.
        rows = np.arange(start, start + min(ROWS, len(labels))) % len(labels)
        block = _margin(logits_fn, jnp.asarray(images[rows]), jnp.asarray(labels[rows]), jnp.asarray(rows), attack)
        found.append(np.asarray(block))
    return np.concatenate(found)[: len(labels)]


@program_jit()
def _margin(logits_fn: LogitsFn, images: Array, labels: Array, rows: Array, attack: Attack) -> Array:
    x = attack(logits_fn, as_float(images), labels, key=jax.random.key(0), indices=rows)
    of_label, best_other = losses.label_and_best_other(logits_fn(x), labels)
    return of_label - best_other


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="of evaluated runs")
    parser.add_argument("--block", type=int, default=80, help="images that AutoAttack gets at once")
    parser.add_argument("--against", choices=CHECKPOINTS, help="only compare with a full AutoAttack of this checkpoint")
    given: Any = parser.parse_args(arguments)
    for folder in given.folders:
        if given.against:
            print(against_autoattack(folder, given.against, given.block), flush=True)
            continue
        print(described(folder, screen_run(folder, given.block)), flush=True)


if __name__ == "__main__":
    errors.leave(errors.run(main))
