"""What a user may have switched on in JAX: 64 bits, strict promotion, a stop at each NaN, other generators."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from piat_jax import losses, models
from piat_jax.attacks import (
    apgd,
    apgd_ascent,
    bind,
    cw,
    ddn,
    fab,
    fgsm,
    fmn,
    mi_fgsm,
    msd,
    multi_targeted,
    n_fgsm,
    pgd,
    pgd_counted,
    pgd_least_likely,
    square,
)
from piat_jax.averaging import EQUAL_WEIGHT, PIAT, Average, WarmupDecay, interpolated
from piat_jax.core.rng import example_keys
from piat_jax.core.types import Batch
from piat_jax.objectives import METHODS, WRAPPERS
from piat_jax.training import init_state, sgd, train_step

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(6, 5, 5, 1)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2], np.int32)
WEIGHTS = RNG.normal(size=(25, 3)).astype(np.float32)

MODES = {
    "x64": lambda: jax.enable_x64(True),
    "strict": lambda: jax.numpy_dtype_promotion("strict"),
    "debug_nans": lambda: jax.debug_nans(True),
    "rbg": contextlib.nullcontext,
    "unsafe_rbg": contextlib.nullcontext,
}
each_mode = pytest.mark.parametrize("mode", MODES)

ATTACKS = {
    "pgd": bind(pgd, eps=0.1, steps=2, restarts=2, keep="best", noise=0.01),
    "pgd_normal": bind(pgd, eps=0.1, steps=2, start="normal", patience=1, step_budget=2),
    "pgd_counted": bind(pgd_counted, eps=0.1, steps=2),
    "pgd_l2": bind(pgd, eps=0.1, steps=2, norm="l2", l2_rule="advertorch"),
    "pgd_l1": bind(pgd, eps=2.0, steps=2, norm="l1", step_size=0.5),
    "pgd_least_likely": bind(pgd_least_likely, eps=0.1, steps=2),
    "multi_targeted": bind(multi_targeted, eps=0.1, steps=2, targets=2),
    "n_fgsm": bind(n_fgsm, eps=0.1),
    "msd": bind(msd, eps=0.1, eps_l2=0.5, eps_l1=2.0, steps=2),
    "apgd_ascent": bind(apgd_ascent, eps=0.1, steps=3),
    "ddn": bind(ddn, steps=2),
    **{f"fmn_{norm}": bind(fmn, norm=norm, steps=2) for norm in ("linf", "l2", "l1")},
    "pgd_targeted": bind(pgd, eps=0.1, steps=2, norm="l2", loss=losses.margin, targets=(LABELS + 1) % 3),
    "fgsm": bind(fgsm, eps=0.1, norm="l2"),
    "mi_fgsm": bind(mi_fgsm, eps=0.1, steps=2),
    "cw": bind(cw, eps=0.1, steps=2),
    **{f"apgd_{norm}": bind(apgd, eps=0.1, norm=norm, steps=6, loss="dlr") for norm in ("linf", "l2", "l1")},
    "apgd_t": bind(apgd, eps=0.1, loss="targeted", targets=2, steps=3),
    **{f"fab_{norm}": bind(fab, eps=0.1, norm=norm, steps=2, restarts=2, targets=2) for norm in ("linf", "l2", "l1")},
    "fab": bind(fab, eps=0.1, steps=2, targets=None),
    **{f"square_{norm}": bind(square, eps=0.1, norm=norm, queries=4) for norm in ("linf", "l2", "l1")},
}


def key_of(mode):
    return jax.random.key(0, impl=mode if "rbg" in mode else "threefry2x32")


def network(x):
    return jnp.sin(x.reshape(len(x), -1) @ jnp.asarray(WEIGHTS))


@functools.cache
def plainly(name):
    return attacked(name, key_of("threefry"))


def attacked(name, key, run=lambda fn, *arguments: jax.tree.map(np.asarray, jax.jit(fn)(*arguments))):
    return run(lambda x, y, key: ATTACKS[name](network, x, y, key=key), jnp.asarray(IMAGES), jnp.asarray(LABELS), key)


@each_mode
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name, mode):
    # What these refuse shows when a program is traced; compiling all would take minutes.
    if mode in ("strict", "rbg", "unsafe_rbg"):
        with MODES[mode]():
            attacked(name, key_of(mode), jax.eval_shape)
        return
    with MODES[mode]():
        found = attacked(name, key_of(mode))
    assert [x.dtype for x in jax.tree.leaves(found)] == [x.dtype for x in jax.tree.leaves(plainly(name))]
    for image in jax.tree.leaves(found):
        assert not np.any(np.isnan(image))
    if not name.startswith(("fab", "fmn", "ddn")):  # of which a step may end at the very boundary
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(plainly(name))):
            np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_an_example_draws_the_same_in_any_batch(impl):
    key = jax.random.key(3, impl=impl)
    draw = jax.vmap(lambda key: jax.random.normal(key, (4,)))
    together = draw(example_keys(key, jnp.arange(5)))
    np.testing.assert_array_equal(together[2], draw(example_keys(key, jnp.array([2])))[0])
    assert len(np.unique(together)) == 20
    other = draw(example_keys(jax.random.key(4, impl=impl), jnp.arange(5)))
    assert not np.any(other == together)


def test_every_word_of_a_key_counts():
    words = jnp.arange(4, dtype=jnp.uint32)
    keys = [jax.random.wrap_key_data(words.at[place].add(7), impl="rbg") for place in range(4)]
    drawn = [jax.random.key_data(example_keys(key, jnp.arange(1))).tolist() for key in keys]
    assert len({str(data) for data in drawn}) == 4


STACKS = [(name,) for name in METHODS] + [
    ("trades" if name == "rpat" else WRAPPERS[name].default_inner, name)
    for name in WRAPPERS
    if name not in ("kd", "hat", "las", "ard_prm")
]
# What has no default.
REQUIRED = {
    "mma": {"examples": len(IMAGES)},
    "te": {"examples": len(IMAGES)},
    "lbgat": {"guide": models.create("mlp", num_classes=3, hidden=(5,))},
}


def step_of(objective, optimizer, hooks, key):
    """The state before and after one step and the end of its epoch."""

    def step(images, labels):
        state = init_state(objective, optimizer, images, key=key)
        for hook in hooks:
            state = hook.init(state)
        tiled = [jnp.concatenate([x] * objective.views) for x in (images, labels)]
        batch = Batch(*tiled, jnp.arange(len(tiled[1]), dtype=jnp.int32))
        after, metrics = train_step(objective, optimizer, state, batch, key=key, epochs=4)
        for hook in hooks:
            after = hook(after, 1)
        return state, after, metrics

    return step


def optimizer():
    return sgd(optax.constant_schedule(0.1), momentum=0.9, weight_decay=1e-3)


AVERAGES = {
    "swa": Average(EQUAL_WEIGHT, epochs=4),
    "seat": Average(WarmupDecay(0.9), epochs=4),
    "ema": Average(0.9, epochs=4),
}


@pytest.mark.parametrize("mode", ["x64", "strict"])
@pytest.mark.parametrize("stack", STACKS, ids="+".join)
def test_a_step_of_each_method_keeps_its_dtypes(stack, mode):
    """Traced and not run: dtypes that do not fit show there, and compiling all would take minutes."""
    with MODES[mode]():
        objective = METHODS[stack[0]](
            model=models.create("mlp", num_classes=3, hidden=(4,)), attack=bind(pgd, steps=2, start="normal")
        )
        for name in stack[1:]:
            objective = WRAPPERS[name](objective, **REQUIRED.get(name, {}))
        step = step_of(objective, optimizer(), (), jax.random.key(0))
        state, after, metrics = jax.eval_shape(step, jnp.asarray(IMAGES), jnp.asarray(LABELS))
    assert types(state) == types(after)
    assert metrics["loss"].dtype == jnp.float32


@pytest.mark.parametrize("mode", ["x64", "strict"])
@pytest.mark.parametrize("how", ["max", "avg", "random", "errors"])
@pytest.mark.parametrize("by", ["batch", "example"])
def test_each_way_to_several_norms_keeps_its_dtypes(how, by, mode):
    with MODES[mode]():
        net = models.create("mlp", num_classes=3, hidden=(4,))
        objective = WRAPPERS["multi_norm"](METHODS["pgd_at"](model=net, attack=bind(pgd, steps=2)), how=how, by=by)
        step = step_of(objective, optimizer(), (), jax.random.key(0))
        state, after, _ = jax.eval_shape(step, jnp.asarray(IMAGES), jnp.asarray(LABELS))
    assert types(state) == types(after)


def types(tree):
    return {jax.tree_util.keystr(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def trained(hooks, key, model="small_resnet", **options):
    net = models.create(model, num_classes=3, **options)
    objective = METHODS["nmse"](model=net, attack=bind(pgd, steps=1))
    return step_of(objective, optimizer(), hooks, key)


@pytest.mark.parametrize("name", ["small_resnet", "wide_resnet", "dm_wide_resnet", "mlp", "vit", "convit"])
def test_networks_keep_float32_under_64_bits(name):
    model = models.create(name, num_classes=3)
    with jax.enable_x64(True):
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        logits, after = jax.eval_shape(lambda v, x: model.apply(*v, x, train=True, key=None), variables, images)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, logits, after))} == {jnp.dtype("float32")}


@functools.cache
def trained_plainly():
    return run_step("threefry")


def run_step(mode):
    step = trained((PIAT(), AVERAGES["seat"]), key_of(mode), width=2, stage_sizes=(1,))
    return jax.jit(step)(jnp.asarray(IMAGES), jnp.asarray(LABELS))


@each_mode
def test_a_step_with_piat_and_an_average(mode):
    with MODES[mode]():
        state, after, _ = run_step(mode)
    assert types(state) == types(after)
    for leaf in jax.tree.leaves(after):
        assert np.all(np.isfinite(leaf))
    if "rbg" not in mode:
        for one, other in zip(jax.tree.leaves(after), jax.tree.leaves(trained_plainly()[1])):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["x64", "strict"])
@pytest.mark.parametrize("name", AVERAGES)
def test_each_average_keeps_its_dtypes(name, mode):
    with MODES[mode]():
        step = trained((AVERAGES[name],), jax.random.key(0), "mlp", hidden=(4,))
        state, after, _ = jax.eval_shape(step, jnp.asarray(IMAGES), jnp.asarray(LABELS))
    assert types(state) == types(after)


@each_mode
def test_interpolation_in_an_optax_chain(mode):
    with MODES[mode]():
        params = {"w": jnp.asarray([1.0, -2.0], jnp.float32)}
        chain = interpolated(optax.sgd(jnp.float32(0.5)), weight=0.25)
        opt_state = chain.init(params)
        step = jax.jit(lambda grads, state, params: chain.update(grads, state, params, interpolate=True))
        updates, _ = step({"w": jnp.ones(2, jnp.float32)}, opt_state, params)
    assert updates["w"].dtype == jnp.float32
    np.testing.assert_allclose(updates["w"], -0.375, rtol=1e-6)  # three quarters of the step
