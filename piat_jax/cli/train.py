"""Train one model from a config file.

    piat-train --config=configs/cifar10_resnet18.py:nmse+piat --workdir=runs/x --config.attack.eps=8/255

The method stands after the colon; --config.FIELD=VALUE overrides any field (configs/common.py lists them all).
Several processes train as one, each on its own devices: under Slurm, Open MPI or Kubernetes and on TPU pods with
--distributed, elsewhere with --coordinator. They share the folder of the run.
"""

import contextlib
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from piat_jax.checkpoint import Checkpoints
from piat_jax.cli import arguments, build, datasets, distributed, errors, evaluators, hooks, notes, run_folder
from piat_jax.cli.config import Config, apply_overrides, load_config, split_overrides
from piat_jax.cli.problems import problems
from piat_jax.cli.selection import Selection, how_measured, resumed
from piat_jax.core.checks import InputError
from piat_jax.core.files import command, expanded, write_json
from piat_jax.core.multihost import on_first
from piat_jax.core.sharding import put_state
from piat_jax.core.types import Objective, TrainState, Variables
from piat_jax.data.batching import steps_per_epoch
from piat_jax.interop import load_weights
from piat_jax.models import LinenModel
from piat_jax.training import (
    EpochRecord,
    Position,
    StopSignals,
    StopTraining,
    TrainingDivergedError,
    fit,
    init_state,
)
from piat_jax.training.metrics import MetricsWriter, has_tensorboard, read_metrics
from piat_jax.training.progress import TrainingProgress, duration
from piat_jax.training.streaming import Stream


def main(argv: Sequence[str]) -> None:
    """The command."""
    overrides, rest = split_overrides(argv)
    values = arguments.new_flags()
    flags.DEFINE_string("config", None, "Config file, and the method after a colon.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Folder of the run; new, empty, or with --resume its own.", flag_values=values)
    flags.DEFINE_boolean("resume", False, "Go on from the last checkpoint in workdir.", flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "Replace the run in workdir.", flag_values=values)
    distributed.define_flags(values)
    arguments.parse(values, rest, __doc__)
    for flag in ("config", "workdir"):
        if not values[flag].value:
            raise InputError(f"--{flag} is missing; see --help")
    distributed.start(values)
    config = read_config(values.config, overrides)
    train(config, expanded(values.workdir), resume=values.resume, overwrite=values.overwrite)


def read_config(text: str, overrides: dict[str, str], *, trains: bool = True) -> Config:
    """The config with its overrides, or an InputError with every problem on a line of its own."""
    config = load_config(text)
    found = []
    if "method" in overrides:
        method = overrides.pop("method")
        found.append(f"config.method cannot be set; choose the method after the colon: --config=FILE:{method}")
    found += apply_overrides(config, overrides)
    found += problems(config, trains=trains)
    if found:
        raise InputError("\n".join(found))
    return config


def train(config: Config, folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Train the run that `config` describes in `folder`; everything is checked before anything is written."""
    check = functools.partial(run_folder.check_folder, folder, config, resume=resume, overwrite=overwrite)
    on_first(check)
    hold_out_how = run_folder.hold_out_how(folder) if resume else "by class"
    data, training_split, monitor = datasets.dataset(config, hold_out_how=hold_out_how)
    extra = datasets.extra(config, training_split, data.num_classes)
    described = datasets.describe(training_split, monitor, extra, hold_out_how)
    if resume:
        on_first(functools.partial(run_folder.check_data, folder, described))
    net = build.model(config, data.num_classes)
    objective = build.objective(config, net, build.attack(config), training_split.images.shape[1:])
    recipe = build.recipe(config, len(training_split.labels))
    key = jax.random.key(config.seed)

    examples = datasets.place(config, training_split, extra)
    images = training_split.images if isinstance(examples, Stream) else examples.images
    checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS)
    pretrained = None if resume and "last" in checkpoints else _pretrained(config, net, images.shape[1:])
    state = init_state(objective, recipe.optimizer, jnp.zeros((1, *images.shape[1:])), key=key, variables=pretrained)
    state = put_state(hooks.start(config, state), recipe.mesh, split=recipe.split_state)
    steps = steps_per_epoch(len(examples.labels), config.batch_size)
    devices = 1 if recipe.mesh is None else recipe.mesh.size

    with contextlib.ExitStack() as stack:
        on_first(lambda: stack.enter_context(run_folder.locked(folder)))
        on_first(check)  # nobody came in between
        signals = stack.enter_context(StopSignals())
        begin = _resume(config, checkpoints, folder, state) if resume else Begin(state, Selection(how_measured(config)))
        on_first(functools.partial(_notice, config, folder, steps, begin, resume=resume))
        on_first(lambda: run_folder.open_folder(folder, config, overwrite=overwrite, data=described))
        writer = MetricsWriter(folder, records=begin.records, tensorboard=config.log.tensorboard)
        if config.log.tensorboard and not has_tensorboard():
            print("TensorBoard events are not written: pip install 'piat_jax[logging]'", file=sys.stderr)
        done = len(begin.records)
        progress = TrainingProgress(config.epochs, first_epoch=done + 1, images_per_epoch=steps * config.batch_size)
        _announce(config, folder, len(examples.labels), begin, devices, resume=resume)
        record = Recorder(config, objective, checkpoints, begin.selection, writer, progress, steps)
        monitored = evaluators.monitor(config, objective, data.num_classes, monitor, on_block=signals.check)
        try:
            fit(
                begin.state,
                objective,
                examples,
                key=key,
                recipe=recipe,
                epochs=config.epochs,
                epoch_end=hooks.epoch_end(config, net, images, data.num_classes, monitor),
                evaluate=signals.interruptible(monitored),
                on_epoch=record,
                on_chunk=progress.chunk,
                steps_per_chunk=config.log.steps_per_chunk,
                position=begin.position,
                should_stop=signals.requested,
            )
            checkpoints.wait()
        except TrainingDivergedError as error:
            record.stopped(error.state, error.position)
            on_first(functools.partial(write_json, folder / run_folder.DIVERGED, error.report))
            raise InputError(
                f"{error}. Saved as it was before that step; {run_folder.DIVERGED} in {str(folder)!r} has the images. "
                "With --resume --config.nonfinite=skip it goes on and leaves such steps out"
            ) from error
        except StopTraining as stop:
            record.stopped(stop.state, stop.position)
            raise errors.SavedAndStopped(
                f"saved in epoch {stop.position.epoch} after {stop.position.steps} of {steps} steps; "
                f"the same command with --resume goes on from there in {folder}"
            ) from None
        finally:
            progress.close()
            writer.close()
    print(
        f"done in {duration(progress.elapsed())}; evaluate with: {command('piat-evaluate', workdir=folder)}", flush=True
    )


class Begin(NamedTuple):
    """What a run begins with, or goes on from."""

    state: TrainState
    selection: Selection
    position: Position | None = None  # within an epoch; None between two
    records: Sequence[Mapping[str, Any]] = ()  # of the epochs that are done


def _notice(config: Config, folder: Path, steps: int, begin: Begin, *, resume: bool) -> None:
    """Say what may not be meant."""
    for line in filter(None, (begin.selection.note(), *notes.old_averages(config, steps))):
        print(line, file=sys.stderr)
    last = config.optimizer.lr_epochs[-1]
    if last != config.epochs:
        print(
            f"note: the learning rate is set up to epoch {last:g} and the run has {config.epochs} epochs; "
            "--config.optimizer.lr_epochs and lr_values move its knots",
            file=sys.stderr,
        )
    if not resume or not (folder / run_folder.CONFIG).exists():
        return
    if (before := run_folder.read_config(folder).epochs) != config.epochs:
        print(
            f"note: the run had {before} epochs and has {config.epochs} now; what a method does by share of the run "
            "(a start, a ramp) follows these from here on",
            file=sys.stderr,
        )


def _resume(config: Config, checkpoints: Checkpoints, folder: Path, fresh: TrainState) -> Begin:
    """What to go on from: the newest checkpoint that can be read, or a fresh state where none was saved yet."""
    restored = checkpoints.restore(fresh)
    if restored is None:
        if read_metrics(folder):
            print(f"{folder} has no checkpoint yet; starting from the beginning", file=sys.stderr)
        return Begin(fresh, Selection(how_measured(config)))
    for line in restored.damaged:
        print(line, file=sys.stderr)
    position = Position(**restored.info["position"]) if restored.info.get("position") else None
    done = position.epoch - 1 if position else int(restored.state.epoch)
    if done + bool(position) > config.epochs:
        raise InputError(
            f"epochs={config.epochs} are fewer than the {done}{' and a part' if position else ''} that the run in "
            f"{str(folder)!r} has done; give at least {done + bool(position)}"
        )
    # A checkpoint has the metrics up to it, whatever has become of their file; those of older versions have not.
    known = restored.info["metrics"] if "metrics" in restored.info else read_metrics(folder)
    records = [record for record in known if record["epoch"] <= done]
    return Begin(restored.state, resumed(config, folder, checkpoints, restored, records), position, records)


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


class Recorder:
    """What happens last in an epoch, as `fit`'s `on_epoch`: log, save, show."""

    def __init__(
        self,
        config: Config,
        objective: Objective,
        checkpoints: Checkpoints,
        selection: Selection,
        writer: MetricsWriter,
        progress: TrainingProgress,
        steps: int,
    ):
        self.config, self.objective, self.checkpoints = config, objective, checkpoints
        self.selection, self.writer, self.progress = selection, writer, progress
        self.schedule = build.schedule(config, steps)

    def __call__(self, state: TrainState, epoch: EpochRecord) -> None:
        """Record an epoch."""
        step = int(state.step)
        self.checkpoints.check()
        self.writer.write(
            {
                "epoch": epoch.epoch,
                "step": step,
                "learning_rate": float(jnp.asarray(self.schedule(step - 1))),
                **{f"train_{name}": value for name, value in epoch.train.items()},
                **epoch.scores,
                **({"averaged_states": int(state.average.count)} if state.average else {}),
                "images_per_second": round(epoch.images_per_second, 2),
                "train_seconds": round(epoch.train_seconds, 4),
                "evaluate_seconds": round(epoch.evaluate_seconds, 4),
            }
        )
        best = self.selection.take(epoch.epoch, epoch.scores)
        if best or epoch.epoch % self.config.checkpoint.every_epochs == 0 or epoch.epoch == self.config.epochs:
            info = self._info(epoch.epoch, epoch.scores)
            self.checkpoints.save_async(state, info, evaluators.evaluated(self.objective, state), best=best)
        on_training_data = epoch.train.get("adversarial_accuracy", epoch.train.get("clean_accuracy", 0.0))
        shown = {"loss": epoch.train["loss"], "train": on_training_data, **epoch.scores}
        self.progress.epoch(epoch.epoch, shown, epoch.images_per_second)

    def stopped(self, state: TrainState, position: Position) -> None:
        """Save a state from within an epoch."""
        info = {**self._info(int(state.epoch), {}), "position": position._asdict()}
        self.checkpoints.save("last", state, info, evaluators.evaluated(self.objective, state))

    def _info(self, epoch: int, scores: Mapping[str, float]) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "method": self.config.method,
            "scores": dict(scores),
            "selection": self.selection.best,
            "metrics": self.writer.records,
        }


def _announce(config: Config, folder: Path, num_train: int, begin: Begin, devices: int, *, resume: bool) -> None:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(begin.state.params))
    device = jax.devices()[0]
    at = begin.position or Position(int(begin.state.epoch) + 1)
    where = f", from epoch {at.epoch}" + (f", step {at.steps + 1}" if at.steps else "")
    print(
        f"{config.method}: {config.model.name} ({parameters:,} parameters) on {config.dataset.name} ({num_train:,} "
        f"images), {config.epochs} epochs, eps {config.attack.eps:.4g} = {255 * config.attack.eps:.3g}/255, "
        f"{devices} x {device.device_kind}, in {folder}" + (where if resume else ""),
        flush=True,
    )


def entry() -> None:
    """Console entry point."""
    distributed.leave(errors.run(main))


if __name__ == "__main__":
    entry()
