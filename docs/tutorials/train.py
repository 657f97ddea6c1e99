# %% [markdown]
# # Train in five minutes
#
# A small ResNet learns to withstand PGD on 1,024 images of Fashion-MNIST, which are part of the package. Three epochs of `nmse+piat` show the steps; the config's 100 epochs
# take a few minutes on a CPU. The same in a shell is `piat-train --config=embedded:nmse+piat --workdir=runs/first`.

# %%
import tempfile

import piat_jax

folder = tempfile.mkdtemp()
run = piat_jax.train("embedded:nmse+piat", workdir=f"{folder}/first", epochs=3, overrides={"attack.steps": 5})

# %% [markdown]
# `overrides` takes any field of the config. A wrong one raises an error immediately, before anything is written:

# %%
try:
    piat_jax.train("embedded:nmse+piat", workdir=f"{folder}/wrong", overrides={"attack.esp": 0.1})
except piat_jax.InputError as error:
    print(error)

# %% [markdown]
# The run's folder has everything: config, metrics, checkpoints. `metrics()` has a record for each epoch.

# %%
for record in run.metrics():
    print(
        {
            name: round(value, 3)
            for name, value in record.items()
            if name in ("epoch", "train_loss", "test_clean", "test_pgd20")
        }
    )

# %% [markdown]
# ## Evaluate
#
# The loaded model is a function from images to logits, and has the evaluations as methods. `"aa"` would be AutoAttack.

# %%
model = piat_jax.load(run.folder)
test = piat_jax.data.load("embedded", test_examples=200).test
print(model)
print(model.evaluate(test.images, test.labels, "clean,pgd10"))

# %% [markdown]
# ## What an adversarial image looks like
#
# Clean images, the same images after the attack, and the difference; true and predicted classes are above.

# %%
model.show(test.images, test.labels, attack="pgd20", count=8)

# %% [markdown]
# ## Resume
#
# A stopped run resumes where it was; a finished run can be extended by more epochs.

# %%
run = piat_jax.train("embedded:nmse+piat", workdir=run.folder, epochs=4, overrides={"attack.steps": 5}, resume=True)
print(len(run.metrics()), "epochs")

# %% [markdown]
# ## Export
#
# As safetensors with a model card; `to_torch`, `to_onnx` and `to_jax` write the other formats.

# %%
from pathlib import Path

model.to_safetensors(f"{folder}/exported")
print(sorted(path.name for path in Path(f"{folder}/exported").iterdir()))
