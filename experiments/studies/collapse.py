"""When and why NMSE falls to chance: the first five epochs of many seeds, by learning rate and mu.

    python -m experiments.studies.collapse --seeds=20 --out=experiments/results/piat/collapse

The protocol is embedded_512's, without PIAT, which changes nothing before the first epoch ends. A seed has collapsed if
its network gives all training images the same logits after five epochs. The first step is measured: the NMSE loss, the
gradients of the loss's two parts, the update. --out gets .json, .md and .png.
"""

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import markdown
from piat_jax.analysis.curves import COLORS, STYLE, WIDTH
from piat_jax.cli import errors
from piat_jax.core.files import write_json
from piat_jax.core.pixels import to_float
from piat_jax.core.types import Array, Batch, TrainState
from piat_jax.experiment import config
from piat_jax.experiment.data import load_data
from piat_jax.experiment.experiment import Experiment
from piat_jax.training import init_state, train_step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATES, WEIGHTS = (0.2, 0.1, 0.05, 0.02), (1.0, 3.0, 4.0, 5.0, 6.0)
EPOCHS = 5
CONSTANT = 1e-3  # standard deviation of a logit over images, below which a network tells no two images apart
NO_MEND = "nothing else"
MENDS: Mapping[str, Mapping[str, str]] = {
    NO_MEND: {},
    "gradient clipped at norm 1": {"optimizer.max_norm": "1.0"},
    "five epochs of warm-up": {"optimizer.lr_epochs": "0,6,50,75,100", "optimizer.lr_values": "0,0.2,0.2,0.02,0.002"},
    "weight 1 - p not differentiated": {"objective.weight_gradient": "False"},
}
FIELDS = {
    "nmse": "NMSE of the first batch",
    "logits": "norm of its logits, median",
    "cross_entropy_gradient": "norm of the cross-entropy's gradient",
    "nmse_gradient": "norm of mu NMSE's gradient",
    "update": "norm of the first step",
    "gradient_below": "norm of the kernels' gradient, after the last step",
    "accuracy": "accuracy on training images, after the last step",
}


def trials_of(experiment: Experiment, seeds: Iterable[int], epochs: int = EPOCHS) -> list[dict[str, Any]]:
    """Measure each seed's first epochs.

    Args:
      experiment: with the objective nmse.
      seeds: of weights, batches and attacks.
      epochs: that are trained.

    Returns:
      For each seed the measures of `FIELDS`; "spread", the standard deviation over training images of a logit after the
      last step; "collapsed", whether that is almost 0; and "seed". Gradients of the first step are of the initial
      weights, that of the NMSE with mu.
    """
    data, train, _ = load_data(experiment)
    images, labels = to_float(jnp.asarray(train.images)), jnp.asarray(train.labels)
    net = experiment.build_model(data.num_classes)
    objective: Any = experiment.build_objective(net, images.shape[1:])
    optimizer = experiment.build_recipe(len(labels)).optimizer
    steps = len(labels) // experiment.batch_size
    # The gradient is the step of plain descent at rate 1; the attack does not depend on mu.
    descent = optax.sgd(1.0)

    @functools.partial(jax.jit, static_argnames="optimizer")
    def step(
        state: TrainState, objective: Any, index: Array, key: Array, optimizer: optax.GradientTransformation
    ) -> tuple[TrainState, Any]:
        batch = Batch(images[index], labels[index], index)
        options = {"key": key, "epochs": experiment.epochs, "steps_per_epoch": steps}
        return train_step(objective, optimizer, state, batch, **options)

    def gradient(state: TrainState, mu: float, index: Array, key: Array) -> Any:
        plain = dataclasses.replace(state, opt_state=descent.init(state.params))
        after, _ = step(plain, dataclasses.replace(objective, mu=mu), index, key, descent)
        return jax.tree.map(jnp.subtract, state.params, after.params)

    @jax.jit
    def logits_of(state: TrainState, images: Array) -> Array:
        return net.apply(state.params, state.model_state, images, train=True)[0]

    def trial(seed: int) -> dict[str, Any]:
        key, rng = jax.random.key(seed), np.random.default_rng(seed)
        orders = [rng.permutation(len(labels))[: steps * experiment.batch_size] for _ in range(epochs)]
        batches = jnp.asarray(np.reshape(orders, (epochs * steps, experiment.batch_size)))
        state = init_state(objective, optimizer, images[:1], key=key)
        of_cross_entropy = gradient(state, 0.0, batches[0], key)
        of_nmse = jax.tree.map(jnp.subtract, gradient(state, objective.mu, batches[0], key), of_cross_entropy)
        found = {
            "logits": jnp.median(jnp.linalg.norm(logits_of(state, images[batches[0]]), axis=-1)),
            "cross_entropy_gradient": optax.tree.norm(of_cross_entropy),
            "nmse_gradient": optax.tree.norm(of_nmse),
        }
        for number, index in enumerate(batches):
            before, (state, metrics) = state, step(state, objective, index, key, optimizer)
            if number == 0:
                moved = jax.tree.map(jnp.subtract, state.params, before.params)
                found |= {"nmse": metrics["regularizer"], "update": optax.tree.norm(moved)}
        last = gradient(state, objective.mu, batches[-1], key)
        end = ending(logits_of(state, images), labels, last)
        return {"seed": seed, **{name: float(f"{value:.4g}") for name, value in found.items()}, **end}

    return [trial(seed) for seed in seeds]


def ending(logits: Array, labels: Array, gradient: Any) -> dict[str, float | bool]:
    """The state of a network, from its logits `[N, K]` on the training images and the gradient of its weights.

    >>> constant = jnp.tile(jnp.array([[0.0, 1.0]]), (4, 1))
    >>> ending(constant, jnp.array([1, 0, 0, 0]), {"kernel": jnp.zeros((2, 2)), "bias": jnp.ones(2)})
    {'spread': 0.0, 'gradient_below': 0.0, 'accuracy': 0.25, 'collapsed': True}
    """
    spread = float(jnp.mean(jnp.std(logits, axis=0)))
    return {
        "spread": spread,
        "gradient_below": float(optax.tree.norm([leaf for leaf in jax.tree.leaves(gradient) if leaf.ndim > 1])),
        "accuracy": float(jnp.mean(jnp.argmax(logits, axis=-1) == labels)),
        "collapsed": spread < CONSTANT,
    }


def to_markdown(trials: Sequence[Mapping[str, Any]]) -> str:
    """How many seeds collapse, by learning rate and mu and with each mend; how their first step differs."""
    plain = [each for each in trials if each["mend"] == NO_MEND]
    rates, weights = (list(dict.fromkeys(each[field] for each in plain)) for field in ("rate", "mu"))
    lines = [
        "# When NMSE falls to chance",
        "",
        f"embedded_512, NMSE without PIAT, {EPOCHS} epochs, {len({each['seed'] for each in trials})} seeds. Collapsed: "
        "all training images get the same logits.",
        "",
        "Seeds that collapsed (seeds whose training accuracy is below 20 %):",
        "",
    ]
    rows: list[list[str]] = []
    for rate in rates:
        cells = [_counted(each for each in plain if (each["rate"], each["mu"]) == (rate, mu)) for mu in weights]
        rows.append([f"{rate:g}", *cells])
    lines += [markdown.table(("learning rate", *(f"mu = {mu:g}" for mu in weights)), rows), ""]
    rows = []
    for mend in dict.fromkeys(each["mend"] for each in trials):
        chosen = [each for each in trials if (each["mend"], each["rate"], each["mu"]) == (mend, 0.2, 5.0)]
        rows.append([mend, _counted(chosen)])
    lines += ["At learning rate 0.2 and mu = 5:", "", markdown.table(("with", "collapsed"), rows), ""]
    first = [each for each in plain if (each["rate"], each["mu"]) == (0.2, 5.0)]
    rows = []
    for field, name in FIELDS.items():
        medians = [[each[field] for each in first if each["collapsed"] == collapsed] for collapsed in (True, False)]
        rows.append([name, *(f"{np.median(each):.3g}" if each else "-" for each in medians)])
    lines += ["The first step there, medians:", "", markdown.table(("", "collapsed", "others"), rows)]
    return "\n".join(lines) + "\n"


def _counted(trials: Iterable[Mapping[str, Any]]) -> str:
    found = list(trials)
    low = sum(each["accuracy"] < 0.2 for each in found)
    return f"{sum(each['collapsed'] for each in found)} of {len(found)} ({low})"


def draw(trials: Sequence[Mapping[str, Any]]) -> "Figure":
    """The norm of the first gradient's two parts, seed by seed, at the highest rate and mu = 5."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    first = [each for each in trials if (each["mend"], each["rate"], each["mu"]) == (NO_MEND, 0.2, 5.0)]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3), layout="constrained")
        axes = figure.subplots()
        for collapsed, label, color in ((False, "trains", COLORS[0]), (True, "collapses", COLORS[1])):
            chosen = [each for each in first if each["collapsed"] == collapsed]
            places = [[each[field] for each in chosen] for field in ("cross_entropy_gradient", "nmse_gradient")]
            axes.scatter(*places, label=label, color=color)
        axes.set(xlabel="norm of the cross-entropy's gradient", ylabel="norm of 5 NMSE's gradient")
        axes.set(xlim=(0, None), ylim=(0, None))
        axes.legend()
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="of each setting")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates")
    parser.add_argument("--mu", type=float, nargs="+", default=WEIGHTS, help="weights of NMSE")
    parser.add_argument("--out", type=Path, required=True, help="file for the results, without a suffix")
    given: Any = parser.parse_args(arguments)
    plain = [(NO_MEND, rate, mu) for rate, mu in itertools.product(given.rates, given.mu)]
    trials = []
    for mend, rate, mu in [*plain, *((mend, 0.2, 5.0) for mend in MENDS if mend != NO_MEND)]:
        fields = {"optimizer.lr_values": f"{rate},{rate},{rate / 10},{rate / 100}", **MENDS[mend]}
        experiment = config.load("embedded_512:nmse", {"objective.mu": str(mu), **fields})
        setting = {"mend": mend, "rate": rate, "mu": mu}
        found = [{**setting, **each} for each in trials_of(experiment, range(given.seeds))]
        print(f"{mend}, rate {rate:g}, mu {mu:g}: {_counted(found)}", flush=True)
        trials += found
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out.with_suffix(".json"), {"epochs": EPOCHS, "trials": trials})
    given.out.with_suffix(".md").write_text(to_markdown(trials))
    draw(trials).savefig(given.out.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    errors.leave(errors.run(main))
