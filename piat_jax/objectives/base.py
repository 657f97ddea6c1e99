"""The objectives' base: how to declare one, how it crafts, and how its forwards and terms make a loss.

A method declares which images it forwards in training mode, in order (`forwards`), and how their logits become a loss
per example (`terms`). A `Wrapper` changes some of this for the method inside it, so wrappers compose:
`AWP(TRADES(...))`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.bound import bind
from piat_jax.core.checks import (
    InputError,
    a_,
    check_at_least,
    check_choice,
    check_range,
    check_share,
)
from piat_jax.core.forward import forward_keys, make_logits_fn
from piat_jax.core.labels import OVER, smoothed
from piat_jax.core.registry import Registry, check_parentheses
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
from piat_jax.objectives.terms import Forwarded, Outputs, Terms, checked_forwards, checked_terms

T = TypeVar("T")


def static(**options: Any) -> Any:
    """A field that is compiled into the program; all other fields of an objective are traced."""
    return dataclasses.field(metadata={"static": True}, **options)


def signed(**options: Any) -> Any:
    """A float field that may be negative; other float fields must be at least 0."""
    return dataclasses.field(metadata={"signed": True}, **options)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(static, signed, dataclasses.field))
def objective(cls: type[T]) -> type[T]:
    """Declare an objective: a frozen dataclass and pytree, so that its coefficients can change without recompiling."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, kw_only=True)(cls))


class _Shared:
    """Code that methods and wrappers share."""

    @property
    def forwards(self) -> tuple[str, ...]:
        """The kinds of images forwarded in training mode, in order; a repeated kind only updates running statistics."""
        raise NotImplementedError

    def check_fields(self) -> None:
        """Refuse shares of the run outside [0, 1], and negative floats except in `signed` fields."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if field.name in ("start", "strong_start"):
                check_share(field.name, getattr(self, field.name))
            elif field.type in ("float", float) and "signed" not in field.metadata:
                check_at_least(field.name, getattr(self, field.name), 0)

    def inputs(self, batch: AdversarialBatch) -> dict[str, Array]:
        """Images by kind, as named in `forwards`."""
        raise NotImplementedError

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The loss of each example.

        Raises:
          InputError: the class does not define it.
        """
        name = type(self).__name__
        raise InputError(f"{name} has no terms; define terms(self, outputs, objective_state, context) -> Terms in it")

    def target_of(self, batch: Batch, classes: int) -> Array:
        """The target of the loss: each example's class `[B]`, or class probabilities `[B, K]`."""
        raise NotImplementedError

    def differentiated(self, params: PyTree) -> PyTree:
        """The weights the loss is computed with: same values, but a method may change their gradient."""
        raise NotImplementedError

    def loss(
        self, params: PyTree, model_state: PyTree, objective_state: PyTree, batch: AdversarialBatch, context: Context
    ) -> tuple[Array, Aux]:
        """The mean of `terms` after `forwards`; each forward updates BatchNorm's running statistics once."""
        batch = with_fields_of_their_own(batch)
        if in_parts(batch):
            raise InputError("the batch is in parts; give it to objectives.loss_gradient, which goes part by part")
        # If crafting has forwarded in training mode, continue from its running statistics.
        model_state = model_state if batch.model_state is None else batch.model_state
        params = self.differentiated(params)
        start, images, logits = Variables(params, model_state), self.inputs(batch), {}
        model: Model = self.model  # type: ignore[attr-defined]
        for kind in checked_forwards(self, images):
            # A repeated forward gives the same logits, so only its update of the running statistics is needed.
            weights = jax.lax.stop_gradient(params) if kind in logits else params
            keys = forward_keys(model, context.key, batch.clean.indices, kind)
            values, model_state = model.apply(weights, model_state, images[kind], train=True, key=keys)
            logits.setdefault(kind, values)
        target = self.target_of(batch.clean, next(iter(logits.values())).shape[-1])
        outputs = Outputs(Forwarded(logits), batch, start, target)
        terms = checked_terms(_author(self), self.terms(outputs, objective_state, context), outputs)
        loss = jnp.mean(terms.adversarial + terms.other)
        metrics = {"loss": loss, **terms.metrics, **batch.metrics}
        for kind, values in logits.items():
            if kind in ("clean", "adversarial"):
                metrics[f"{kind}_accuracy"] = accuracy(values, batch.clean.labels)
        return loss, Aux(model_state, metrics, logits)


@objective
class AttackedObjective(_Shared):
    """Base class of methods that craft the adversarial batch with one attack on the current weights.

    Attributes:
      model: the model to train.
      attack: crafts the batch; called as `attack(logits_fn, images, labels, key=..., indices=...)`. Fix its
        hyper-parameters with `bind`.
      attack_batch_norm: BatchNorm while crafting, "eval" (running statistics: SEAT, TRADES, MART and most others) or
        "train" (batch statistics: robust_overfitting, AWP). Crafting never updates the running statistics; in the
        original codes that attack in training mode, every attack step updates them.
      label_smoothing: s in [0, 1], the share of each target that the loss spreads over classes; the attack uses the
        label without smoothing.
      smoothing_over: "others": the label keeps 1 - s and the other K - 1 classes share s; "all": all K classes share s,
        as in PyTorch's label_smoothing.
    """

    model: Model = static()
    attack: Attack
    attack_batch_norm: str = static(default="eval")
    label_smoothing: float = static(default=0.0)
    smoothing_over: str = static(default="others")

    # Attack options where the method's paper differs from the attack's defaults.
    attack_options: ClassVar[Mapping[str, Any]] = {}
    # Whether the method crafts adversarial images; most wrappers need them.
    attacks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if inspect.isfunction(self.attack):
            # A plain function cannot be a leaf of a pytree.
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
        """Craft with the attack's own loss (cross-entropy)."""
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
        """Accept any part: each example's loss depends on that example alone."""

    def target_of(self, batch: Batch, classes: int) -> Array:
        """The batch's target, smoothed."""
        if not self.label_smoothing:
            return batch.target
        return smoothed(batch.target, classes, self.label_smoothing, self.smoothing_over)

    def differentiated(self, params: PyTree) -> PyTree:
        """The weights themselves."""
        return params

    def logits_fn(self, variables: Variables) -> LogitsFn:
        """The model's logits as the attack sees them."""
        return make_logits_fn(self.model, variables, train=self.attack_batch_norm == "train")

    def craft(self, variables: Variables, batch: Batch, context: Context, **attack_options: Any) -> AdversarialBatch:
        """Run the attack; a wrapper's `context.attack`, then `attack_options`, override its bound options.

        A loss given as `context.attack["added_loss"]` is added to the attack's own loss.
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
    """Networks, teachers and counts that a wrapper's config fields may name; the reader of the config provides them."""

    def network(self, name: str, num_classes: int) -> Model:
        """The network with this name and `num_classes` outputs."""
        ...

    def teacher(self, field: str, folder: str) -> Variables:
        """Weights and running statistics of the run in `folder`, the value of the config's `field`."""
        ...

    @property
    def examples(self) -> int:
        """The number of training examples, including generated ones."""
        ...

    @property
    def classes(self) -> int:
        """The number of classes."""
        ...


class WrapperState(NamedTuple):
    """A wrapper's state between steps.

    Attributes:
      own: what `init_own` returns: the wrapper's NamedTuple, or ().
      inner: the state of the method inside.
    """

    own: PyTree  # what `init_own` returns: the wrapper's NamedTuple, or ()
    inner: PyTree  # the state of the method inside

    def __getitem__(self, key: Any) -> Any:  # type: ignore[override]
        """Access by position, as in any tuple; access by name is deprecated and works for one more release."""
        if not isinstance(key, str):
            return tuple.__getitem__(self, key)
        warn(f'objective_state["{key}"]', f"objective_state.{key}")
        return getattr(self, key)


@objective
class Wrapper(_Shared):
    """Base class of wrappers, which change another method: every hook delegates to `inner` unless overridden.

    The state is a `WrapperState`. A wrapper with its own state overrides `init_own` and the hooks that update the
    state. To pass values from crafting to `terms` and `after_step`, use `hand` and `handed`.

    Attributes:
      inner: the method inside, wrapped or not; a positional argument: `AWP(TRADES(...), gamma=0.005)`.
    """

    inner: Any = dataclasses.field(kw_only=False)

    # For configs: the paper's deviating options of the attack, of the method inside, and of the wrapper itself. The
    # keys of the last two name the inner parts: "pgd_at", or, for the objective's options, all parts that must be
    # present: "pgd_at+awp".
    attack_options: ClassVar[Mapping[str, Any]] = {}
    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    # Fields that are text in a config, with their defaults; `from_fields` turns the text into objects.
    text_fields: ClassVar[Mapping[str, str]] = {}
    # The text fields that are run folders, each with the usual training method of such a run.
    teachers: ClassVar[Mapping[str, str]] = {}
    default_inner: ClassVar[str] = "pgd_at"
    needs_attack: ClassVar[bool] = True
    # Properties for compatibility checks: the wrapper multiplies the loss, sets radius and step size per example, or
    # changes the batch's images.
    rescales: ClassVar[bool] = False
    chooses_attack: ClassVar[bool] = False
    changes_images: ClassVar[bool] = False

    @classmethod
    def from_fields(cls, inner: Any, fields: Mapping[str, Any], resources: Resources) -> Self:
        """The wrapper around `inner`, from the fields of a config; `text_fields` arrive as text."""
        return cls(inner, **fields)

    def __post_init__(self) -> None:
        self.check_fields()
        if self.needs_attack and not self.inner.attacks:
            raise InputError(f"{type(self).__name__} needs adversarial images, but the method inside crafts none")

    @property
    def attacks(self) -> bool:
        """Same as the inner method."""
        return self.inner.attacks

    @property
    def model(self) -> Model:
        """The model to train."""
        return self.inner.model

    @property
    def views(self) -> int:
        """Same as the inner method."""
        return self.inner.views

    @property
    def replays(self) -> int:
        """How many times in a row each batch is used: as the inner method says, else 1."""
        return getattr(self.inner, "replays", 1)

    @property
    def forwards(self) -> tuple[str, ...]:
        """Same as the inner method."""
        return self.inner.forwards

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> PyTree:
        """No state of its own."""
        return ()

    def init(self, variables: Variables, images: Array, *, key: Array) -> WrapperState:
        """The states of the wrapper and of the method inside."""
        own = self.init_own(variables, images, key=named_key(key, type(self).__name__))
        return WrapperState(own, self.inner.init(variables, images, key=key))

    def hand(self, batch: AdversarialBatch, value: PyTree) -> AdversarialBatch:
        """The batch with a value of this wrapper attached; `handed` returns the value."""
        return batch._replace(extra={**batch.extra, type(self).__name__: value})

    def handed(self, batch: AdversarialBatch) -> Any:
        """The value this wrapper attached in its `perturb`."""
        return batch.extra[type(self).__name__]

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Same as the inner method."""
        return self.inner.perturb(variables, objective_state.inner, batch, context)

    def perturb_weights(
        self, params: PyTree, model_state: PyTree, objective_state: PyTree, batch: AdversarialBatch, context: Context
    ) -> PyTree:
        """Same as the inner method, whose loss does not include this wrapper's terms."""
        return self.inner.perturb_weights(params, model_state, objective_state.inner, batch, context)

    def inputs(self, batch: AdversarialBatch) -> dict[str, Array]:
        """Same as the inner method."""
        return self.inner.inputs(batch)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """Same as the inner method."""
        return checked_terms(_author(self.inner), self.inner.terms(outputs, objective_state.inner, context), outputs)

    def target_of(self, batch: Batch, classes: int) -> Array:
        """Same as the inner method."""
        return self.inner.target_of(batch, classes)

    def differentiated(self, params: PyTree) -> PyTree:
        """Same as the inner method."""
        return self.inner.differentiated(params)

    def after_step(
        self, variables: Variables, objective_state: WrapperState, batch: AdversarialBatch, aux: Aux, context: Context
    ) -> WrapperState:
        """Update the inner state after the step; keep the wrapper's state."""
        inner = self.inner.after_step(variables, objective_state.inner, batch, aux, context)
        return objective_state._replace(inner=inner)

    def next_variables(self, variables: Variables, objective_state: WrapperState, context: Context) -> Variables:
        """Same as the inner method."""
        return self.inner.next_variables(variables, objective_state.inner, context)

    def after_epoch(self, objective_state: WrapperState, context: Context) -> WrapperState:
        """Update the inner state after the epoch; keep the wrapper's state."""
        return objective_state._replace(inner=self.inner.after_epoch(objective_state.inner, context))

    def eval_variables(self, variables: Variables, objective_state: PyTree) -> Variables:
        """Same as the inner method."""
        return self.inner.eval_variables(variables, objective_state.inner)

    def check_part(self, examples: int) -> None:
        """Same as the inner method."""
        self.inner.check_part(examples)


METHODS: Registry[type[AttackedObjective]] = Registry("method")
"""The objectives, each a complete method."""

WRAPPERS: Registry[type[Wrapper]] = Registry("wrapper")
"""The wrappers, which go around any objective and around each other."""


GROUPS = (
    *("attack", "average", "checkpoint", "dataset", "evaluation", "log", "model", "objective", "optimizer", "piat"),
    *("batch_size", "epochs", "fsdp", "method", "microbatches", "nonfinite", "seed"),
)
"""Names of a config's own fields, which no wrapper's group may have."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(static, signed, dataclasses.field))
def method(name: str, *, title: str = "", summary: str = "", paper: str = "") -> Callable[[type[T]], type[T]]:
    """Declare an `AttackedObjective` as `objective` does, and register it under `name` for configs.

    Args:
      name, title, summary, paper: as in `Registry.register`.

    Raises:
      InputError: the class is not an `AttackedObjective`, a field has no default, or the name is taken.

    >>> @method("plain", summary="Cross-entropy on adversarial images.")
    ... class Plain(AttackedObjective):
    ...     weight: float = 1.0
    >>> METHODS.pop("plain") is Plain, Plain(model=None, attack=None).weight
    (True, 1.0)
    """
    return _declared(METHODS, AttackedObjective, name, title, summary, paper)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(static, signed, dataclasses.field))
def wrapper(name: str, *, title: str = "", summary: str = "", paper: str = "") -> Callable[[type[T]], type[T]]:
    """Declare a `Wrapper` as `objective` does, and register it under `name`, which also names its config group.

    Args:
      name, title, summary, paper: as in `Registry.register`.

    Raises:
      InputError: the class is not a `Wrapper`, a field has no default (unless the class has its own `from_fields`), or
        the name is taken or one of `GROUPS`.
    """
    if name in GROUPS:
        raise InputError(f"wrapper {name!r} has the name of a field of every config; give another name")
    return _declared(WRAPPERS, Wrapper, name, title, summary, paper)


def _declared(
    registry: Registry[Any], base: type, name: str, title: str, summary: str, paper: str
) -> Callable[[type[T]], type[T]]:
    check_parentheses(registry.kind, name)

    def declare(cls: type[T]) -> type[T]:
        if not issubclass(cls, base):
            raise InputError(f"{registry.kind} {name!r}: {cls.__name__} is not {a_(base.__name__)}; make it a subclass")
        declared = objective(cls)
        _check_defaults(registry.kind, name, declared)
        return registry.register(name, title=title, summary=summary, paper=paper)(declared)

    return declare


def _check_defaults(kind: str, name: str, cls: Any) -> None:
    """Raise InputError if a field has no default, unless the class itself fills its fields from a config."""
    own = getattr(cls, "from_fields", Wrapper.from_fields).__func__
    if own is not Wrapper.from_fields.__func__:  # type: ignore[attr-defined]
        return
    for field in dataclasses.fields(cls):
        given = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if not given and field.name not in ("model", "attack", "inner"):
            raise InputError(
                f"{kind} {name!r}: field {field.name!r} of {cls.__name__} has no default; "
                "give it one, since configs start from it"
            )


def _author(of: Any) -> Any:
    """The method or wrapper whose code makes the terms of `of`."""
    while isinstance(of, Wrapper) and type(of).terms is Wrapper.terms:
        of = of.inner
    return of


def in_parts(batch: AdversarialBatch) -> bool:
    """Whether the batch is split into parts: arrays of examples are `[n, B / n, ...]` (objectives/parts.py)."""
    return batch.clean.labels.ndim > 1


def with_fields_of_their_own(batch: AdversarialBatch) -> AdversarialBatch:
    """The batch with statistics and metrics in their own fields; earlier releases kept them in `extra`."""
    for name in ("model_state", "metrics"):
        if name in batch.extra:
            warn(f'AdversarialBatch.extra["{name}"]', f"AdversarialBatch.{name}")
    metrics = {**batch.metrics, **batch.extra.get("metrics", {})}
    return batch._replace(metrics=metrics, model_state=batch.extra.get("model_state", batch.model_state))


def reached(share: Array | float, context: Context) -> Array:
    """Whether this share of the run's epochs has passed: 0.5 of 200 epochs is reached in epoch 100 (0-based).

    >>> reached(105 / 200, Context(jax.random.key(0), jnp.int32(0), jnp.int32(105), jnp.int32(200))).item()
    True
    """
    # Not weakly typed: if a state kept it and its type changed after the first step, the step would recompile.
    epochs = jnp.asarray(context.epochs, jnp.float32)
    return (context.epoch >= jnp.round(share * epochs).astype(jnp.int32)).astype(bool)


def accuracy(logits: Array, labels: Array) -> Array:
    """Share of correctly classified examples in the batch."""
    return jnp.mean(losses.correct(logits, labels).astype(jnp.float32))
