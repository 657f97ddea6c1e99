"""What GPUs and TPUs run is traced and lowered here, as no machine of the tests has one."""

import jax
import jax.numpy as jnp
import pytest

from piat_jax import models
from piat_jax.attacks import bind, pgd
from piat_jax.attacks.ensemble import MEMBERS, ensemble
from piat_jax.core.forward import make_logits_fn
from piat_jax.objectives import NMSE
from piat_jax.programs.platform import compiling_for
from piat_jax.training import Examples, Recipe, init_state, sgd, train_steps

KEY, IMAGES, LABELS = jax.random.key(0), jnp.zeros((8, 8, 8, 3)), jnp.zeros(8, jnp.int32)
# Of 64 channels, where a CPU has its own convolutions.
NETWORKS = {
    "small_resnet": {"width": 64, "stem_stride": 1},
    "vit": {"width": 16, "depth": 1, "heads": 2, "patch_size": 4},
}


@pytest.fixture(params=["cuda", "tpu"])
def lowered(request):
    def text(fn, *arguments, **options):
        return fn.trace(*arguments, **options).lower(lowering_platforms=(request.param,)).as_text()

    with compiling_for({"cuda": "gpu"}.get(request.param, request.param)):
        yield text


@pytest.mark.parametrize("name", NETWORKS)
def test_training_lowers_without_what_is_for_cpus(lowered, name):
    net = models.create(name, num_classes=10, dtype="bfloat16", **NETWORKS[name])
    recipe = Recipe(sgd(0.1, momentum=0.9), batch_size=8, crop_padding=1, flip=True)
    objective = jax.tree.map(jnp.asarray, NMSE(model=net, attack=bind(pgd, eps=0.03, step_size=0.01, steps=2)))
    state = jax.eval_shape(lambda: init_state(objective, recipe.optimizer, IMAGES, key=KEY))
    examples = Examples(IMAGES.astype(jnp.uint8), LABELS)
    # Not `train_steps` itself, which would ask this machine's XLA for its options.
    steps = jax.jit(train_steps.program, static_argnames="recipe", donate_argnames="state")
    text = lowered(steps, state, objective, examples, KEY, *map(jnp.int32, (0, 1, 9)), recipe=recipe)
    assert "bf16" in text
    assert "stablehlo.while" in text
    # A GPU's ReLU is behind one.
    assert text.count("optimization_barrier") == text.count("func.func private @Relu")


@pytest.mark.parametrize("name", MEMBERS)
def test_autoattack_lowers(lowered, name):
    net = models.create("small_resnet", num_classes=10, width=4)
    logits_fn = make_logits_fn(net, net.init(KEY, IMAGES))
    (member,) = ensemble(attacks=(name,), steps=5, queries=5)
    options = {"targets": LABELS} if member.targets else {}
    attack = jax.jit(lambda x, y: member.attack(logits_fn, x, y, key=KEY, eps=0.03, norm="linf", **options).images)
    assert "stablehlo.while" in lowered(attack, IMAGES, LABELS)
