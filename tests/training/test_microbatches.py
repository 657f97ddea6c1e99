"""A batch in parts: the same step in less memory, or refused."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from piat_jax import models
from piat_jax.attacks import bind, pgd
from piat_jax.averaging.piat import without_momentum
from piat_jax.core.checks import InputError
from piat_jax.core.rng import named_key
from piat_jax.core.sharding import data_mesh, replicate
from piat_jax.core.types import Batch, Context, Variables
from piat_jax.experiment import config
from piat_jax.objectives import AWP, ECAS, METHODS, NMSE, PGDAT, WRAPPERS, Standard, Wrapper, wrapper
from piat_jax.objectives.parts import cut, join
from piat_jax.training import Examples, Recipe, fit, init_state, sgd, step, train_steps
from piat_jax.training.step import train_step
from tests.objectives import stub

KEY = jax.random.key(2)
RNG = np.random.default_rng(0)
SMALL = {"model.name": "mlp", "batch_size": "12", "attack.steps": "2", "epochs": "4"}
# Their examples see each other, so they are refused.
COUPLED = {"cure", "free", "gairat", "las", "rat", "sovr"}
MEANS = [name for name in (*METHODS, *WRAPPERS) if name not in COUPLED | {"kd", "hat"}]
STACKS = ["trades+awp", "awp+ecas", "trades+cfa", "trades+mail", "mix+consistency", "consistency+rpat", "mix+awp"]


def method_of(name, **fields):
    fields = {**SMALL, **fields}
    if "las" in name:
        fields |= {"las.strategy": "mlp"}
    if "lbgat" in name:
        fields |= {"lbgat.guide": "mlp"}
    if "mix" in name:
        fields["mix.prob"] = "1"  # every batch
    # Whatever begins late has begun.
    experiment = config.load(f"cifar10_resnet18:{name}", {**fields}, checked=False)
    starts = {path: 0.0 for path in ("mail", "rebat", "rpatpp", "cfa", "awp", "te") if path in name.split("+")}
    experiment = experiment.with_fields({f"{path}.start": 0.0 for path in starts})
    return jax.tree.map(jnp.asarray, experiment.build_objective(experiment.build_model(3), (4, 4, 1), examples=12))


def batch_of(method, size=12, shape=(4, 4, 1)):
    rng = np.random.default_rng(1)
    count = size * method.views
    images = rng.uniform(size=(count, *shape)).astype(np.float32)
    labels = np.tile(rng.integers(0, 3, size), method.views).astype(np.int32)
    return Batch(*map(jnp.asarray, (images, labels, np.arange(count, dtype=np.int32))))


def stepped(method, microbatches, *, steps=2, size=12):
    """The state after some steps, and the metrics of the last."""
    optimizer, batch = sgd(0.1, momentum=0.9), batch_of(method, size)
    state = init_state(method, optimizer, batch.images[:1], key=KEY)

    @jax.jit
    def advance(state):
        return train_step(method, optimizer, state, batch, key=KEY, epochs=4, microbatches=microbatches)

    metrics = {}
    for _ in range(steps):
        state, metrics = advance(state)
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}, dict(metrics)


def close(one, other, rtol=2e-4, atol=2e-6):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


@pytest.mark.parametrize("name", [*MEANS, *STACKS])
def test_without_batch_norm_parts_make_the_same_step(name):
    method = method_of(name)
    whole, parts = stepped(method, 1), stepped(method, 3)
    close(parts, whole)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), whole[0]["params"], stepped(method, 1, steps=0)[0]["params"])
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_an_examples_perturbation_is_the_same():
    """To the bit, as every example has randomness of its own."""
    seen = []

    @wrapper("seen")
    class Seen(Wrapper):
        def after_step(self, variables, objective_state, batch, aux, context):
            jax.debug.callback(lambda *arrays: seen.append(arrays), batch.images, batch.clean.indices)
            return super().after_step(variables, objective_state, batch, aux, context)

    del WRAPPERS["seen"]
    method = Seen(method_of("trades"))
    for microbatches in (1, 2, 6):
        stepped(method, microbatches, steps=1)
    jax.effects_barrier()
    for images, indices in seen[1:]:
        np.testing.assert_array_equal(indices, seen[0][1])
        np.testing.assert_array_equal(images, seen[0][0])
    assert len(seen) == 3
    assert np.abs(seen[0][0] - batch_of(method).images).max() > 0.01


@pytest.mark.parametrize("name", ["pgd_at", "trades+awp", "ecas", "consistency", "mix", "trades+cfa"])
def test_one_part_is_the_program_of_the_whole_batch(name):
    """Equation by equation, that of a step written out without parts."""
    method, optimizer = method_of(name, **{"model.name": "small_resnet"}), sgd(0.1, momentum=0.9)
    batch = batch_of(method, 4, (8, 8, 1))
    state = init_state(method, optimizer, batch.images[:1], key=KEY)

    def trial_step(opt_state, gradient, weights, params):
        updates, _ = optimizer.update(gradient, without_momentum(opt_state), weights)
        return optax.apply_updates(params, updates)

    def plain(state, batch):
        context = Context(
            jax.random.fold_in(named_key(KEY, "step"), state.step),
            state.step,
            state.epoch,
            jnp.asarray(4, jnp.int32),
            steps_per_epoch=jnp.asarray(1, jnp.int32),
            trial_step=jax.tree_util.Partial(trial_step, state.opt_state),
        )
        own = state.objective_state
        crafted = method.perturb(state.variables, own, batch, context)
        weights = method.perturb_weights(state.params, state.model_state, own, crafted, context)
        gradient, aux = jax.grad(method.loss, has_aux=True)(weights, state.model_state, own, crafted, context)
        updates, opt_state = optimizer.update(gradient, state.opt_state, weights)
        variables = Variables(optax.apply_updates(state.params, updates), aux.model_state)
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=variables.params,
            model_state=variables.model_state,
            opt_state=opt_state,
            objective_state=method.after_step(variables, own, crafted, aux, context),
        )
        return state, {**aux.metrics, step.FINITE: step._all_finite((gradient, state))}

    def ours(state, batch):
        return train_step(method, optimizer, state, batch, key=KEY, epochs=4)

    def text(fn):
        return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(fn)(state, batch)))

    assert text(ours) == text(plain)


def test_statistics_go_on_from_part_to_part():
    """`mean <- 0.9 mean + 0.1 mean(part)` for each part in turn, after all parts were attacked at the old mean."""
    method, optimizer = stub.make(PGDAT), sgd(0.0)
    state = init_state(method, optimizer, stub.IMAGES[:1], key=KEY)
    seen = []

    @wrapper("kept")
    class Kept(Wrapper):
        def after_step(self, variables, objective_state, batch, aux, context):
            seen.append(batch.images)
            return super().after_step(variables, objective_state, batch, aux, context)

    del WRAPPERS["kept"]
    state = dataclasses.replace(state, objective_state=stub.state_of(Kept(method)))
    with jax.disable_jit():
        after, _ = train_step(Kept(method), optimizer, state, stub.CLEAN, key=KEY, epochs=1, microbatches=2)
        train_step(Kept(method), optimizer, state, stub.CLEAN, key=KEY, epochs=1)
    np.testing.assert_array_equal(*seen)
    mean = np.asarray(stub.STATE["mean"])
    for part in np.asarray(cut(seen[0], 2)):
        mean = 0.9 * mean + 0.1 * part.reshape(2, 2).mean(0)
    np.testing.assert_allclose(after.model_state["mean"], mean, rtol=1e-6)


def test_crafting_goes_on_from_part_to_part_as_well():
    """ECAS's entropy is of the clean parts, forwarded in training mode before any loss."""
    method, optimizer = ECAS(stub.make(PGDAT), eps=0.1), sgd(0.0)
    state = init_state(method, optimizer, stub.IMAGES[:1], key=KEY)
    seen = []

    class Kept(Wrapper):
        def after_step(self, variables, objective_state, batch, aux, context):
            seen.append(batch.images)
            return super().after_step(variables, objective_state, batch, aux, context)

    kept = jax.tree_util.register_dataclass(Kept)(method)
    state = dataclasses.replace(state, objective_state=stub.state_of(kept))
    with jax.disable_jit():
        after, metrics = train_step(kept, optimizer, state, stub.CLEAN, key=KEY, epochs=1, microbatches=2)
    mean = np.asarray(stub.STATE["mean"])
    for images in (stub.IMAGES, seen[0]):
        for part in np.asarray(cut(images, 2)):
            mean = 0.9 * mean + 0.1 * part.reshape(2, 2).mean(0)
    np.testing.assert_allclose(after.model_state["mean"], mean, rtol=1e-6)
    assert metrics["radius_lowered"].shape == ()


def test_awp_perturbs_along_the_gradient_of_the_whole_batch():
    """`v` of the whole batch, seen at the weights the loss is differentiated at."""
    method = AWP(method_of("pgd_at"), gamma=0.1)
    optimizer, batch = sgd(0.1), batch_of(method)
    state = init_state(method, optimizer, batch.images[:1], key=KEY)
    seen = []

    class Watched(AWP):
        def perturb_weights(self, *arguments):
            seen.append(super().perturb_weights(*arguments))
            return seen[-1]

    watched = jax.tree_util.register_dataclass(Watched)(method.inner, gamma=0.1)
    with jax.disable_jit():
        for microbatches in (1, 3):
            train_step(watched, optimizer, state, batch, key=KEY, epochs=4, microbatches=microbatches)
    close(seen[1], seen[0], rtol=1e-5)
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (seen[0], state.params)))) > 1e-3


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize(("size", "microbatches"), [(8, 2), (12, 3), (12, 4), (12, 12)])
def test_a_part_has_all_views_and_the_partners_of_its_examples(size, microbatches, views):
    whole = jnp.arange(views * size)
    parts = np.asarray(cut(whole, microbatches, views=views))
    np.testing.assert_array_equal(join(jnp.asarray(parts), views=views), whole)
    assert parts.shape == (microbatches, views * size // microbatches)
    for part in parts:
        by_view = part.reshape(views, -1)
        np.testing.assert_array_equal(by_view % size, np.broadcast_to(by_view[0], by_view.shape))
        if by_view.shape[1] % 2 == 0:
            np.testing.assert_array_equal(part[::-1], views * size - 1 - part)


def test_devices_keep_their_share_of_each_part(problem):
    """Eight devices do what one does, and nothing but sums goes from one to another."""
    examples = Examples(*(jnp.tile(x, (2, *(1,) * (x.ndim - 1))) for x in problem.examples[:2]))
    results = []
    for count in (1, 4):
        mesh = data_mesh(8, jax.devices()[:count])
        recipe = problem.recipe._replace(batch_size=16, mesh=mesh, microbatches=2)
        method = NMSE(model=models.create("mlp", num_classes=3), attack=problem.objective.attack)
        state = init_state(method, recipe.optimizer, jnp.zeros((1, 8, 8, 1)), key=KEY)
        results.append(fit(state, method, examples, key=KEY, recipe=recipe, epochs=1).params)
    close(results[1], results[0], rtol=1e-4, atol=1e-5)
    state = problem.state()
    arguments = (state, problem.objective, examples, KEY, *map(jnp.int32, (0, 1, 1)))
    text = train_steps.lower(*replicate(arguments, mesh), recipe=recipe).compile().as_text()
    assert "all-reduce" in text
    assert not [name for name in ("all-gather", "all-to-all", "collective-permute") if f" {name}(" in text]
    # A device has two of the eight examples of a part.
    assert "f32[2,8,8,1]" in text
    assert "f32[8,8,8,1]" not in text


def test_memory_shrinks():
    """Of a ResNet's activations a quarter is there at a time; images, weights and gradients stay whole."""
    net = models.create("small_resnet", num_classes=10, width=8)
    method = jax.tree.map(jnp.asarray, NMSE(model=net, attack=bind(pgd, eps=0.03, step_size=0.01, steps=2)))
    needed = []
    for microbatches in (1, 4):
        recipe = Recipe(sgd(0.1, momentum=0.9), batch_size=64, microbatches=microbatches)
        shapes = jax.eval_shape(lambda r=recipe: init_state(method, r.optimizer, jnp.zeros((1, 28, 28, 1)), key=KEY))
        examples = Examples(jnp.zeros((64, 28, 28, 1), jnp.uint8), jnp.zeros(64, jnp.int32))
        lowered = train_steps.lower(shapes, method, examples, KEY, *map(jnp.int32, (0, 1, 1)), recipe=recipe)
        needed.append(lowered.compile().memory_analysis().temp_size_in_bytes)
    assert needed[1] < 0.45 * needed[0]


@pytest.mark.parametrize(
    ("name", "microbatches", "message"),
    [
        ("pgd_at", 5, "microbatches=5 does not divide batch_size=12; give a divisor of it"),
        ("pgd_at", 0, "microbatches=0 must be at least 1"),
        ("gairat", 2, "GAIRAT's weights have mean 1 over the full batch"),
        ("las", 2, "LAS's strategy learns from one reward of the full batch"),
        ("trades+rat", 2, "RAT's soft labels come from gradients of the full batch"),
        ("trades+rat+awp", 2, "RAT's soft labels"),
        ("mix", 4, "parts of 3 examples, but Mix needs pairs; give an even number"),
    ],
)
def test_what_cannot_be_taken_in_parts_is_refused(name, microbatches, message):
    method = method_of(name)
    with pytest.raises(InputError, match=message):
        stepped(method, microbatches)


def test_mails_own_weights_are_refused_in_the_papers_form_alone():
    with pytest.raises(InputError, match="MAIL's weights have mean 1 over the full batch"):
        stepped(method_of("mail", **{"mail.normalization": "paper"}), 2)


def test_devices_and_groups_must_have_their_share_of_a_part(problem):
    recipe = problem.recipe._replace(mesh=data_mesh(8), microbatches=2)
    options = {"key": KEY, "recipe": recipe, "epochs": 1}
    with pytest.raises(InputError, match="leaves parts of 4 examples, which 8 devices cannot share"):
        fit(problem.state(), problem.objective, problem.examples, **options)
    net = models.create("small_resnet", num_classes=3, width=2, stage_sizes=(1,), bn_groups=8)
    method = Standard(model=net, attack=problem.objective.attack)
    with pytest.raises(InputError, match="bn_groups=8 does not divide the 4 images of a microbatch"):
        fit(problem.state(), method, problem.examples, **options | {"recipe": recipe._replace(mesh=None)})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"microbatches": "3"}, "microbatches=3 does not divide batch_size=128"),
        ({"microbatches": "0"}, "microbatches=0 must be at least 1"),
        ({"microbatches": "64", "model.bn_groups": "4"}, "bn_groups=4 does not divide the 2 images of a microbatch"),
    ],
)
def test_a_config_says_what_is_wrong(fields, message):
    with pytest.raises(InputError, match=message):
        config.load("cifar10_resnet18:pgd_at", fields)


def test_a_config_refuses_a_method_by_name():
    with pytest.raises(InputError, match="config: microbatches: GAIRAT"):
        config.load("cifar10_resnet18:gairat", {"microbatches": "2"})


def test_as_many_devices_are_taken_as_can_share_a_part():
    recipe = config.load("cifar10_resnet18:pgd_at", {"batch_size": "8", "microbatches": "2"}).build_recipe(64)
    assert recipe.microbatches == 2
    assert recipe.mesh.size == 4


def test_a_gradient_taken_of_parts_at_once_is_refused():
    """As a wrapper of one's own might, that knows nothing of parts."""

    class Own(Wrapper):
        def perturb_weights(self, params, model_state, objective_state, batch, context):
            jax.grad(self.loss, has_aux=True)(params, model_state, objective_state, batch, context)
            return params

    own = wrapper("own")(Own)
    del WRAPPERS["own"]
    with pytest.raises(InputError, match=r"give it to objectives\.loss_gradient"):
        stepped(own(method_of("pgd_at")), 2)


def test_what_is_handed_on_reaches_after_step_whole():
    """Per example in the batch's order, and once where it is of the batch."""
    seen = []

    class Own(Wrapper):
        def perturb(self, variables, objective_state, batch, context):
            crafted = super().perturb(variables, objective_state, batch, context)
            return self.hand(crafted, {"each": 10 * batch.indices, "once": jnp.arange(6)})

        def after_step(self, variables, objective_state, batch, aux, context):
            handed = self.handed(batch)
            jax.debug.callback(lambda *arrays: seen.append(arrays), handed["each"], handed["once"])
            assert aux.logits["adversarial"].shape == (12, 3)
            return super().after_step(variables, objective_state, batch, aux, context)

    own = wrapper("own")(Own)
    del WRAPPERS["own"]
    stepped(own(method_of("pgd_at")), 2, steps=1)
    jax.effects_barrier()
    # Six numbers are as many as examples of a part, and no examples for that.
    np.testing.assert_array_equal(seen[0][0], 10 * np.arange(12))
    np.testing.assert_array_equal(seen[0][1], np.arange(6))
