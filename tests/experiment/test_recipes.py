"""Every recipe's config is what its paper says, and trains two steps at reduced size, alone and with PIAT, resumed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.checkpoint import Checkpoints
from piat_jax.experiment import hooks
from piat_jax.experiment.config import load
from piat_jax.training import Examples, fit, init_state

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 256, (8, 8, 8, 3), np.uint8), RNG.integers(0, 3, 8).astype(np.int32)
EXTRA = (RNG.integers(0, 256, (12, 8, 8, 3), np.uint8), RNG.integers(0, 3, 12).astype(np.int32))
KEY = jax.random.key(2)
RECIPES = (
    "cifar10_gowal2020", "cifar10_rebuffi2021", "cifar10_gowal2021", "cifar10_wang2023", "cifar10_bartoldson2024",
    "cifar10_fgsm_rs", "cifar10_fgsm_rs:grad_align", "cifar10_fgsm_rs:free", "cifar10_multi_norm", "finetune",
    "imagenet_convnext_t", "imagenet_vit_s", "imagenet_resnet50", "imagenet_resnet50:nmse",
)  # fmt: skip
GENERATED = ("cifar10_rebuffi2021", "cifar10_gowal2021", "cifar10_wang2023", "cifar10_bartoldson2024")
SMALL = {"batch_size": 4, "model.name": "mlp", "dataset.crop_padding": 0, "dataset.flip": False}


def reduced(recipe):
    """A recipe with a small network, batch and run; all else stays."""
    experiment = load(recipe, {"epochs": 2})  # which moves the schedule's places
    fields = dict(SMALL)
    if experiment.attack.rest.get("steps", 0) > 3:
        fields["attack.steps"] = 3
    if experiment.model.options:
        fields["model.options"] = {}
    if recipe.partition(":")[0] in GENERATED:
        fields |= {"dataset.extra": "generated.npz", "dataset.extra_fraction": 0.5}
    fields["model.bn_momentum"] = 0.1
    return experiment.with_fields({**fields, "dataset.validation_examples": 0})


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_trains_two_steps_and_is_resumed_alone_and_with_piat(recipe, tmp_path):
    name, _, method = recipe.partition(":")
    method = method or str(load(name).method)
    recipe_ = None
    for text in (f"{name}:{method}", f"{name}:{method}+piat"):
        experiment = reduced(text)
        net = experiment.build_model(3)
        objective = experiment.build_objective(net, (8, 8, 3), examples=20)
        # One optimizer object, as equal ones would not share a compilation.
        recipe_ = recipe_ or experiment.build_recipe(8, net=net, image_shape=(8, 8, 3))
        extra = tuple(map(jnp.asarray, EXTRA)) if experiment.extra_per_batch else None
        examples = Examples(jnp.asarray(IMAGES), jnp.asarray(LABELS), extra=extra)
        checkpoints = Checkpoints(tmp_path / text)

        def start():
            images = jnp.zeros((4 * objective.views, 8, 8, 3))  # noqa: B023
            return hooks.start(experiment, init_state(objective, recipe_.optimizer, images, key=KEY))  # noqa: B023

        def save(state, record):
            if record.epoch == 1:
                checkpoints.save("last", state, {"epoch": 1})  # noqa: B023
            assert all(np.isfinite(value) for value in record.train.values())

        train = functools.partial(
            fit,
            objective=objective,
            examples=examples,
            key=KEY,
            recipe=recipe_,
            epochs=2,
            epoch_end=hooks.epoch_end(experiment, net, jnp.asarray(IMAGES), 3, None),
        )
        first = jax.tree.map(np.asarray, start().params)
        whole = train(start(), on_epoch=save)
        restored = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), checkpoints.load_state("last", start()))
        jax.tree.map(np.testing.assert_array_equal, train(restored), whole)
        moved = jax.tree.map(lambda a, b: float(np.abs(a - np.asarray(b)).max()), first, whole.params)
        assert all(far > 0 for far in jax.tree.leaves(moved)), moved
        assert (whole.anchor is not None) == text.endswith("piat")


def rates(experiment, steps=10):
    rate = experiment.build_rate(steps)
    numbers = np.arange(experiment.epochs * steps)
    return [None if part is None else np.asarray(jax.vmap(part)(numbers)) for part in rate]


def test_wang2023_is_its_codes_protocol():
    experiment = load("cifar10_wang2023")
    assert str(experiment.method) == "trades+ema"
    assert (experiment.epochs, experiment.batch_size, experiment.dataset.extra_fraction) == (400, 512, 0.7)
    assert (experiment.objective.beta, experiment.objective.label_smoothing) == (5.0, 0.1)
    assert (experiment.objective.smoothing_over, experiment.attack.start) == ("all", "uniform")
    assert (experiment.optimizer.name, experiment.optimizer.nesterov) == ("sgd", True)
    learning_rate, momentum = rates(experiment)
    assert np.argmax(learning_rate) // 10 == np.argmin(momentum) // 10 == 9  # pct_start 0.025 of 400, and one less
    np.testing.assert_allclose(learning_rate.max(), 0.2, rtol=1e-6)
    average = experiment.build_average()
    assert (average.start, average.batch_stats, average.weight.limit) == (0.025, "copy", 0.995)


def test_rebuffi2021_is_deepminds_protocol():
    experiment = load("cifar10_rebuffi2021")
    learning_rate, momentum = rates(experiment)
    assert momentum is None
    assert np.argmax(learning_rate) == 100  # after ten epochs
    np.testing.assert_allclose(learning_rate.max(), 0.4, rtol=1e-6)
    assert (experiment.wrappers["mix"].prob, experiment.wrappers["mix"].switch) == (1.0, 1.0)
    assert load("cifar10_gowal2021").plain()["optimizer"] == experiment.plain()["optimizer"]


def test_bartoldson2024_has_the_depth_of_94():
    experiment = load("cifar10_bartoldson2024")
    net = experiment.build_model(10)
    assert 6 * net.module.blocks_per_group + 4 == 94
    assert net.bn_momentum == 0.01


def test_fast_training_is_fast_adversarials():
    plain, free = load("cifar10_fgsm_rs"), load("cifar10_fgsm_rs:free")
    attack = plain.attack
    assert (attack.steps, attack.start, round(255 * attack.step_size)) == (1, "uniform", 10)
    learning_rate, momentum = rates(plain)
    np.testing.assert_allclose([learning_rate[75], momentum[75], momentum[0]], [0.2, 0.8, 0.9], rtol=1e-6)
    assert (free.epochs, free.objective.replays, free.optimizer.lr) == (88, 8, 0.04)
    n_fgsm = load("cifar10_fgsm_rs", {"attack.name": "n_fgsm"})
    assert (n_fgsm.attack.noise_scale, n_fgsm.attack.step_scale) == (2.0, 1.0)
    assert n_fgsm.evaluation.step_size == 2 / 255


@pytest.mark.parametrize("name", ["imagenet_convnext_t", "imagenet_vit_s"])
def test_singh2023_is_its_codes_protocol(name):
    experiment = load(name)
    assert str(experiment.method) == "pgd_at+mix+ema"
    assert (experiment.attack.name, experiment.attack.steps, experiment.attack.start) == ("apgd", 2, "none")
    assert (experiment.attack.eps, experiment.evaluation.eps) == (4 / 255, 4 / 255)
    assert (experiment.dataset.image_size, experiment.dataset.interpolation) == (224, "bicubic")
    assert (experiment.dataset.policy, experiment.dataset.erasing) == ("randaugment", 0.25)
    mix, optimizer = experiment.wrappers["mix"], experiment.optimizer
    assert (mix.prob, mix.mixup_alpha, mix.cutmix_alpha, mix.switch, mix.label_smoothing) == (1.0, 0.8, 1.0, 0.5, 0.1)
    assert experiment.objective.label_smoothing == 0.0  # once
    assert (optimizer.name, optimizer.b1, optimizer.b2, optimizer.weight_decay) == ("adamw", 0.9, 0.95, 0.05)
    learning_rate, _ = rates(experiment)
    assert len(learning_rate) == 3000
    assert np.argmax(learning_rate) == 200  # after twenty epochs
    # The code's: half a cosine from the warm-up's end to the run's; and a straight rise.
    epochs = np.arange(3000) / 10
    fall = 0.5e-3 * (1 + np.cos(np.pi * (epochs - 20) / 280))
    np.testing.assert_allclose(learning_rate[200:], fall[200:], atol=1e-8)
    np.testing.assert_allclose(learning_rate[:200], 1e-3 * epochs[:200] / 20, atol=6e-6)
    average = experiment.build_average()
    assert (average.weight, average.every) == (0.9999, "step")
    assert experiment.build_model(1000).module.mean == ((0.485, 0.456, 0.406) if "vit" in name else ())


def test_resnet50_is_fine_tuned_with_salman2020s_attack():
    experiment = load("imagenet_resnet50:nmse+piat")
    attack = experiment.attack
    assert (attack.name, attack.steps) == ("pgd", 3)
    np.testing.assert_allclose(attack.step_size, attack.eps * 2 / 3)
    assert (experiment.batch_size, experiment.optimizer.weight_decay) == (512, 1e-4)
    shapes = jax.eval_shape(experiment.build_model(1000).init, KEY, jnp.zeros((1, 224, 224, 3))).params
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 25_557_032  # as torchvision counts it


def test_fine_tuning_leaves_the_images_side_alone_most():
    experiment = load("finetune", {"model.name": "small_resnet"})
    net = experiment.build_model(10)
    optimizer = experiment.build_recipe(500, net=net, image_shape=(32, 32, 3)).optimizer
    params = net.init(KEY, jnp.zeros((1, 32, 32, 3))).params
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(ones, optimizer.init(params), params)
    first, last = (float(jnp.abs(updates[name]["conv" if name == "conv1" else "dense"]["kernel"]).mean())
                   for name in ("conv1", "linear"))  # fmt: skip
    assert 0 < first < 0.5 * last
