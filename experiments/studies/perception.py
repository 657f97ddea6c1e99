"""Fig. 2: by how much a perturbation moves the logits, where it fools the model and where it does not."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.engine.claims import Claim, interval, verdict
from experiments.engine.items import Setting
from experiments.engine.results import Result
from experiments.engine.trained import load_final
from piat_jax.analysis.curves import COLORS, STYLE, WIDTH
from piat_jax.attacks import bind, pgd
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.pixels import to_float
from piat_jax.core.rng import named_key
from piat_jax.core.types import Array, Attack, LogitsFn
from piat_jax.experiment.evaluation import evaluation_attack

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = 1000  # of the test set
MEASURES = ("success", "failure", "clean", "perturbed")


def run(result: Result) -> dict[str, Any]:
    """Of each run the mean square of what the logits move, for both kinds of images, and both accuracies."""
    found = {
        f"{setting.name}/{entry.row.name}": [_perception(run.folder) for run in entry.runs]
        for setting in result.settings
        for entry in result.ran(setting)
    }
    studied = [(setting.name, found.get(f"{setting.name}/PGD-AT")) for setting in result.settings]
    return {"perception": found, "findings": [_finding(name, runs) for name, runs in studied if runs]}


def _perception(folder: Path) -> dict[str, float]:
    experiment, net, variables, test = load_final(folder)
    robust = experiment.attack.step_size > 0 and experiment.method.base != "standard"
    fields = experiment.evaluation
    attack: Any = (
        evaluation_attack(experiment, "pgd20")
        if robust
        else bind(pgd, eps=fields.eps, norm=fields.norm, step_size=0.0, steps=1)
    )
    images, labels = to_float(jnp.asarray(test.images[:IMAGES])), jnp.asarray(test.labels[:IMAGES])
    key = named_key(jax.random.key(experiment.seed), "evaluate")
    clean, perturbed = jax.device_get(_logits(make_logits_fn(net, variables), attack, images, labels, key))
    return split_by_success(clean, perturbed, np.asarray(labels))


@jax.jit
def _logits(logits_fn: LogitsFn, attack: Attack, images: Array, labels: Array, key: Array) -> tuple[Array, Array]:
    return logits_fn(images), logits_fn(attack(logits_fn, images, labels, key=key))


def split_by_success(clean: np.ndarray, perturbed: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`mean_i mean_c (z'_ic - z_ic)^2` over images still classified correctly when perturbed, and over the others.

    >>> z = np.array([[1.0, 0.0], [1.0, 0.0]])
    >>> split_by_success(z, np.array([[3.0, 0.0], [0.0, 1.0]]), np.array([0, 0]))
    {'success': 2.0, 'failure': 1.0, 'clean': 100.0, 'perturbed': 50.0}
    """
    moved = ((perturbed - clean) ** 2).mean(1)
    right = perturbed.argmax(1) == labels
    means = [float(moved[side].mean()) if side.any() else float("nan") for side in (right, ~right)]
    return dict(zip(MEASURES, (*means, 100 * float((clean.argmax(1) == labels).mean()), 100 * float(right.mean()))))


def _finding(setting: str, runs: list[dict[str, float]]) -> str:
    """The paper's claim: under PGD-AT images that fool the model move its logits less than others do."""
    difference = interval(np.array([run["failure"] - run["success"] for run in runs]))
    claim = Claim("they move less", "failure", "success", "perception", "lower")
    return (
        f"{setting}: under PGD-AT the logits of images that fool the model move by "
        f"{difference.text(3)} more than those of others (mean square; seeds: {len(runs)}); "
        f"the paper's claim that {claim.text}: {verdict(claim, difference)}. First {IMAGES} test images, final "
        "checkpoints; uniform noise for the first two models, PGD-20 for PGD-AT."
    )


def draw(result: Result, setting: Setting) -> "Figure":
    """Bars: how far logits move; points: accuracies."""
    import matplotlib
    from matplotlib.figure import Figure

    names = [entry.row.name for entry in result.ran(setting)]
    runs = {name: result.study["perception"][f"{setting.name}/{name}"] for name in names}
    means = {key: [float(np.mean([run[key] for run in runs[name]])) for name in names] for key in MEASURES}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(names))
        for shift, key, color, hatch in ((-0.2, "success", COLORS[5], ""), (0.2, "failure", COLORS[1], "///")):
            axes.bar(
                places + shift, means[key], 0.38, color=color, hatch=hatch, edgecolor="white", linewidth=0.4,
                label=f"MSE, {key}",
            )  # fmt: skip
        axes.set_ylabel("MSE of logits")
        axes.set_xticks(places, names)
        axes.spines[["top"]].set_visible(False)
        right = axes.twinx()
        for key, style in (("clean", "o-"), ("perturbed", "s--")):
            right.plot(places, means[key], style, color="black", markersize=4, linewidth=0.8, label=f"{key}, %")
        right.set_ylabel("Accuracy (%)")
        right.set_ylim(0, 100)
        right.spines[["top"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=7)
    return figure
