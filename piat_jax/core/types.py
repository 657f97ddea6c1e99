"""The contracts every part builds on: pure functions over plain nested dicts of arrays.

A model is a pair of pure functions, an attack sees only a `LogitsFn`, and an objective splits a training step into
`perturb` (crafting: nothing is differentiated by the trainer) and `loss` (differentiated by the trainer).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
PyTree = Any
LogitsFn = Callable[[Array], Array]
"""Images `[B, H, W, C]` in `[0, 1]` -> logits `[B, K]`; closes over weights, normalisation and BatchNorm mode."""
LossFn = Callable[[Array, Array], Array]
"""`(logits[B, K], labels[B]) -> [B]`, one value per example; an attack maximises it."""


class Batch(NamedTuple):
    """A batch of clean examples."""

    images: Array  # [B, H, W, C] float32 in [0, 1]
    labels: Array  # [B] int32
    indices: Array  # [B] int32, each example's index in its data set: randomness derives from it
    targets: Array | None = None  # [B, K] float32, probabilities that losses and attacks are told in place of labels

    @property
    def target(self) -> Array:
        """What losses and attacks are told: `targets`, or the labels where there are none."""
        return self.labels if self.targets is None else self.targets


class Variables(NamedTuple):
    """What a model needs to run: weights and the state its forwards update (BatchNorm statistics)."""

    params: PyTree
    model_state: PyTree


class Model(Protocol):
    """A pair of pure functions; implementations are hashable and equal when they compute the same thing."""

    def init(self, key: Array, images: Array) -> Variables:
        """Fresh `(params, model_state)` for images of this shape `[B, H, W, C]`."""
        ...

    def apply(
        self, params: PyTree, model_state: PyTree, images: Array, *, train: bool, key: Array | None = None
    ) -> tuple[Array, PyTree]:
        """`(logits[B, K], new model_state)`; `train` uses batch statistics and updates the running ones.

        A model with a true `draws` draws at random in training, from `key`: one, or one for each image.
        """
        ...


class Attack(Protocol):
    """Adversarial images in pixel space, inside the ball and the box, constant to any outer gradient."""

    def __call__(
        self, logits_fn: LogitsFn, images: Array, labels: Array, *, key: Array, indices: Array | None = None
    ) -> Array:
        """Images `[B, H, W, C]` that (try to) maximise the attack's loss; `indices[B]` key the randomness."""
        ...


class Context(NamedTuple):
    """Where in training a step is; all of it is traced, so nothing recompiles as training goes on."""

    key: Array  # this step's typed key
    step: Array  # int32, optimizer steps done before this one
    epoch: Array  # int32, 0-based
    epochs: Array  # int32, how many the whole run has: schedules and gates are shares of it
    attack: Mapping[str, Any] = {}  # what a wrapper sets of the attack's options: eps, step_size, ... per example
    steps_per_epoch: Array | int = 1  # int32; with 1, schedules by step move once an epoch
    # (gradient, weights it was taken at, weights) -> weights: a trial step of the run's optimizer, at its current rate
    # and without momentum, which leaves no trace; a pytree. None where there is no optimizer.
    trial_step: Callable[[PyTree, PyTree, PyTree], PyTree] | None = None
    # From an attack to its form that counts, for wrappers that look at iterates; it returns images, how many iterates
    # were correct, and of how many. None where nobody asks.
    counting: Callable[[Attack], Callable[..., tuple[Array, Array, Array]]] | None = None

    def with_attack(self, **options: Any) -> "Context":
        """The context with these of the attack's options set, over what a wrapper outside may have set."""
        return self._replace(attack={**self.attack, **options})


class Iterates(NamedTuple):
    """How the points fared that an attack took its steps from."""

    correct: Array  # [B] int32, how many of them were no success
    total: Array  # [B] int32, of how many


class AdversarialBatch(NamedTuple):
    """What `perturb` hands to `loss`: the clean batch, its adversarial images and whatever else was prepared."""

    clean: Batch
    images: Array  # [B, H, W, C], already a constant
    extra: Mapping[str, PyTree] = {}  # what wrappers hand on from `perturb` (`objectives.Wrapper.hand`)
    model_state: PyTree | None = None  # the statistics, where crafting has forwarded in training mode
    metrics: Mapping[str, Array] = {}  # scalars to log, means over the batch
    iterates: Iterates | None = None  # of the attack, where `context.counting` asked


class Aux(NamedTuple):
    """What `loss` returns beside the scalar: statistics after its forwards, metrics to log, and the logits."""

    model_state: PyTree
    metrics: Mapping[str, Array]  # scalars, means over the batch
    logits: Mapping[str, Array] = {}  # [B, K] of each kind of image that was forwarded, such as "adversarial"


class Objective(Protocol):
    """One adversarial-training method. Holds its model, attack and weights; carries no arrays that change.

    `objectives.AttackedObjective` has all of it but `terms`. One that also has `next_variables(variables,
    objective_state, context)` gives the variables that the next step starts from, once `after_step` has seen this one.
    """

    @property
    def model(self) -> Model:
        """The model that is trained."""
        ...

    @property
    def views(self) -> int:
        """How many augmentations of each example a batch holds, one after the other: `[views * B]`."""
        ...

    def init(self, variables: Variables, images: Array, *, key: Array) -> PyTree:
        """The method's own state between steps; `images[B, H, W, C]` give the shape only."""
        ...

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Craft the adversarial batch. Its result is a constant to `loss`."""
        ...

    def perturb_weights(
        self, params: PyTree, model_state: PyTree, objective_state: PyTree, batch: AdversarialBatch, context: Context
    ) -> PyTree:
        """The weights at which `loss` is differentiated and updated (AWP); most return `params`."""
        ...

    def loss(
        self, params: PyTree, model_state: PyTree, objective_state: PyTree, batch: AdversarialBatch, context: Context
    ) -> tuple[Array, Aux]:
        """The scalar to minimise and the state after its train-mode forwards, run in the documented order."""
        ...

    def after_step(
        self, variables: Variables, objective_state: PyTree, batch: AdversarialBatch, aux: Aux, context: Context
    ) -> PyTree:
        """The method's state after an optimizer step, which led to `variables`."""
        ...

    def after_epoch(self, objective_state: PyTree, context: Context) -> PyTree:
        """The method's state after the epoch `context.epoch`."""
        ...

    def eval_variables(self, variables: Variables, objective_state: PyTree) -> Variables:
        """What the method evaluates: the trained weights, or its average of them."""
        ...

    def check_part(self, examples: int) -> None:
        """Raise InputError where a batch cannot be taken in parts of so many examples, because they see each other."""
        ...


class WeightAverage(NamedTuple):
    """Averaged weights that training never goes on from: EMA, SWA and their kind."""

    variables: Variables
    # int32, states averaged so far. Checkpoints know it by this name; tuple.count, which it hides, is of no use here.
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that changes during training, as plain nested dicts of arrays."""

    step: Array  # int32, optimizer steps done
    epoch: Array  # int32, epochs done
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    objective_state: PyTree
    anchor: Variables | None = None  # PIAT's previous interpolated weights; None where nothing is interpolated
    average: WeightAverage | None = None  # an average beside the weights; None where none is kept
    further_averages: Mapping[str, WeightAverage] = dataclasses.field(default_factory=dict)  # more of them, by name

    @property
    def variables(self) -> Variables:
        """The weights and statistics that are trained."""
        return Variables(self.params, self.model_state)


EpochEnd = Callable[[TrainState, Array], TrainState]
"""`(state, epoch) -> state`, pure, run once after each epoch; `epoch` is 1-based (int32)."""
