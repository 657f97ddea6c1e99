# %% [markdown]
# # Attack your own model
#
# An attack here is a pure function: `attack(logits_fn, images, labels, key=key)`. `logits_fn` maps images `[N, H, W, C]` in [0, 1] to logits `[N, K]`, and may come from
# any library. Inside `jit` values cannot be checked: call the attack once outside `jit` first. This page shows Flax NNX, Equinox, Haiku and PyTorch, and then PIAT with BatchNorm.

# %%
import jax
import jax.numpy as jnp

import piat_jax
from piat_jax.attacks import bind, pgd

data = piat_jax.data.load("embedded", train_examples=512, test_examples=100)
images, labels = jnp.asarray(data.test.images, jnp.float32) / 255, jnp.asarray(data.test.labels)
attack = bind(pgd, eps=0.1, step_size=0.02, steps=10)


def robust_accuracy(logits_fn):
    """Accuracy on clean images, and after PGD."""
    adversarial = jax.jit(lambda x, y: attack(logits_fn, x, y, key=jax.random.key(0)))(images, labels)
    return [float((logits_fn(x).argmax(-1) == labels).mean()) for x in (images, adversarial)]


# %% [markdown]
# ## Flax NNX, with BatchNorm
#
# Evaluation mode matters: in training mode each logit depends on the other images of the batch. The network is trained briefly on clean images, so that there is something to
# break.

# %%
import optax
from flax import nnx


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8 * 14 * 14, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(x.reshape(len(x), -1))


train_images, train_labels = jnp.asarray(data.train.images, jnp.float32) / 255, jnp.asarray(data.train.labels)
net = Net(nnx.Rngs(0))
optimizer = nnx.Optimizer(net, optax.adam(1e-3), wrt=nnx.Param)


@nnx.jit
def step(net, optimizer, x, y):
    def loss(net):
        return optax.softmax_cross_entropy_with_integer_labels(net(x), y).mean()

    optimizer.update(net, nnx.grad(loss)(net))


for number in range(60):
    rows = slice(64 * (number % 8), 64 * (number % 8) + 64)
    step(net, optimizer, train_images[rows], train_labels[rows])
net.eval()
print("clean and PGD-10:", robust_accuracy(net))

# %% [markdown]
# ## AutoAttack, the same function
#
# Few steps and queries keep this example fast; leave them out for the real evaluation. The table shows how many examples each attack was run on and broke, and warnings if the
# result is doubtful.

# %%
from piat_jax.evaluation import AutoAttack

print(AutoAttack(eps=0.1, steps=10, queries=50).run(net, images[:32], labels[:32]))

# %% [markdown]
# AutoAttack detects misuse. NNX itself refuses to update statistics inside an attack; a copy that does so is detected:

# %%
net.train()
graph, state = nnx.split(net)
result = AutoAttack(eps=0.1, attacks=("apgd-ce",), steps=5).run(
    lambda x: nnx.merge(graph, state, copy=True)(x), images[:32], labels[:32]
)
for finding in result.findings:
    print(finding.message)
net.eval()

# %% [markdown]
# ## Equinox and Haiku
#
# Their networks are functions of one image, or of parameters: close over the rest.

# %%
import equinox as eqx
import haiku as hk

linear = eqx.nn.Linear(28 * 28, 10, key=jax.random.key(1))
print("Equinox:", robust_accuracy(lambda x: jax.vmap(lambda image: linear(image.ravel()))(x)))

network = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(10)(x.reshape(len(x), -1))))
params = network.init(jax.random.key(1), images)
print("Haiku:", robust_accuracy(lambda x: network.apply(params, x)))

# %% [markdown]
# ## PyTorch
#
# `torch_logits_fn` runs the module in PyTorch, including gradients. (PyTorch is not installed where this page was built.)
#
#     from piat_jax.interop import torch_logits_fn
#
#     result = AutoAttack(eps=8 / 255).run(torch_logits_fn(module.eval()), images, labels)
#
# Or convert the weights to a JAX network:
#
#     model = piat_jax.load("weights.pt", model="wrn_28_10", num_classes=10)

# %% [markdown]
# ## PIAT with BatchNorm
#
# `interpolated` wraps any optax optimizer, and interpolates the parameters every `period` steps. BatchNorm's running statistics are not parameters: re-estimate them at the weights
# that you evaluate.

# %%
from flax import linen as nn

from piat_jax.averaging import eval_params, interpolated, recompute_batch_stats
from piat_jax.core.types import Variables
from piat_jax.models import LinenModel


class Small(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3), strides=2)(images))
        return nn.Dense(10)(nn.relu(x).reshape(len(x), -1))


model = LinenModel(Small())
params, state = model.init(jax.random.key(0), images[:1])
piat = interpolated(optax.sgd(0.05, momentum=0.9), period=8)  # epochs of 8 steps
opt_state = piat.init(params)


@jax.jit
def adversarial_step(params, state, opt_state, x, y, key):
    x = attack(lambda x: model.apply(params, state, x, train=False)[0], x, y, key=key)

    def loss(params):
        logits, new = model.apply(params, state, x, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

    gradient, state = jax.grad(loss, has_aux=True)(params)
    updates, opt_state = piat.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), state, opt_state


for number in range(48):
    rows = slice(64 * (number % 8), 64 * (number % 8) + 64)
    batch = train_images[rows], train_labels[rows], jax.random.key(number)
    params, state, opt_state = adversarial_step(params, state, opt_state, *batch)

best = Variables(eval_params(opt_state, params), state)
best = recompute_batch_stats(model, best, train_images.reshape(8, 64, 28, 28, 1), momentum=0.99)  # Flax's own
print("PIAT:", robust_accuracy(lambda x: model.apply(*best, x, train=False)[0]))

# %% [markdown]
# With Flax NNX, split the network into parameters and the rest. `recompute_batch_stats` takes any object with `apply(params, model_state, images, train, key)`, whose state has the
# statistics under `"batch_stats"`:


# %%
class OfNNX:
    """An NNX network as two pure parts."""

    def __init__(self, net):
        self.graph, self.params, self.stats = nnx.split(net, nnx.Param, ...)

    def apply(self, params, model_state, images, *, train, key=None):
        net = nnx.merge(self.graph, params, model_state["batch_stats"], copy=True)
        net.train() if train else net.eval()
        logits = net(images)
        return logits, {"batch_stats": nnx.split(net, nnx.Param, ...)[2]}


model = OfNNX(net)
params, state = model.params, {"batch_stats": model.stats}
opt_state = piat.init(params)
for number in range(48):
    rows = slice(64 * (number % 8), 64 * (number % 8) + 64)
    batch = train_images[rows], train_labels[rows], jax.random.key(number)
    params, state, opt_state = adversarial_step(params, state, opt_state, *batch)
best = Variables(eval_params(opt_state, params), state)
best = recompute_batch_stats(model, best, train_images.reshape(8, 64, 28, 28, 1), momentum=0.9)
print("NNX, clean and PGD-10:", robust_accuracy(lambda x: model.apply(*best, x, train=False)[0]))
