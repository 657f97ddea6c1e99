"""Evaluate the best and the final checkpoint of runs under attacks, on the test set.

    piat-evaluate --workdir=runs/x --attacks=clean,pgd20,cw20

Writes evaluation.json into each run folder. An attack is a name and its number of steps: clean, fgsm, pgd20, cw20,
mi_fgsm10. Several folders may be given as arguments: piat-evaluate runs/*
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from piat_jax.checkpoint import Checkpoints
from piat_jax.cli import arguments, build, errors, run_folder
from piat_jax.cli.config import Config, apply_overrides, split_overrides
from piat_jax.cli.train import read_config
from piat_jax.core.checks import InputError, check_choice
from piat_jax.data import load
from piat_jax.training.progress import duration

# What the papers call the two checkpoints, and what they are called on disk.
CHECKPOINTS = {"best": "best", "final": "last"}


def main(argv: Sequence[str]) -> None:
    """The command."""
    overrides, rest = split_overrides(argv)
    values = arguments.new_flags()
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_string(
        "config", None, "Config file and method; by default the one the run was trained with.", flag_values=values
    )
    flags.DEFINE_list("checkpoint", list(CHECKPOINTS), "best, final, or both.", flag_values=values)
    flags.DEFINE_list("attacks", None, "Attacks; by default the config's.", flag_values=values)
    flags.DEFINE_integer("num_examples", 0, "The first n test examples; 0 = all.", flag_values=values)
    positional = arguments.parse(values, rest, __doc__, folders=True)
    folders = [Path(text) for text in ([values.workdir] if values.workdir else []) + positional]
    if not folders:
        raise InputError("--workdir is missing; see --help")
    for name in values.checkpoint:
        check_choice("checkpoint", name, CHECKPOINTS)
    configs = [_config(folder, values.config, overrides, values.attacks) for folder in folders]
    for folder, config in zip(folders, configs):
        evaluate_run(config, folder, checkpoints=values.checkpoint, num_examples=values.num_examples)


def _config(folder: Path, text: str | None, overrides: dict[str, str], attacks: list[str] | None) -> Config:
    """The run's own config (or the given one) with its overrides, checked."""
    if text:
        config = read_config(text, dict(overrides))
        found = []
    else:
        config = run_folder.read_config(folder)
        found = apply_overrides(config, overrides)
    if attacks:
        config.evaluation.final_attacks = tuple(attacks)
    found += build.problems(config)
    if found:
        raise InputError("\n".join(found))
    return config


def evaluate_run(config: Config, folder: Path, *, checkpoints: Sequence[str], num_examples: int = 0) -> None:
    """Evaluate checkpoints of the run in `folder` under `config.evaluation.final_attacks`; print and write them."""
    data = load(
        config.dataset.name,
        data_dir=config.dataset.data_dir,
        test_examples=num_examples or config.dataset.test_examples,
    )
    saved = Checkpoints(folder / run_folder.CHECKPOINTS)
    net = build.model(config, data.num_classes)
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *data.test.images.shape[1:])))
    correct = build.evaluator(config, data.num_classes, data.test)
    result = {}
    for name in checkpoints:
        variables = saved.load_variables(CHECKPOINTS[name], like)
        epoch = saved.info(CHECKPOINTS[name])["epoch"]
        result[name] = {"epoch": epoch, "accuracy": {}}
        for attack in config.evaluation.final_attacks:
            began = time.perf_counter()
            value = float(correct(variables, build.evaluation_attack(config, attack)).mean())
            result[name]["accuracy"][attack] = value
            print(
                f"{folder}  {name} (epoch {epoch})  {attack} {100 * value:.2f}%  "
                f"{duration(time.perf_counter() - began)}",
                flush=True,
            )
    fields = ("eps", "step_size", "norm", "restarts", "precision")
    run_folder.write_json(
        folder / run_folder.EVALUATION,
        {
            "num_examples": len(data.test.labels),
            "settings": {"seed": config.seed, **{field: config.evaluation[field] for field in fields}},
            "checkpoints": result,
        },
    )


def entry() -> None:
    """Console entry point."""
    sys.exit(errors.run(main))


if __name__ == "__main__":
    entry()
