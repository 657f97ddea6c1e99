"""What the design says of imports.

`make lint` checks it: import-linter the layers and who may import what, ruff relative imports and JAX's own parts
(pyproject.toml). Here are violations of each kind, which they must see.

By hand is what neither can do. Ruff's TID253 (imports at module level) looks at top-level statements alone, so one
under `if`, `try` or `class` passes, and that is where an import of a package that may be missing stands. No linter
looks into strings for XLA_FLAGS, an unknown one of which aborts the process.
"""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "piat_jax").rglob("*.py"))
# Imported inside functions only: not needed by every user.
LAZY = {
    *("matplotlib", "tensorflow", "tensorflow_datasets", "torch", "torchvision", "tensorboardX", "timm", "scipy"),
    *("onnx", "flatbuffers", "safetensors", "wandb", "mlflow", "huggingface_hub"),
}


def name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_deferred(node):
    """Whether what it holds does not run on import: a function, or what only type checkers read."""
    for_types = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.Lambda) or for_types


def violations(source, module):
    tree = ast.parse(source)
    deferred = {id(n) for f in ast.walk(tree) if is_deferred(f) for n in ast.walk(f)}
    for node in ast.walk(tree):
        targets = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        targets += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for target in targets:
            # A class of matplotlib's, which a figure that is pickled looks for in its module.
            its_own = module == "piat_jax.analysis.picture" and target == "matplotlib.figure"
            if target.partition(".")[0] in LAZY and id(node) not in deferred and not its_own:
                yield f"{module} imports {target} outside a function"
        reads = module == "piat_jax.programs.cpu.options"  # what the user has set
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "XLA_FLAGS" in node.value and not reads:
            yield f"{module} speaks of XLA_FLAGS; an unknown flag aborts the process"


def test_the_class_of_matplotlib_is_imported_where_it_is_used():
    importing = "from piat_jax.analysis.picture import"
    found = [line for path in FILES for line in path.read_text().splitlines() if importing in line]
    assert found
    assert all(line.startswith("    ") for line in found)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_what_is_checked_by_hand(path):
    assert list(violations(path.read_text(), name(path))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import matplotlib.pyplot as plt",
        "from torch import nn",
        "if DRAW:\n    import matplotlib",
        "try:\n    import onnx\nexcept ImportError:\n    onnx = None",
        "class A:\n    import scipy",
        "import os\nos.environ['XLA_FLAGS'] = ''",
    ],
)
def test_a_violation_is_seen_by_hand(source):
    assert list(violations(source, "piat_jax.analysis.curves"))


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    import matplotlib.pyplot as plt",
        "if TYPE_CHECKING:\n    from matplotlib.figure import Figure",
    ],
)
def test_what_is_allowed_by_hand_passes(source):
    assert list(violations(source, "piat_jax.analysis.curves")) == []


def test_a_violation_is_seen_by_ruff():
    pytest.importorskip("ruff")
    planted = [
        "from . import norms",
        "from ..models import create",
        "from jax import core",
        "from jax._src import dtypes",
        "from jax.experimental import pjit",
        "import jax.interpreters.mlir",
        "import jax",
        "x = jax.core.Tracer",
        "y = jax._src",
    ]
    command = [sys.executable, "-m", "ruff", "check", "--select=TID", "--output-format=concise", "--stdin-filename"]
    found = subprocess.run(
        [*command, "piat_jax/core/planted.py", "-"], input="\n".join(planted), text=True, capture_output=True, cwd=ROOT
    )
    lines = {int(line.split(":")[1]) for line in found.stdout.splitlines() if " TID25" in line}
    assert lines == {1, 2, 3, 4, 5, 6, 8, 9}


# File below piat_jax -> a line, and what import-linter says of it.
PLANTED = {
    "core/norms.py": ("from piat_jax import losses", "piat_jax.core.norms -> piat_jax.losses"),
    "core/rng.py": ("import piat_jax.models.layers", "piat_jax.core.rng -> piat_jax.models.layers"),
    "attacks/pgd.py": ("from piat_jax.models import vit", "piat_jax.attacks.pgd -> piat_jax.models.vit"),
    "attacks/fab.py": ("def f():\n    import piat_jax.data", "piat_jax.attacks.fab -> piat_jax.data"),
    "training/step.py": (
        "from piat_jax.evaluation import blocks",
        "piat_jax.training.step -> piat_jax.evaluation.blocks",
    ),
    "training/loop.py": (
        "from piat_jax.checkpoint import Checkpoints",
        "piat_jax.training.loop -> piat_jax.checkpoint",
    ),
    "analysis/curves.py": ("from piat_jax.interop import names", "piat_jax.analysis.curves -> piat_jax.interop.names"),
    "interop/names.py": ("from piat_jax.experiment import x", "piat_jax.interop.names -> piat_jax.experiment.x"),
    "evaluation/blocks.py": ("import piat_jax.cli.errors", "piat_jax.evaluation.blocks -> piat_jax.cli.errors"),
    "training/epoch.py": ("import flax.linen as nn", "piat_jax.training.epoch -> flax"),
    "evaluation/accuracy.py": ("from absl import flags", "piat_jax.evaluation.accuracy -> absl"),
    "experiment/x.py": ("from ml_collections import ConfigDict", "piat_jax.experiment.x -> ml_collections"),
    "experiment/y.py": ("from absl import flags", "piat_jax.experiment.y -> absl"),
    "experiment/run.py": ("from piat_jax.configs import common", "piat_jax.experiment.run -> piat_jax.configs.common"),
    "benchmark/ours.py": ("from piat_jax.cli import errors", "piat_jax.benchmark.ours -> piat_jax.cli.errors"),
    "cli/report.py": ("import ml_collections", "piat_jax.cli.report -> ml_collections"),
    "interop/weights.py": ("def f():\n    from orbax.checkpoint import v1", "piat_jax.interop.weights -> orbax"),
    "other/z.py": ("", "piat_jax.other"),
}
ALLOWED = {
    "experiment/config/files.py": "import ml_collections\nfrom piat_jax.interop import names",
    "cli/errors.py": "from absl import flags\nfrom piat_jax.experiment import config",
    "models/layers.py": "import flax.linen",
}


def test_a_violation_is_seen_by_import_linter(tmp_path):
    pytest.importorskip("importlinter")
    shutil.copytree(ROOT / "piat_jax", tmp_path / "piat_jax", ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path, text in {**{path: line for path, (line, _) in PLANTED.items()}, **ALLOWED}.items():
        file = tmp_path / "piat_jax" / path
        file.parent.mkdir(exist_ok=True)
        (file.parent / "__init__.py").touch()
        with file.open("a") as stream:
            stream.write(f"\n{text}\n")
    run = "from importlinter.cli import lint_imports_command as run; run()"
    arguments = ["--no-logo", "--no-cache", "pyproject.toml"]
    done = subprocess.run([sys.executable, "-c", run, *arguments], text=True, capture_output=True, cwd=tmp_path)
    assert done.returncode == 1
    assert [said for _, said in PLANTED.values() if said not in done.stdout] == []
    assert not any(f"piat_jax.{path[:-3].replace('/', '.')} ->" in done.stdout for path in ALLOWED)
