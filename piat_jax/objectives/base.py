"""What the objectives share: how one is declared, how it crafts, and how its forwards and terms make a loss.

A method says which images it forwards in training mode and in which order (`forwards`), and what it makes of their
logits (`terms`). A `Wrapper` changes some of that of the method inside it, so wrappers compose: `AWP(TRADES(...))`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError, check_at_least, check_choice, check_range, check_share
from piat_jax.core.forward import forward_keys, make_logits_fn
from piat_jax.core.labels import OVER, smoothed
from piat_jax.core.registry import Registry
from piat_jax.core.renamed import warn
from piat_jax.core.rng import named_key
from piat_jax.core.types import (
    AdversarialBatch,
    Array,
    Attack,
    Aux,
    Batch,
    Context,
    Iterates,
    LogitsFn,
    Model,
    PyTree,
    Variables,
)

T = TypeVar("T")


def static(**options: Any) -> Any:
    """A field that is part of the compiled program; every other field of an objective is traced."""
    return dataclasses.field(metadata={"static": True}, **options)


def signed(**options: Any) -> Any:
    """A float field that may be negative; all others are refused below 0."""
    return dataclasses.field(metadata={"signed": True}, **options)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(static, signed, dataclasses.field))
def objective(cls: type[T]) -> type[T]:
    """Declare an objective: a frozen dataclass and a pytree, so that its weights can change without recompiling."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, kw_only=True)(cls))


class Outputs(NamedTuple):
    """What `terms` sees: the logits of the step's forwards, and what they were made of."""

    logits: Mapping[str, Array]  # [B, K] by kind of image: "clean", "adversarial" or a wrapper's
    batch: AdversarialBatch
    variables: Variables  # the weights, which are differentiated, and the statistics before the forwards
    target: Array  # [B] or [B, K], what the loss is told: the batch's target, smoothed as the method says


class Terms(NamedTuple):
    """A loss per example in two parts; their mean over the batch is minimised."""

    adversarial: Array  # [B], the part that instance weights multiply (MAIL, GAIRAT, LAS-AT's beta)
    other: Array | float = 0.0  # [B]
    metrics: Mapping[str, Array] = {}  # scalars to log beside loss and accuracy


class _Shared:
    """What methods and wrappers do alike."""

    @property
    def forwards(self) -> tuple[str, ...]:
        """The kinds of images forwarded in training mode, in order; a repeated one only updates statistics."""
        raise NotImplementedError

    def check_fields(self) -> None:
        """Refuse shares of the run outside [0, 1], and negative numbers where a field does not say it may be."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if field.name in ("start", "strong_start"):
                check_share(field.name, getattr(self, field.name))
            elif field.type in ("float", float) and "signed" not in field.metadata:
                check_at_least(field.name, getattr(self, field.name), 0)

    def inputs(self, batch: AdversarialBatch) -> dict[str, Array]:
        """Images by kind, for `forwards` to choose from."""
        raise NotImplementedError

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The loss of each example."""
        raise NotImplementedError

    def target_of(self, batch: Batch, classes: int) -> Array:
        """What the loss is told of each example: its class `[B]`, or the classes' probabilities `[B, K]`."""
        raise NotImplementedError

    def differentiated(self, params: PyTree) -> PyTree:
        """The weights that the loss is computed with; their values stay, and a method may change their gradient."""
        raise NotImplementedError

    def loss(
        self, params: PyTree, model_state: PyTree, objective_state: PyTree, batch: AdversarialBatch, context: Context
    ) -> tuple[Array, Aux]:
        """The mean of `terms` after `forwards`, each of which updates BatchNorm's statistics once."""
        batch = with_fields_of_their_own(batch)
        if in_parts(batch):
            raise InputError("the batch is in parts; take the gradient by objectives.loss_gradient, part by part")
        # Where crafting has forwarded in training mode, its statistics come first.
        model_state = model_state if batch.model_state is None else batch.model_state
        params = self.differentiated(params)
        start, images, logits = Variables(params, model_state), self.inputs(batch), {}
        model: Model = self.model  # type: ignore[attr-defined]
        for kind in self.forwards:
            # The logits of a second forward would equal the first one's, so only its statistics are wanted.
            weights = jax.lax.stop_gradient(params) if kind in logits else params
            keys = forward_keys(model, context.key, batch.clean.indices, kind)
            values, model_state = model.apply(weights, model_state, images[kind], train=True, key=keys)
            logits.setdefault(kind, values)
        target = self.target_of(batch.clean, next(iter(logits.values())).shape[-1])
        terms = self.terms(Outputs(logits, batch, start, target), objective_state, context)
        loss = jnp.mean(terms.adversarial + terms.other)
        metrics = {"loss": loss, **terms.metrics, **batch.metrics}
        for kind, values in logits.items():
            if kind in ("clean", "adversarial"):
                metrics[f"{kind}_accuracy"] = accuracy(values, batch.clean.labels)
        return loss, Aux(model_state, metrics, logits)


@objective
class AttackedObjective(_Shared):
    """Base of the methods whose adversarial batch comes from one attack on the current weights.

    Attributes:
      model: the model that is trained.
      attack: crafts the batch; called as `attack(logits_fn, images, labels, key=..., indices=...)`. Fix its
        hyper-parameters with `bind`.
      attack_batch_norm: BatchNorm while crafting, "eval" (running statistics: SEAT, TRADES, MART and most others) or
        "train" (batch statistics: robust_overfitting, AWP). Crafting never updates the statistics; the codes that
        attack in train mode do let every attack step update them.
      label_smoothing: s in [0, 1], how much of each target the loss spreads over classes; the attack is told the label.
      smoothing_over: "others", where the label keeps 1 - s and the other K - 1 classes share s, or "all" K classes, as
        PyTorch's label_smoothing has it.
    """

    model: Model = static()
    attack: Attack
    attack_batch_norm: str = static(default="eval")
    label_smoothing: float = static(default=0.0)
    smoothing_over: str = static(default="others")

    # What the method's paper sets differently from the attack's own defaults.
    attack_options: ClassVar[Mapping[str, Any]] = {}
    # Whether there are adversarial images; most wrappers are about them.
    attacks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if inspect.isfunction(self.attack):
            # A plain function could be no leaf of a pytree.
            object.__setattr__(self, "attack", bind(self.attack))
        check_choice("attack_batch_norm", self.attack_batch_norm, ("eval", "train"))
        check_range("label_smoothing", self.label_smoothing, 0, 1)
        check_choice("smoothing_over", self.smoothing_over, OVER)
        self.check_fields()

    @property
    def views(self) -> int:
        """One augmentation of each example."""
        return 1

    @property
    def forwards(self) -> tuple[str, ...]:
        """Clean, then adversarial."""
        return ("clean", "adversarial")

    def init(self, variables: Variables, images: Array, *, key: Array) -> PyTree:
        """No state between steps."""
        return ()

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """The batch under the attack's own loss (cross-entropy)."""
        return self.craft(variables, batch, context)

    def perturb_weights(
        self, params: PyTree, model_state: PyTree, objective_state: PyTree, batch: AdversarialBatch, context: Context
    ) -> PyTree:
        """The weights themselves."""
        return params

    def inputs(self, batch: AdversarialBatch) -> dict[str, Array]:
        """The clean and the adversarial images."""
        return {"clean": batch.clean.images, "adversarial": batch.images}

    def after_step(
        self, variables: Variables, objective_state: PyTree, batch: AdversarialBatch, aux: Aux, context: Context
    ) -> PyTree:
        """No state, no change."""
        return objective_state

    def next_variables(self, variables: Variables, objective_state: PyTree, context: Context) -> Variables:
        """The trained weights."""
        return variables

    def after_epoch(self, objective_state: PyTree, context: Context) -> PyTree:
        """No state, no change."""
        return objective_state

    def eval_variables(self, variables: Variables, objective_state: PyTree) -> Variables:
        """The trained weights."""
        return variables

    def check_part(self, examples: int) -> None:
        """Each example's loss is its own, so any part will do."""

    def target_of(self, batch: Batch, classes: int) -> Array:
        """The batch's target, smoothed."""
        if not self.label_smoothing:
            return batch.target
        return smoothed(batch.target, classes, self.label_smoothing, self.smoothing_over)

    def differentiated(self, params: PyTree) -> PyTree:
        """The weights themselves."""
        return params

    def logits_fn(self, variables: Variables) -> LogitsFn:
        """What the attack sees of the model."""
        return make_logits_fn(self.model, variables, train=self.attack_batch_norm == "train")

    def craft(self, variables: Variables, batch: Batch, context: Context, **attack_options: Any) -> AdversarialBatch:
        """Run the attack; a wrapper's `context.attack`, then `attack_options`, override what it was bound with.

        What a wrapper has in `context.attack` as `added_loss`, a loss like any other, is added to the attack's own.
        """
        arguments = (self.logits_fn(variables), batch.images, batch.target)
        options = {
            **context.attack,
            **attack_options,
            "key": named_key(context.key, "attack"),
            "indices": batch.indices,
        }
        if (added := options.pop("added_loss", None)) is not None:
            own = options.get("loss", getattr(self.attack, "options", {}).get("loss", losses.cross_entropy))
            options["loss"] = lambda logits, labels: own(logits, labels) + added(logits, labels)
        if context.counting is None:
            return AdversarialBatch(batch, jax.lax.stop_gradient(self.attack(*arguments, **options)))
        images, *iterates = context.counting(self.attack)(*arguments, **options)
        return AdversarialBatch(batch, jax.lax.stop_gradient(images), iterates=Iterates(*iterates))


class Resources(Protocol):
    """What the fields of a wrapper may name in a config, and whoever reads the config can get."""

    def network(self, name: str, num_classes: int) -> Model:
        """The network of this name, with so many outputs."""
        ...

    def teacher(self, field: str, folder: str) -> Variables:
        """Weights and statistics of the run in `folder`, which the config has under `field`."""
        ...

    @property
    def examples(self) -> int:
        """How many training examples there are, generated ones among them."""
        ...

    @property
    def classes(self) -> int:
        """How many classes they have."""
        ...


class WrapperState(NamedTuple):
    """A wrapper's state between steps."""

    own: PyTree  # what `init_own` returns: a NamedTuple of the wrapper's, or ()
    inner: PyTree  # of the method inside

    def __getitem__(self, key: Any) -> Any:  # type: ignore[override]
        """By position, as of any tuple; by name for one release more."""
        if not isinstance(key, str):
            return tuple.__getitem__(self, key)
        warn(f'objective_state["{key}"]', f"objective_state.{key}")
        return getattr(self, key)


@objective
class Wrapper(_Shared):
    """Base of what changes another method: every hook is handed to `inner` until a subclass overrides it.

    The state is a `WrapperState`; a wrapper with a state of its own overrides `init_own` and what changes it. What it
    prepares while crafting it hands on to its `terms` and `after_step` with `hand` and `handed`.

    Attributes:
      inner: the method inside, itself wrapped or not; given first, without its name: `AWP(TRADES(...), gamma=0.005)`.
    """

    inner: Any = dataclasses.field(kw_only=False)

    # For configs: what the wrapper's paper sets differently of the attack, of the method inside, and of the wrapper
    # itself. The keys of the last two are names of what is inside: "pgd_at", or for the objective's options all that
    # must be there, "pgd_at+awp".
    attack_options: ClassVar[Mapping[str, Any]] = {}
    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    # Fields that a config has as text, with their defaults there; `from_fields` makes objects of them.
    text_fields: ClassVar[Mapping[str, str]] = {}
    # Those of them that are folders of runs, each with the method that such a run is usually trained with.
    teachers: ClassVar[Mapping[str, str]] = {}
    default_inner: ClassVar[str] = "pgd_at"
    needs_attack: ClassVar[bool] = True
    # What keeps two wrappers apart: one multiplies the whole loss, one sets radius and step size of every example, one
    # makes other images out of the batch.
    rescales: ClassVar[bool] = False
    chooses_attack: ClassVar[bool] = False
    changes_images: ClassVar[bool] = False

    @classmethod
    def from_fields(cls, inner: Any, fields: Mapping[str, Any], resources: Resources) -> Self:
        """The wrapper around `inner` with the fields of a config; those of `text_fields` are text there."""
        return cls(inner, **fields)

    def __post_init__(self) -> None:
        self.check_fields()
        if self.needs_attack and not self.inner.attacks:
            raise InputError(f"{type(self).__name__} needs adversarial images, and the method inside makes none")

    @property
    def attacks(self) -> bool:
        """As inside."""
        return self.inner.attacks

    @property
    def model(self) -> Model:
        """The model that is trained."""
        return self.inner.model

    @property
    def views(self) -> int:
        """As inside."""
        return self.inner.views

    @property
    def replays(self) -> int:
        """How often in a row each batch is taken: as inside, where it is said."""
        return getattr(self.inner, "replays", 1)

    @property
    def forwards(self) -> tuple[str, ...]:
        """As inside."""
        return self.inner.forwards

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> PyTree:
        """No state of its own."""
        return ()

    def init(self, variables: Variables, images: Array, *, key: Array) -> WrapperState:
        """The wrapper's state and that of the method inside."""
        own = self.init_own(variables, images, key=named_key(key, type(self).__name__))
        return WrapperState(own, self.inner.init(variables, images, key=key))

    def hand(self, batch: AdversarialBatch, value: PyTree) -> AdversarialBatch:
        """The batch with something of this wrapper's, for `handed` to take out again."""
        return batch._replace(extra={**batch.extra, type(self).__name__: value})

    def handed(self, batch: AdversarialBatch) -> Any:
        """What this wrapper has handed on in its `perturb`."""
        return batch.extra[type(self).__name__]

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """As inside."""
        return self.inner.perturb(variables, objective_state.inner, batch, context)

    def perturb_weights(
        self, params: PyTree, model_state: PyTree, objective_state: PyTree, batch: AdversarialBatch, context: Context
    ) -> PyTree:
        """As inside, where what is outside adds nothing to the loss."""
        return self.inner.perturb_weights(params, model_state, objective_state.inner, batch, context)

    def inputs(self, batch: AdversarialBatch) -> dict[str, Array]:
        """As inside."""
        return self.inner.inputs(batch)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """As inside."""
        return self.inner.terms(outputs, objective_state.inner, context)

    def target_of(self, batch: Batch, classes: int) -> Array:
        """As inside."""
        return self.inner.target_of(batch, classes)

    def differentiated(self, params: PyTree) -> PyTree:
        """As inside."""
        return self.inner.differentiated(params)

    def after_step(
        self, variables: Variables, objective_state: WrapperState, batch: AdversarialBatch, aux: Aux, context: Context
    ) -> WrapperState:
        """The state inside after the step; the own one as it was."""
        inner = self.inner.after_step(variables, objective_state.inner, batch, aux, context)
        return objective_state._replace(inner=inner)

    def next_variables(self, variables: Variables, objective_state: WrapperState, context: Context) -> Variables:
        """As inside."""
        return self.inner.next_variables(variables, objective_state.inner, context)

    def after_epoch(self, objective_state: WrapperState, context: Context) -> WrapperState:
        """The state inside after the epoch; the own one as it was."""
        return objective_state._replace(inner=self.inner.after_epoch(objective_state.inner, context))

    def eval_variables(self, variables: Variables, objective_state: PyTree) -> Variables:
        """As inside."""
        return self.inner.eval_variables(variables, objective_state.inner)

    def check_part(self, examples: int) -> None:
        """As inside."""
        self.inner.check_part(examples)


METHODS: Registry[type[AttackedObjective]] = Registry("method")
"""The objectives, which are whole methods."""

WRAPPERS: Registry[type[Wrapper]] = Registry("wrapper")
"""What goes around any of them, and around each other."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(static, signed, dataclasses.field))
def method(name: str, *, title: str = "", summary: str = "", paper: str = "") -> Callable[[type[T]], type[T]]:
    """Declare an `AttackedObjective` as `objective` does, and let configs call it `name`.

    Args:
      name, title, summary, paper: as `Registry.register` takes them.

    Raises:
      InputError: the class is no `AttackedObjective`, or the name is taken.

    >>> @method("plain", summary="Cross-entropy on adversarial images.")
    ... class Plain(AttackedObjective):
    ...     weight: float = 1.0
    >>> METHODS.pop("plain") is Plain, Plain(model=None, attack=None).weight
    (True, 1.0)
    """
    return _declared(METHODS, AttackedObjective, name, title, summary, paper)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(static, signed, dataclasses.field))
def wrapper(name: str, *, title: str = "", summary: str = "", paper: str = "") -> Callable[[type[T]], type[T]]:
    """Declare a `Wrapper` as `objective` does, and let configs call it `name`: its config group.

    Args:
      name, title, summary, paper: as `Registry.register` takes them.

    Raises:
      InputError: the class is no `Wrapper`, or the name is taken.
    """
    return _declared(WRAPPERS, Wrapper, name, title, summary, paper)


def _declared(
    registry: Registry[Any], base: type, name: str, title: str, summary: str, paper: str
) -> Callable[[type[T]], type[T]]:
    def declare(cls: type[T]) -> type[T]:
        if not issubclass(cls, base):
            raise InputError(f"{registry.kind} {name!r}: {cls.__name__} is no {base.__name__}; make it a subclass")
        return registry.register(name, title=title, summary=summary, paper=paper)(objective(cls))

    return declare


def in_parts(batch: AdversarialBatch) -> bool:
    """Whether the batch comes in parts, each array of examples `[n, B / n, ...]` (objectives/parts.py)."""
    return batch.clean.labels.ndim > 1


def with_fields_of_their_own(batch: AdversarialBatch) -> AdversarialBatch:
    """The batch where a wrapper hands statistics and metrics on as an earlier release did, in `extra`."""
    for name in ("model_state", "metrics"):
        if name in batch.extra:
            warn(f'AdversarialBatch.extra["{name}"]', f"AdversarialBatch.{name}")
    metrics = {**batch.metrics, **batch.extra.get("metrics", {})}
    return batch._replace(metrics=metrics, model_state=batch.extra.get("model_state", batch.model_state))


def reached(share: Array | float, context: Context) -> Array:
    """Whether this share of the run's epochs has passed: 0.5 of 200 is reached in epoch 100 (0-based).

    >>> reached(105 / 200, Context(jax.random.key(0), jnp.int32(0), jnp.int32(105), jnp.int32(200))).item()
    True
    """
    # Not weakly typed, so that it can be kept in a state: one that changes type after the first step compiles anew.
    epochs = jnp.asarray(context.epochs, jnp.float32)
    return (context.epoch >= jnp.round(share * epochs).astype(jnp.int32)).astype(bool)


def accuracy(logits: Array, labels: Array) -> Array:
    """Share of correct examples in the batch."""
    return jnp.mean(losses.correct(logits, labels).astype(jnp.float32))
