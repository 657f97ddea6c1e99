"""The contracts that all parts build on: pure functions over plain nested dicts of arrays.

A model is a pair of pure functions. An attack sees only a `LogitsFn`. An objective splits a training step into
`perturb` (crafting, which the trainer does not differentiate) and `loss` (which the trainer differentiates).
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
    """A batch of clean examples.

    Attributes:
      images: `[B, H, W, C]` float32 in [0, 1].
      labels: `[B]` int32.
      indices: `[B]` int32, each example's index in its data set; randomness derives from it.
      targets: `[B, K]` float32, probabilities that losses and attacks use in place of labels; None without.
    """

    images: Array  # [B, H, W, C] float32 in [0, 1]
    labels: Array  # [B] int32
    indices: Array  # [B] int32, each example's index in its data set; randomness derives from it
    targets: Array | None = None  # [B, K] float32, probabilities that losses and attacks use in place of labels

    @property
    def target(self) -> Array:
        """The target for losses and attacks: `targets` if given, else the labels."""
        return self.labels if self.targets is None else self.targets


class Variables(NamedTuple):
    """A model's weights, and the state that its forwards update (BatchNorm's running statistics)."""

    params: PyTree
    model_state: PyTree


class Model(Protocol):
    """A pair of pure functions; implementations are hashable and equal when they compute the same thing."""

    def init(self, key: Array, images: Array) -> Variables:
        """Initial `(params, model_state)` for images of this shape `[B, H, W, C]`."""
        ...

    def apply(
        self, params: PyTree, model_state: PyTree, images: Array, *, train: bool, key: Array | None = None
    ) -> tuple[Array, PyTree]:
        """`(logits[B, K], new model_state)`; `train` uses batch statistics and updates the running ones.

        If `draws` is true, the model draws random numbers in training from `key`: one key, or one per image.
        """
        ...


class Attack(Protocol):
    """Crafts adversarial images in pixel space, inside ball and box; no outer gradient flows through them."""

    def __call__(
        self, logits_fn: LogitsFn, images: Array, labels: Array, *, key: Array, indices: Array | None = None
    ) -> Array:
        """Images `[B, H, W, C]` with a high loss, which the attack maximises; randomness derives from `indices[B]`."""
        ...


class Context(NamedTuple):
    """A step's position in training; all fields are traced, so nothing recompiles as training proceeds."""

    key: Array  # this step's typed key
    step: Array  # int32, optimizer steps done before this one
    epoch: Array  # int32, 0-based
    epochs: Array  # int32, number of epochs of the run; schedules and gates are shares of it
    attack: Mapping[str, Any] = {}  # attack options set by wrappers: eps, step_size, ... per example
    steps_per_epoch: Array | int = 1  # int32; with 1, schedules by step change once per epoch
    # (gradient, weights it was computed at, weights) -> weights: a trial step of the run's optimizer, at its current
    # rate, without momentum and without changing the optimizer's state; a pytree. None without an optimizer.
    trial_step: Callable[[PyTree, PyTree, PyTree], PyTree] | None = None
    # Maps an attack to its counting form, for wrappers that need iterates; it returns images, the number of correct
    # iterates, and their total number. None if no wrapper needs it.
    counting: Callable[[Attack], Callable[..., tuple[Array, Array, Array]]] | None = None

    def with_attack(self, **options: Any) -> "Context":
        """The context with these attack options, which override those of outer wrappers."""
        return self._replace(attack={**self.attack, **options})


class Iterates(NamedTuple):
    """Counts of the points that an attack took its steps from."""

    correct: Array  # [B] int32, the number of points that were not a success
    total: Array  # [B] int32, the total number


class AdversarialBatch(NamedTuple):
    """The result of `perturb` for `loss`: the clean batch, its adversarial images and other prepared values.

    Attributes:
      clean: the clean batch.
      images: `[B, H, W, C]`, adversarial; no gradient flows through them.
      extra: values that wrappers pass on from `perturb` (`objectives.Wrapper.hand`).
      model_state: running statistics, if crafting has forwarded in training mode.
      metrics: scalars to log, means over the batch.
      iterates: of the attack, if `context.counting` is set.
    """

    clean: Batch
    images: Array  # [B, H, W, C]; no gradient flows through them
    extra: Mapping[str, PyTree] = {}  # values that wrappers pass on from `perturb` (`objectives.Wrapper.hand`)
    model_state: PyTree | None = None  # running statistics, if crafting has forwarded in training mode
    metrics: Mapping[str, Array] = {}  # scalars to log, means over the batch
    iterates: Iterates | None = None  # of the attack, if `context.counting` is set


class Aux(NamedTuple):
    """Results of `loss` besides the scalar: statistics after its forwards, metrics to log, and the logits.

    Attributes:
      model_state: the running statistics after the forwards.
      metrics: scalars, means over the batch.
      logits: `[B, K]` for each kind of forwarded images, such as "adversarial".
    """

    model_state: PyTree
    metrics: Mapping[str, Array]  # scalars, means over the batch
    logits: Mapping[str, Array] = {}  # [B, K] for each kind of forwarded images, such as "adversarial"


class Objective(Protocol):
    """An adversarial-training method: its model, attack and coefficients, without arrays that change in training.

    `objectives.AttackedObjective` implements everything except `terms`. An objective may also define
    `next_variables(variables, objective_state, context)`, which returns the variables that the next step starts from,
    after `after_step` has run.
    """

    @property
    def model(self) -> Model:
        """The model to train."""
        ...

    @property
    def views(self) -> int:
        """The number of augmented views of each example in a batch, one view after the other: `[views * B]`."""
        ...

    def init(self, variables: Variables, images: Array, *, key: Array) -> PyTree:
        """The method's initial state; only the shape of `images[B, H, W, C]` matters."""
        ...

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Craft the adversarial batch, a constant for `loss`."""
        ...

    def perturb_weights(
        self, params: PyTree, model_state: PyTree, objective_state: PyTree, batch: AdversarialBatch, context: Context
    ) -> PyTree:
        """The weights at which `loss` is differentiated and updated (AWP); most return `params`."""
        ...

    def loss(
        self, params: PyTree, model_state: PyTree, objective_state: PyTree, batch: AdversarialBatch, context: Context
    ) -> tuple[Array, Aux]:
        """The scalar to minimise, and the state after the train-mode forwards in the documented order."""
        ...

    def after_step(
        self, variables: Variables, objective_state: PyTree, batch: AdversarialBatch, aux: Aux, context: Context
    ) -> PyTree:
        """The method's state after an optimizer step; `variables` are those after the step."""
        ...

    def after_epoch(self, objective_state: PyTree, context: Context) -> PyTree:
        """The method's state after the epoch `context.epoch`."""
        ...

    def eval_variables(self, variables: Variables, objective_state: PyTree) -> Variables:
        """The variables to evaluate: the trained weights, or the method's average of them."""
        ...

    def check_part(self, examples: int) -> None:
        """Raise InputError if a batch cannot be split into such parts, because examples depend on each other."""
        ...


class WeightAverage(NamedTuple):
    """Averaged weights that training never continues from, such as EMA and SWA."""

    variables: Variables
    # int32, states averaged so far. Checkpoints use this name; it hides tuple.count, which is not needed here.
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """All values that change during training, as plain nested dicts of arrays."""

    step: Array  # int32, optimizer steps done
    epoch: Array  # int32, epochs done
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    objective_state: PyTree
    anchor: Variables | None = None  # PIAT's previous interpolated weights; None without PIAT
    average: WeightAverage | None = None  # a weight average; None if there is none
    further_averages: Mapping[str, WeightAverage] = dataclasses.field(default_factory=dict)  # more averages, by name

    @property
    def variables(self) -> Variables:
        """The trained weights and running statistics."""
        return Variables(self.params, self.model_state)


EpochEnd = Callable[[TrainState, Array], TrainState]
"""`(state, epoch) -> state`, pure, run once after each epoch; `epoch` is 1-based (int32)."""
