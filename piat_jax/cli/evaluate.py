"""Evaluate the best and the final checkpoint of runs under attacks, on the test set.

    piat-evaluate --workdir=runs/x --attacks=clean,pgd20,cw20,aa

Writes evaluation.json into each run folder. An attack is a name and its number of steps: clean, fgsm, pgd20, cw20,
mi_fgsm10. "aa" is AutoAttack's standard version, "aa-plus" its larger one; apgd-ce, apgd-dlr, apgd-t, fab, fab-t and
square are its members alone, with AutoAttack's numbers unless one is given (apgd-ce20, square1000). What these find,
example by example, is in the run's folder robustness; stopped, they go on with --resume, which also keeps the
accuracies of attacks that were run before. Several folders may be given as arguments: piat-evaluate runs/*
Several processes evaluate as one, as they train.
"""

import functools
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from piat_jax.attacks.ensemble import MEMBERS
from piat_jax.checkpoint import Checkpoints
from piat_jax.cli import arguments, build, distributed, errors, evaluators, run_folder
from piat_jax.cli.attack_progress import AttackProgressBar
from piat_jax.cli.config import Config, apply_overrides, split_overrides
from piat_jax.cli.cores import use_one_device_a_core
from piat_jax.cli.problems import problems
from piat_jax.cli.train import read_config
from piat_jax.core.checks import InputError, check_at_least, check_choice
from piat_jax.core.files import expanded, write_json
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.multihost import any_of_all, is_first, on_first
from piat_jax.data import first, load
from piat_jax.evaluation import AutoAttack
from piat_jax.evaluation.journal import Journal
from piat_jax.evaluation.robustness import JSON
from piat_jax.training.progress import duration

# What the papers call the two checkpoints, and what they are called on disk.
CHECKPOINTS = {"best": "best", "final": "last"}


def main(argv: Sequence[str]) -> None:
    """The command."""
    use_one_device_a_core()
    overrides, rest = split_overrides(argv)
    values = arguments.new_flags()
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_string(
        "config", None, "Config file and method; by default the one the run was trained with.", flag_values=values
    )
    flags.DEFINE_list(
        "checkpoint",
        list(CHECKPOINTS),
        "best, final, or both; or a folder runs/x/checkpoints/best.",
        flag_values=values,
    )
    flags.DEFINE_list("attacks", None, "Attacks; by default the config's.", flag_values=values)
    flags.DEFINE_integer("num_examples", 0, "The first n test examples; 0 = all.", flag_values=values)
    flags.DEFINE_integer(
        "aa_examples", 0, "AutoAttack and its members: the first n of these; 0 = all.", flag_values=values
    )
    flags.DEFINE_boolean("resume", False, "Keep what was found, and go on with what was stopped.", flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "Evaluate again, in place of what was found.", flag_values=values)
    distributed.define_flags(values)
    positional = arguments.parse(values, rest, __doc__, folders=True)
    folders = [expanded(text) for text in ([values.workdir] if values.workdir else []) + positional]
    checkpoints = values.checkpoint
    if not folders and len(checkpoints) == 1 and Path(checkpoints[0]).parent.name == run_folder.CHECKPOINTS:
        folders = [expanded(checkpoints[0]).parent.parent]
        on_disk = {kept: name for name, kept in CHECKPOINTS.items()}
        checkpoints = [on_disk.get(Path(checkpoints[0]).name, Path(checkpoints[0]).name)]
    if not folders:
        raise InputError("--workdir is missing; see --help")
    for name in checkpoints:
        check_choice("checkpoint", name, CHECKPOINTS)
    if values["attacks"].present and not values.attacks:
        raise InputError(
            "--attacks is empty; name some, such as --attacks=clean,pgd20, or leave it out for the config's"
        )
    for name in ("num_examples", "aa_examples"):
        check_at_least(name, values[name].value, 0)
    if values.resume and values.overwrite:
        raise InputError("--resume and --overwrite exclude each other; give one")
    distributed.start(values)
    configs = [_config(folder, values.config, overrides, values.attacks) for folder in folders]
    if not values.resume and not values.overwrite:
        kept = [_robustness_folders(config, folder, checkpoints) for folder, config in zip(folders, configs)]
        on_first(lambda: [_check_free(path) for paths in kept for path in paths])
    for folder, config in zip(folders, configs):
        evaluate_run(
            config,
            folder,
            checkpoints=checkpoints,
            num_examples=values.num_examples,
            aa_examples=values.aa_examples,
            resume=values.resume,
            overwrite=values.overwrite,
        )


def _robustness_folders(config: Config, folder: Path, checkpoints: Sequence[str]) -> list[Path]:
    """Where AutoAttack and its members keep what they do."""
    attacks = config.evaluation.final_attacks
    long = [attack for attack in attacks if isinstance(evaluators.evaluation_attack(config, attack), AutoAttack)]
    return [_robustness_folder(folder, name, attack) for name in checkpoints for attack in long]


def _check_free(path: Path) -> None:
    if Journal.read_settings(path) is None:
        return
    if (path / JSON).exists():
        raise InputError(
            f"{path} holds a finished evaluation; give --resume to keep it, or --overwrite to evaluate again"
        )
    raise InputError(
        f"{path} holds an evaluation that was stopped; give --resume to go on with it, or --overwrite to start again"
    )


def _robustness_folder(folder: Path, checkpoint: str, attack: str) -> Path:
    return folder / run_folder.ROBUSTNESS / f"{checkpoint}-{attack}"


def _config(folder: Path, text: str | None, overrides: dict[str, str], attacks: list[str] | None) -> Config:
    """The run's own config (or the given one) with its overrides, checked."""
    if text:
        config = read_config(text, dict(overrides), trains=False)
        found = []
    else:
        config = run_folder.read_config(folder)
        found = apply_overrides(config, overrides)
    if attacks:
        config.evaluation.final_attacks = tuple(attacks)
    found += problems(config, trains=False)
    if found:
        raise InputError("\n".join(found))
    return config


def evaluate_run(
    config: Config,
    folder: Path,
    *,
    checkpoints: Sequence[str],
    num_examples: int = 0,
    aa_examples: int = 0,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Evaluate checkpoints of the run in `folder` under `config.evaluation.final_attacks`; print and write them.

    With `resume` an accuracy that was found before, of the same weights on the same examples, is not found again.
    Where the best checkpoint is the final one it is evaluated once.

    Raises:
      InputError: the folder has accuracies on other examples or of other settings, and not `overwrite`.
    """
    data = load(
        config.dataset.name,
        data_dir=config.dataset.data_dir,
        test_examples=num_examples or config.dataset.test_examples,
    )
    saved = Checkpoints(folder / run_folder.CHECKPOINTS)
    net = build.model(config, data.num_classes, dtype="float32")
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *data.test.images.shape[1:])))
    correct = evaluators.evaluator(config, data.num_classes, data.test)
    by_autoattack = any(map(is_autoattack, config.evaluation.final_attacks))
    for_autoattack = first("aa_examples", aa_examples if by_autoattack else 0, config.dataset.name, data.test)
    result = {
        "num_examples": len(data.test.labels),
        "aa_examples": len(for_autoattack.labels),
        "settings": evaluators.settings_of(config),
        "checkpoints": {},
    }
    path = folder / run_folder.EVALUATION
    before = _comparable(path, result, by_autoattack=by_autoattack, overwrite=overwrite)
    valid = dict(before) if resume else {}

    def keep() -> None:
        if is_first():
            write_json(path, result)

    for name in checkpoints:
        variables, info = saved.load_evaluated(CHECKPOINTS[name], like)
        epoch = info["epoch"]
        # Within an epoch a run that was stopped has taken so many steps more.
        at = {"epoch": epoch, "steps": (info.get("position") or {}).get("steps", 0)}
        accuracy: dict[str, float] = {}
        if _is_at(before.get(name), at):
            accuracy = dict(before[name]["accuracy"])
        elif name in before:  # the run was trained on
            on_first(functools.partial(_drop_robustness, folder, name))
        twin = next((other for other, point in valid.items() if other != name and _is_at(point, at)), "")
        valid[name] = {**at, "accuracy": accuracy}
        result["checkpoints"] = {**before, **result["checkpoints"], name: valid[name]}
        keep()  # of which weights the folders are that attacks begin now
        for text in config.evaluation.final_attacks:
            if resume and text in accuracy:
                continue
            began = time.perf_counter()
            attack = evaluators.evaluation_attack(config, text)
            if twin and text in valid[twin]["accuracy"] and _take_over(folder, twin, name, text):
                accuracy[text] = valid[twin]["accuracy"][text]
            elif isinstance(attack, AutoAttack):
                where = _robustness_folder(folder, name, text)
                if not resume:
                    on_first(functools.partial(shutil.rmtree, where, ignore_errors=True))
                with AttackProgressBar(f"{folder}  {name}") as report:
                    found = attack.run(make_logits_fn(net, variables), *for_autoattack, folder=where, report=report)
                print(found, flush=True)
                accuracy[text] = found.accuracy
            else:
                accuracy[text] = float(correct(variables, attack).mean())
            print(
                f"{folder}  {name} (epoch {epoch})  {text} {100 * accuracy[text]:.2f}%  "
                f"{duration(time.perf_counter() - began)}",
                flush=True,
            )
            keep()  # the next attack may take hours


def _is_at(point: Mapping[str, Any] | None, at: Mapping[str, int]) -> bool:
    """Whether these accuracies are of the weights that a run had there; without steps, as they were once kept, of 0."""
    return point is not None and all(point.get(name, 0) == number for name, number in at.items())


def _drop_robustness(folder: Path, checkpoint: str) -> None:
    """Remove what attacks have found on a checkpoint that holds other weights now."""
    for path in (folder / run_folder.ROBUSTNESS).glob(f"{checkpoint}-*"):
        shutil.rmtree(path)


def _take_over(folder: Path, name: str, other: str, attack: str) -> bool:
    """Give what one checkpoint's evaluation left to the other of the same weights; whether it was all there."""
    if not is_autoattack(attack):
        return True
    source, target = (_robustness_folder(folder, each, attack) for each in (name, other))
    if not any_of_all(is_first() and (source / JSON).exists()):  # who writes it knows
        return False

    def copy() -> None:
        shutil.rmtree(target, ignore_errors=True)  # what was stopped
        shutil.copytree(source, target)

    on_first(copy)
    return True


def is_evaluated(config: Config, folder: Path, *, aa_examples: int = 0) -> bool:
    """Whether both checkpoints of a finished run were evaluated as `config.evaluation` says."""
    path = folder / run_folder.EVALUATION
    if not path.exists():
        return False
    found = run_folder.read_json(path)
    points = [found["checkpoints"].get(name, {"epoch": -1, "accuracy": {}}) for name in CHECKPOINTS]
    examples = aa_examples or found["num_examples"]
    return (
        found["settings"] == evaluators.settings_of(config)
        and points[-1]["epoch"] == config.epochs
        and all(attack in point["accuracy"] for point in points for attack in config.evaluation.final_attacks)
        and (not any(map(is_autoattack, config.evaluation.final_attacks)) or found.get("aa_examples") == examples)
    )


def _comparable(path: Path, result: dict[str, Any], *, by_autoattack: bool, overwrite: bool) -> dict[str, Any]:
    """What an evaluation of the same examples with the same settings has found before, by checkpoint.

    Where AutoAttack is not asked for, the examples it had stay those of `result`.

    Raises:
      InputError: there is another one, and it is not to be overwritten.
    """
    if not path.exists():
        return {}
    before = run_folder.read_json(path)
    checkpoints = before["checkpoints"]
    if any(is_autoattack(name) for point in checkpoints.values() for name in point["accuracy"]):
        before.setdefault("aa_examples", before["num_examples"])
        if not by_autoattack:
            result["aa_examples"] = before["aa_examples"]
    else:
        before["aa_examples"] = result["aa_examples"]
    there, here = ({**found, **found["settings"]} for found in (before, result))
    compared = ("num_examples", "aa_examples", *result["settings"])
    changed = [name for name in compared if there.get(name) != here[name]]
    if changed and not overwrite:
        told = "; ".join(f"{name} {there.get(name)} there, {here[name]} here" for name in changed)
        raise InputError(f"{path} holds another evaluation ({told}); give --overwrite to replace it")
    return {} if changed else checkpoints


def is_autoattack(name: str) -> bool:
    """Whether an attack of this name is AutoAttack or a member of it, which has examples and a folder of its own."""
    return name.startswith("aa") or name.rstrip("0123456789") in MEMBERS


def entry() -> None:
    """Console entry point."""
    distributed.leave(errors.run(main))


if __name__ == "__main__":
    entry()
