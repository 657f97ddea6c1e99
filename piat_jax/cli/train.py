"""Train one model from a config file.

    piat-train --config=configs/cifar10_resnet18.py:nmse+piat --workdir=runs/x --config.attack.eps=8/255

The method stands after the colon; --config.FIELD=VALUE overrides any field (configs/common.py lists them all).
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from piat_jax.checkpoint import Checkpoints
from piat_jax.cli import arguments, build, errors, run_folder
from piat_jax.cli.config import Config, apply_overrides, load_config, split_overrides
from piat_jax.core.checks import InputError
from piat_jax.core.types import Objective, TrainState, Variables
from piat_jax.data.batching import steps_per_epoch
from piat_jax.interop import load_weights
from piat_jax.models import LinenModel
from piat_jax.training import EpochRecord, Examples, TrainingDivergedError, fit, init_state
from piat_jax.training.metrics import MetricsWriter, has_tensorboard
from piat_jax.training.progress import TrainingProgress, duration


def main(argv: Sequence[str]) -> None:
    """The command."""
    overrides, rest = split_overrides(argv)
    values = arguments.new_flags()
    flags.DEFINE_string("config", None, "Config file, and the method after a colon.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Folder of the run; new, empty, or with --resume its own.", flag_values=values)
    flags.DEFINE_boolean("resume", False, "Go on from the last checkpoint in workdir.", flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "Replace the run in workdir.", flag_values=values)
    arguments.parse(values, rest, __doc__)
    for flag in ("config", "workdir"):
        if not values[flag].value:
            raise InputError(f"--{flag} is missing; see --help")
    config = read_config(values.config, overrides)
    train(config, Path(values.workdir), resume=values.resume, overwrite=values.overwrite)


def read_config(text: str, overrides: dict[str, str]) -> Config:
    """The config with its overrides, or an InputError with every problem on a line of its own."""
    config = load_config(text)
    found = []
    if "method" in overrides:
        method = overrides.pop("method")
        found.append(f"config.method cannot be set; choose the method after the colon: --config=FILE:{method}")
    found += apply_overrides(config, overrides)
    found += build.problems(config)
    if found:
        raise InputError("\n".join(found))
    return config


def train(config: Config, folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Train the run that `config` describes in `folder`; everything is checked before anything is written."""
    run_folder.check_folder(folder, config, resume=resume, overwrite=overwrite)
    data, training_split, monitor = build.dataset(config)
    net = build.model(config, data.num_classes)
    objective = build.objective(config, net, build.attack(config), training_split.images.shape[1:])
    recipe = build.recipe(config, len(training_split.labels))
    key = jax.random.key(config.seed)

    images = jnp.asarray(training_split.images)
    examples = Examples(images, jnp.asarray(training_split.labels))
    checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS)
    resuming = resume and "last" in checkpoints
    pretrained = None if resuming else _pretrained(config, net, images.shape[1:])
    state = init_state(objective, recipe.optimizer, jnp.zeros((1, *images.shape[1:])), key=key, variables=pretrained)
    state = build.start(config, state)
    if resuming:
        state = checkpoints.load_state("last", state)
    if resume:
        _drop_later_best(checkpoints, int(state.epoch))

    run_folder.open_folder(folder, config, overwrite=overwrite)
    writer = MetricsWriter(folder, epochs_done=int(state.epoch), tensorboard=config.log.tensorboard)
    if config.log.tensorboard and not has_tensorboard():
        print("TensorBoard events are not written: pip install 'piat_jax[logging]'", file=sys.stderr)
    steps = steps_per_epoch(len(examples.labels), config.batch_size)
    progress = TrainingProgress(
        config.epochs, first_epoch=int(state.epoch) + 1, images_per_epoch=steps * config.batch_size
    )
    _announce(config, folder, len(examples.labels), state, 1 if recipe.mesh is None else recipe.mesh.size)
    on_epoch = _recorder(config, objective, checkpoints, writer, progress, steps)
    try:
        fit(
            state,
            objective,
            examples,
            key=key,
            recipe=recipe,
            epochs=config.epochs,
            epoch_end=build.epoch_end(config, net, images, data.num_classes, monitor),
            evaluate=build.monitor(config, objective, data.num_classes, monitor),
            on_epoch=on_epoch,
            on_chunk=progress.chunk,
            steps_per_chunk=config.log.steps_per_chunk,
        )
    except TrainingDivergedError as error:
        good = f"epoch {checkpoints.info('last')['epoch']}" if "last" in checkpoints else "none was saved yet"
        raise InputError(f"{error}; last good checkpoint in {str(folder)!r}: {good}") from error
    except KeyboardInterrupt:
        print(f"stopped; the same command with --resume goes on from the last checkpoint in {folder}", file=sys.stderr)
        raise
    finally:
        progress.close()
        writer.close()
    print(f"done in {duration(progress.elapsed())}; evaluate with: piat-evaluate --workdir={folder}", flush=True)


def _pretrained(config: Config, net: LinenModel, image_shape: Sequence[int]) -> Variables | None:
    """The weights in `model.weights`, made to fit; None where a run starts from fresh ones."""
    if not config.model.weights:
        return None
    try:
        loaded = load_weights(config.model.weights, net, image_shape, adapt=True)
    except InputError as error:
        raise InputError(f"model.weights: {error}") from error
    if loaded.model != net:
        mean, std = loaded.model.module.mean, loaded.model.module.std
        raise InputError(
            f"model.weights={config.model.weights!r} normalise by mean={mean}, std={std}; "
            "set config.model.mean and config.model.std to these"
        )
    print(f"from {config.model.weights}: {loaded.report}", flush=True)
    return loaded.variables


def _recorder(
    config: Config,
    objective: Objective,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    progress: TrainingProgress,
    steps: int,
) -> Callable[[TrainState, EpochRecord], None]:
    """What happens last in an epoch: save, log, show."""
    score_name = f"{build.monitor_name(config)}_{config.evaluation.select}"
    schedule = build.schedule(config, steps)

    def record(state: TrainState, epoch: EpochRecord) -> None:
        best_before = max((old[score_name] for old in writer.records if score_name in old), default=-1.0)
        info = {"epoch": epoch.epoch, "method": config.method, "scores": dict(epoch.scores)}
        step = int(state.step)
        writer.write(
            {
                "epoch": epoch.epoch,
                "step": step,
                "learning_rate": float(jnp.asarray(schedule(step - 1))),
                **{f"train_{name}": value for name, value in epoch.train.items()},
                **epoch.scores,
                **({"averaged_states": int(state.average.count)} if state.average else {}),
                "images_per_second": round(epoch.images_per_second, 2),
                "train_seconds": round(epoch.train_seconds, 4),
                "evaluate_seconds": round(epoch.evaluate_seconds, 4),
            }
        )
        # After the metrics: a run killed in between goes on from the epoch before and writes both again.
        evaluated = build.evaluated(objective, state)
        if epoch.scores.get(score_name, -1.0) > best_before:
            checkpoints.save("best", state, info, evaluated)
        if epoch.epoch % config.checkpoint.every_epochs == 0 or epoch.epoch == config.epochs:
            checkpoints.save("last", state, info, evaluated)
        on_training_data = epoch.train.get("adversarial_accuracy", epoch.train.get("clean_accuracy", 0.0))
        shown = {"loss": epoch.train["loss"], "train": on_training_data, **epoch.scores}
        progress.epoch(epoch.epoch, shown, epoch.images_per_second)

    return record


def _drop_later_best(checkpoints: Checkpoints, epoch: int) -> None:
    """A best checkpoint from after the epoch we go on from will be made again, the same."""
    if "best" in checkpoints and checkpoints.info("best")["epoch"] > epoch:
        checkpoints.discard("best")


def _announce(config: Config, folder: Path, num_train: int, state: TrainState, devices: int) -> None:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    device = jax.devices()[0]
    print(
        f"{config.method}: {config.model.name} ({parameters:,} parameters) on {config.dataset.name} ({num_train:,} "
        f"images), {config.epochs} epochs, eps {config.attack.eps:.4g} = {255 * config.attack.eps:.3g}/255, "
        f"{devices} x {device.device_kind}, in {folder}"
        + (f", from epoch {int(state.epoch) + 1}" if int(state.epoch) else ""),
        flush=True,
    )


def entry() -> None:
    """Console entry point."""
    sys.exit(errors.run(main))


if __name__ == "__main__":
    entry()
