# %% [markdown]
# # A method of your own
#
# A config file is Python, and may define a network, a method, an average or an attack. It then works with everything else: PIAT, wrappers, checkpoints, resuming, reports. This
# method pairs clean and adversarial logits in the L1 norm.

# %%
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp())
(folder / "mine.py").write_text('''
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.configs import common
from piat_jax.objectives import AttackedObjective, Terms, method


@method("l1_pairing", summary="PGD-AT with clean and adversarial logits near in L1.")
class L1Pairing(AttackedObjective):
    """`mean_i [ CE(z'_i, y_i) + weight |z_i - z'_i|_1 ]`."""

    weight: float = 0.1  # config.objective.weight

    def terms(self, outputs, objective_state, context):
        clean, adversarial = outputs.logits["clean"], outputs.logits["adversarial"]
        pairing = jnp.sum(jnp.abs(clean - adversarial), axis=-1)
        return Terms(losses.cross_entropy(adversarial, outputs.target), self.weight * pairing)


def get_config(method="l1_pairing"):
    config = common.get_config(method)
    config.dataset.name = "embedded"
    config.dataset.crop_padding = 0
    config.model.name = "small_resnet"
    config.model.options.width = 4
    config.attack.eps, config.attack.step_size, config.attack.steps = 0.1, 0.03, 3
    config.epochs = 3
    config.batch_size = 128
    config.optimizer.lr_epochs, config.optimizer.lr_values = (0.0, 3.0), (0.1, 0.02)
    config.evaluation.attacks = ("clean", "pgd10")
    config.evaluation.select = "pgd10"
    return config
''')

# %% [markdown]
# `terms` receives the logits of the clean and the adversarial batch, both in training mode, and returns each example's contribution to the loss. The library handles attack,
# gradient, BatchNorm, label smoothing and several devices. A field of the class is a field of the config.
#
# ## Train it, alone and with PIAT

# %%
import piat_jax

for method in ("l1_pairing", "l1_pairing+piat", "l1_pairing+awp+piat"):
    run = piat_jax.train(f"{folder}/mine.py:{method}", workdir=folder / method)
    last = run.metrics()[-1]
    print(f"{method:20} clean {last['test_clean']:.3f}  PGD-10 {last['test_pgd10']:.3f}")

# %% [markdown]
# In a shell: `piat-train --config=mine.py:l1_pairing+awp+piat --workdir=runs/mine --config.objective.weight=0.2`. `piat-sweep` and `piat-report` compare it with the others.
# To use such a run in another program, say where its method is defined: `piat_jax.load("runs/mine", config="mine.py")`, `piat-evaluate runs/mine --config=mine.py`, or import the file.
#
# ## A wrapper of your own
#
# A wrapper changes any method; its name follows the method's. Every hook delegates to the method inside unless you override it. This one gives more weight to examples whose loss
# is above the running mean. The mean is the wrapper's state, so it is saved and resumed with the run. `terms` reads it, `after_step` updates it.

# %%
(folder / "focus.py").write_text('''
from typing import NamedTuple

import jax
import jax.numpy as jnp

import mine
from piat_jax.objectives import Wrapper, wrapper


class Mean(NamedTuple):
    loss: jax.Array  # running mean of the batch's loss


@wrapper("focus", summary="Weighs examples by their loss relative to the running mean.")
class Focus(Wrapper):
    """Multiplies the adversarial part by `2 sigmoid(loss_i - mean)`."""

    rate: float = 0.1  # config.focus.rate

    def init_own(self, variables, images, *, key):
        return Mean(jnp.zeros(()))

    def terms(self, outputs, objective_state, context):
        terms = super().terms(outputs, objective_state, context)
        distance = jax.lax.stop_gradient(terms.adversarial) - objective_state.own.loss
        return terms._replace(adversarial=2 * jax.nn.sigmoid(distance) * terms.adversarial)

    def after_step(self, variables, objective_state, batch, aux, context):
        objective_state = super().after_step(variables, objective_state, batch, aux, context)
        mean = (1 - self.rate) * objective_state.own.loss + self.rate * aux.metrics["loss"]
        return objective_state._replace(own=Mean(mean))


def get_config(method="focus"):
    return mine.get_config(method)
''')

# %%
import sys

sys.path.insert(0, str(folder))  # focus.py imports mine.py
run = piat_jax.train(
    f"{folder}/focus.py:l1_pairing+focus+piat", workdir=folder / "focus", overrides={"focus.rate": 0.2}
)
last = run.metrics()[-1]
print(f"clean {last['test_clean']:.3f}  PGD-10 {last['test_pgd10']:.3f}")

# %% [markdown]
# ## Is the loss correct?
#
# The loss is a pure function of arrays: compare it with the formula on your own numbers.

# %%
import types

import numpy as np

from piat_jax.objectives import METHODS

objective = METHODS["l1_pairing"](model=None, attack=lambda *arguments, **options: None, weight=0.5)
z, adversarial, labels = np.array([[1.0, 2.0], [0.0, 3.0]]), np.array([[1.5, 1.0], [0.5, 2.0]]), np.array([0, 1])
outputs = types.SimpleNamespace(logits={"clean": z, "adversarial": adversarial}, target=labels)
loss, pairing, *_ = objective.terms(outputs, None, None)
softmax = np.exp(adversarial) / np.exp(adversarial).sum(1, keepdims=True)
np.testing.assert_allclose(loss, -np.log(softmax[[0, 1], labels]), rtol=1e-6)
np.testing.assert_allclose(pairing, 0.5 * np.abs(z - adversarial).sum(1), rtol=1e-6)
print("the formula's numbers:", np.asarray(loss), np.asarray(pairing))

# %% [markdown]
# ## Errors
#
# A name that is already used, or a field without a default, raises an error at its definition. A loss that is not finite stops the run before its step, and the error names the images.

# %%
from piat_jax.objectives import AttackedObjective
from piat_jax.objectives import method as register

try:

    @register("trades")
    class Another(AttackedObjective):
        pass

except piat_jax.InputError as error:
    print(error)
