"""Train an experiment into a run's folder, with all error handling."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError, SavedAndStopped
from piat_jax.core.memory import peak_memory
from piat_jax.core.multihost import any_of_all, is_first, on_first
from piat_jax.core.sharding import put_state
from piat_jax.core.types import EpochEnd, Objective, TrainState, Variables
from piat_jax.experiment import hooks, notes
from piat_jax.experiment.data import describe_data, in_memory, load_data, load_extra, place_data
from piat_jax.experiment.evaluation import evaluated, evaluated_beside, monitor
from piat_jax.experiment.experiment import Experiment
from piat_jax.experiment.pictures import Picture, painter
from piat_jax.experiment.run import DIVERGED, Run
from piat_jax.experiment.selection import Selection, how_measured, resumed
from piat_jax.interop import load_weights
from piat_jax.loggers import MetricsWriter, RunInfo, Trackers, check_installed, has_tensorboard
from piat_jax.models import LinenModel
from piat_jax.training import (
    EpochRecord,
    Examples,
    Position,
    Recipe,
    StopSignals,
    StopTraining,
    TrainingDivergedError,
    fit,
    init_state,
)
from piat_jax.training.streaming import Stream


class Started(NamedTuple):
    """A run that is about to start."""

    experiment: Experiment
    run: Run
    parameters: int  # number of the network's parameters
    examples: int  # that are trained on
    steps: int  # per epoch
    devices: int
    at: Position  # where it begins
    resumed: bool


class Listener:
    """Receives training's progress; these methods do nothing."""

    def say(self, text: str) -> None:
        """Called with a line about the preparation of training."""

    def note(self, text: str) -> None:
        """Called with a note, such as a setting that may be unintended."""

    def started(self, begun: Started) -> None:
        """Called when training begins."""

    def chunk(self, epoch: int, done: int, total: int) -> None:
        """Called with the number of steps done within an epoch."""

    def epoch(self, epoch: int, values: Mapping[str, float], images_per_second: float) -> None:
        """Called after an epoch, with the loss, and accuracies in [0, 1]."""

    def closed(self) -> None:
        """Called when training has ended, for any reason."""


class Setup(NamedTuple):
    """The objects for training."""

    objective: Objective
    recipe: Recipe
    examples: Examples | Stream
    key: jax.Array
    epoch_end: list[EpochEnd]
    evaluate: Callable[[TrainState, int], Mapping[str, float]]
    paint: Callable[[Variables], Picture] | None  # for the loggers


class Begin(NamedTuple):
    """The state with which a run begins or resumes."""

    state: TrainState
    selection: Selection
    position: Position | None = None  # within an epoch; None between two
    records: Sequence[Mapping[str, Any]] = ()  # of the completed epochs


def train(
    experiment: Experiment, run: Run, *, resume: bool = False, overwrite: bool = False, listener: Listener | None = None
) -> None:
    """Train an experiment into the folder of a run; all checks come before the first write.

    Each epoch trains the weights w on adversarial examples. Then the hooks change them (PIAT: `w <- lambda_n w' +
    (1 - lambda_n) w`, where w' are the weights at the epoch's start). Then they are evaluated and saved.

    Args:
      experiment: what to train.
      run: where to train. If the folder holds a run, `resume` or `overwrite` is needed.
      resume: continue from the newest checkpoint.
      overwrite: replace the run.
      listener: receives the progress.

    Raises:
      InputError: the experiment, its data or the folder is invalid, or training diverged.
      SavedAndStopped: SIGTERM or Ctrl-C; the state was saved, and `resume` continues from it.
    """
    listener = listener or Listener()
    check = functools.partial(run.check_free, experiment, resume=resume, overwrite=overwrite)
    on_first(check)
    on_first(functools.partial(check_installed, experiment.log.to))
    with contextlib.ExitStack() as stack:
        signals = StopSignals()
        setup, fresh, described = _set_up(experiment, run, signals, listener, resume=resume)
        on_first(lambda: stack.enter_context(run.locked(listener.note)))
        on_first(check)  # again, in case another process came in between
        stack.enter_context(signals)
        begin = (
            _resume(experiment, run, fresh, listener) if resume else Begin(fresh, Selection(how_measured(experiment)))
        )
        started = _started(experiment, run, setup, begin, resume=resume)
        on_first(functools.partial(_notice, started, begin.selection, listener))
        on_first(lambda: run.open(experiment, overwrite=overwrite, data=described))
        stream = setup.examples if isinstance(setup.examples, Stream) else None
        recorder = Recorder(started, setup, begin, listener)
        listener.started(started)
        finished = False
        try:
            fit(
                begin.state,
                setup.objective,
                setup.examples,
                key=setup.key,
                recipe=setup.recipe,
                epochs=experiment.epochs,
                epoch_end=setup.epoch_end,
                evaluate=signals.interruptible(setup.evaluate),
                on_epoch=recorder,
                on_chunk=listener.chunk,
                steps_per_chunk=experiment.log.steps_per_chunk,
                position=begin.position,
                should_stop=signals.requested,
            )
            run.checkpoints.wait()
            finished = True
        except TrainingDivergedError as error:
            recorder.stopped(error.state, error.position)
            recorder.trackers.text("diverged", str(error), error.position.epoch)
            on_first(functools.partial(run.write_diverged, error.report))
            raise InputError(
                f"{error}. The state before that step was saved; {DIVERGED} in {str(run.folder)!r} has the images. "
                "Give --resume --config.nonfinite=skip to continue without such steps"
            ) from error
        except StopTraining as stop:
            recorder.stopped(stop.state, stop.position)
            raise SavedAndStopped(
                f"saved in epoch {stop.position.epoch} after {stop.position.steps} of {started.steps} steps; "
                f"the same command with --resume continues from there in {run.folder}"
            ) from None
        finally:
            listener.closed()
            recorder.trackers.close(finished=finished)
            if stream:
                stream.close()


def _set_up(
    experiment: Experiment, run: Run, signals: StopSignals, listener: Listener, *, resume: bool
) -> tuple[Setup, TrainState, dict[str, Any]]:
    """Build the objects for training, the state before its first step, and the description of its data."""
    hold_out_how = run.hold_out_how() if resume else "by class"
    data, training_split, watched = load_data(experiment, hold_out_how=hold_out_how)
    extra = load_extra(experiment, training_split, data.num_classes)
    for line in notes.unpacked(experiment, extra):
        listener.note(line)
    described = describe_data(training_split, watched, extra, hold_out_how)
    if resume:
        on_first(functools.partial(run.check_data, described))
    watched = in_memory(watched, listener.note)
    net = experiment.build_model(data.num_classes)
    image_shape = training_split.images.shape[1:]
    own, num_extra = len(training_split.labels), [len(source.labels) for source in extra]
    objective = experiment.build_objective(net, image_shape, examples=own + sum(num_extra))
    recipe = experiment.build_recipe(own, net=net, image_shape=image_shape, num_extra=num_extra)
    key = jax.random.key(experiment.seed)

    examples = place_data(experiment, training_split, extra)
    images = training_split.images if isinstance(examples, Stream) else examples.images
    begun = resume and "last" in run.checkpoints
    pretrained = None if begun else _pretrained(experiment, net, image_shape, listener)
    batch = jnp.zeros((experiment.batch_size * objective.views, *image_shape))
    state = init_state(objective, recipe.optimizer, batch, key=key, variables=pretrained)
    state = put_state(hooks.start(experiment, state), recipe.mesh, split=recipe.split_state)
    evaluate = monitor(experiment, objective, data.num_classes, watched, on_block=signals.check, note=listener.note)
    epoch_end = hooks.epoch_end(experiment, net, images, data.num_classes, watched)
    paint = None
    if experiment.log.images and (experiment.log.tensorboard or experiment.log.to):
        paint = painter(experiment, experiment.build_model(data.num_classes, dtype="float32"), watched)
    return Setup(objective, recipe, examples, key, epoch_end, evaluate, paint), state, described


def _pretrained(
    experiment: Experiment, net: LinenModel, image_shape: Sequence[int], listener: Listener
) -> Variables | None:
    """The weights in `model.weights`, adapted to the network; None if the run starts from random ones."""
    weights = experiment.model.weights
    if not weights:
        return None
    try:
        loaded = load_weights(weights, net, image_shape, adapt=True)
    except InputError as error:
        raise InputError(f"model.weights: {error}") from error
    if loaded.model != net:
        mean, std = loaded.model.module.mean, loaded.model.module.std
        raise InputError(
            f"model.weights={weights!r} expect images normalised by mean={mean}, std={std}; "
            "set config.model.mean and config.model.std to these"
        )
    listener.say(f"from {weights}: {loaded.report}")
    return loaded.variables


def _resume(experiment: Experiment, run: Run, fresh: TrainState, listener: Listener) -> Begin:
    """Load the newest readable checkpoint, or begin with a fresh state if none was saved yet."""
    restored = run.checkpoints.restore(fresh)
    if restored is None:
        if run.metrics():
            listener.note(f"{run.folder} has no checkpoint yet; starting from the beginning")
        return Begin(fresh, Selection(how_measured(experiment)))
    for line in restored.damaged:
        listener.note(line)
    position = Position(**restored.info["position"]) if restored.info.get("position") else None
    done = position.epoch - 1 if position else int(restored.state.epoch)
    if done + bool(position) > experiment.epochs:
        raise InputError(
            f"epochs={experiment.epochs} is less than the {done}{' and a part' if position else ''} that the run in "
            f"{str(run.folder)!r} has done; give at least {done + bool(position)}"
        )
    # A checkpoint has all earlier metrics, even if their file is damaged; checkpoints of older versions lack them.
    known = restored.info["metrics"] if "metrics" in restored.info else run.metrics()
    records = [record for record in known if record["epoch"] <= done]
    return Begin(restored.state, resumed(experiment, run, restored, records), position, records)


def _started(experiment: Experiment, run: Run, setup: Setup, begin: Begin, *, resume: bool) -> Started:
    """The description of the run that is about to start."""
    examples, mesh = len(setup.examples.labels), setup.recipe.mesh
    return Started(
        experiment,
        run,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(begin.state.params)),
        examples=examples,
        steps=experiment.steps(examples),
        devices=1 if mesh is None else mesh.size,
        at=begin.position or Position(int(begin.state.epoch) + 1),
        resumed=resume,
    )


def _notice(started: Started, selection: Selection, listener: Listener) -> None:
    """Note settings that may be unintended."""
    experiment, run = started.experiment, started.run
    told = (selection.note(), *notes.shifted_crops(experiment), *notes.old_averages(experiment, started.steps))
    for line in filter(None, told):
        listener.note(line)
    if started.resumed and not run.exists:
        listener.note(f"{run.folder} holds no run to resume; a new run starts there")
    rest = experiment.optimizer.rest
    last = rest["lr_epochs"][-1] if "lr_epochs" in rest and rest["lr_unit"] == "epochs" else experiment.epochs
    if last != experiment.epochs:
        listener.note(
            f"the learning-rate schedule ends at epoch {last:g} and the run has {experiment.epochs} epochs; "
            "--config.optimizer.lr_epochs and lr_values move its knots"
        )
    if started.resumed and run.exists and (before := run.experiment().epochs) != experiment.epochs:
        listener.note(
            f"the run had {before} epochs and has {experiment.epochs} now; a method's schedules that are fractions of "
            "the run (a start, a ramp) follow the new number from here on"
        )
    if experiment.log.to:
        for line in notes.no_tensorboard(experiment.log.tensorboard):
            listener.note(line)


def _loggers(experiment: Experiment) -> tuple[str, ...]:
    """The names of the loggers that are used besides the run's files."""
    wanted = experiment.log.tensorboard and has_tensorboard()
    return (*(("tensorboard",) if wanted else ()), *experiment.log.to)


class Recorder:
    """The end of an epoch, as `fit`'s `on_epoch`: log, save and report."""

    def __init__(
        self,
        started: Started,
        setup: Setup,
        begin: Begin,
        listener: Listener,
    ):
        self.notes_of_data = setup.examples.notes if isinstance(setup.examples, Stream) else lambda: []
        self.experiment, self.checkpoints = started.experiment, started.run.checkpoints
        self.objective, self.selection, self.listener = setup.objective, begin.selection, listener
        self.schedule, self.paint = self.experiment.build_rate(started.steps).learning_rate, setup.paint
        self.writer = MetricsWriter(started.run.folder, records=begin.records)
        about = RunInfo(
            folder=started.run.folder,
            config=self.experiment.plain(),
            resumed=started.resumed,
            epochs_done=len(begin.records) and begin.records[-1]["epoch"],
            note=listener.note,
        )
        self.trackers = Trackers(_loggers(self.experiment) if is_first() else (), about)

    def __call__(self, state: TrainState, epoch: EpochRecord) -> None:
        """Log, save and report an epoch."""
        step = int(state.step)
        self.checkpoints.check()
        record = {
            "epoch": epoch.epoch,
            "step": step,
            "learning_rate": float(jnp.asarray(self.schedule(step - 1))),
            **{f"train_{name}": value for name, value in epoch.train.items()},
            **epoch.scores,
            **({"averaged_states": int(state.average.count)} if state.average else {}),
            **{f"averaged_states_{name}": int(kept.count) for name, kept in state.further_averages.items()},
            "images_per_second": round(epoch.images_per_second, 2),
            "train_seconds": round(epoch.train_seconds, 4),
            "evaluate_seconds": round(epoch.evaluate_seconds, 4),
            **({"peak_memory_bytes": peak} if (peak := peak_memory()) else {}),
        }
        self.writer.write(record)
        self.trackers.write(record, epoch.epoch)
        best = self.selection.take(epoch.epoch, epoch.scores)
        every, last = self.experiment.checkpoint.every_epochs, self.experiment.epochs
        if best or epoch.epoch % every == 0 or epoch.epoch == last:
            info, beside = self._info(epoch.epoch, epoch.scores), evaluated_beside(state)
            self.checkpoints.save_async(state, info, evaluated(self.objective, state), beside, best=best)
        on_training_data = epoch.train.get("adversarial_accuracy", epoch.train.get("clean_accuracy", 0.0))
        told = {"loss": epoch.train["loss"], "train": on_training_data, **epoch.scores}
        self.listener.epoch(epoch.epoch, told, epoch.images_per_second)
        for line in self.notes_of_data():
            self.listener.note(line)
        # All processes draw the picture, as each has a part of the devices; the first process logs it.
        if self.paint and epoch.scores and any_of_all(bool(self.trackers)):
            shown = self.paint(evaluated(self.objective, state))
            self.trackers.images("examples", shown.image, shown.caption, epoch.epoch)

    def stopped(self, state: TrainState, position: Position) -> None:
        """Save a state in the middle of an epoch."""
        info = {**self._info(int(state.epoch), {}), "position": position._asdict()}
        self.checkpoints.save("last", state, info, evaluated(self.objective, state), evaluated_beside(state))

    def _info(self, epoch: int, scores: Mapping[str, float]) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "method": str(self.experiment.method),
            "scores": dict(scores),
            "selection": self.selection.best,
            "metrics": self.writer.records,
        }
