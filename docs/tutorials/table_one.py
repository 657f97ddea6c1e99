# %% [markdown]
# # Reproduce Table I
#
# The PIAT paper's Table I compares eight defences at their best and final epoch. `python -m experiments.run piat` lists the items that this repository reproduces. Run it in a
# checkout (the repository, cloned), because `experiments/` is not part of the installed package.

# %%
import subprocess
import sys


def run(command):
    done = subprocess.run([sys.executable, "-m", *command.split()], capture_output=True, text=True)
    print((done.stdout + done.stderr).strip())


run("experiments.run piat")

# %% [markdown]
# ## What would it take?
#
# `--dry_run` lists missing runs and estimates their cost from the cost of a step of each method, and AutoAttack's. Here it is the CPU scale: 512 embedded images.

# %%
run("experiments.run piat table1 --dry_run --seeds=0")

# %% [markdown]
# ## Train it
#
#     python -m experiments.run piat table1 --seeds=0 --aa_examples=200 --rows=PGD-AT,PIAT+NMSE
#     python -m experiments.run piat table1                  # all rows, three seeds
#     python -m experiments.run piat table1 --scale=paper --data=cifar10 --config.dataset.data_dir=~/data
#
# The first line is for a CPU: two rows of the table. On two cores a run trains in about a minute, and AutoAttack on 200 images takes about two. Without `--aa_examples` it attacks all
# 1,000 test images, which takes about ten. Several runs share the cores (`--jobs`). The third line is the paper's scale: ResNet-18, 120 epochs, on a GPU or TPU. You may stop it at any time; the same command resumes it. At the end it writes a report with our
# numbers next to the paper's, intervals over seeds, and a verdict on each claim. Our report, with three seeds, is in the repository:

# %%
from IPython.display import Markdown, display

from pathlib import Path

report = Path("experiments/results/piat/small/report.md").read_text()
start = report.index("Table I")
display(Markdown("...\n\n" + report[start : report.index("\n## ", start)]))

# %% [markdown]
# ## By hand
#
# An item consists of ordinary runs of configs. These are two of the rows, and NMSE without PIAT:
#
#     piat-sweep --config=embedded_512 --methods=trades,nmse,nmse+piat --seeds=0,1,2 --workdir=runs/three_rows
#     piat-evaluate runs/three_rows/trades-seed0 --attacks=clean,pgd20,cw20,aa
#
# `piat-report` makes the table of any runs.
