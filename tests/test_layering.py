"""The import rules of the design, read off the syntax tree of every file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "piat_jax").rglob("*.py"))
# A part imports only from the layers before its own; parts of one layer never import each other.
LAYERS = [
    {"core"},
    {"losses"},
    {"models", "data", "averaging", "attacks"},
    {"objectives"},
    {"training"},
    {"checkpoint"},
    {"evaluation"},
    {"analysis", "interop"},
    {"cli"},
]
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
# Third-party package -> the only part that may import it.
CONFINED = {"flax": "models", "absl": "cli", "ml_collections": "cli", "orbax": "checkpoint"}
# Imported inside functions only: not needed by every user.
LAZY = {
    *("matplotlib", "tensorflow", "tensorflow_datasets", "torch", "torchvision", "tensorboardX", "timm", "scipy"),
    *("onnx", "flatbuffers", "safetensors"),
}


def name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def part(module):
    """`core` for `piat_jax.core.checks`; None outside the library and for the library's own name."""
    head, _, rest = module.partition(".")
    return rest.split(".")[0] or None if head == "piat_jax" else None


def is_deferred(node):
    """Whether what it holds does not run on import: a function, or what only type checkers read."""
    for_types = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.Lambda) or for_types


def imports(tree, module):
    """`(dotted name, whether at module level)` of everything a file imports, relative imports resolved."""
    inside = {id(n) for f in ast.walk(tree) if is_deferred(f) for n in ast.walk(f)}
    for node in ast.walk(tree):
        top = id(node) not in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *filter(None, [base])])
            # `from piat_jax import losses` names a part; `from piat_jax.core.types import Array` does not add one.
            yield from ((f"{base}.{alias.name}", top) for alias in node.names)


def violations(source, module):
    tree = ast.parse(source)
    here = part(module)
    for target, top in imports(tree, module):
        there, package = part(target), target.split(".")[0]
        if here and there in LAYER and there != here and LAYER[there] >= LAYER[here]:
            yield f"{module} imports {target}: {there} is not below {here}"
        if CONFINED.get(package, here) != here:
            yield f"{module} imports {target}: only {CONFINED[package]} may"
        if package in LAZY and top:
            yield f"{module} imports {target} outside a function"
        if target.startswith(("jax.core", "jax._src", "jax.interpreters", "jax.experimental.pjit")):
            yield f"{module} imports {target}, which is JAX's own"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(("jax.core.", "jax._src.")):
            yield f"{module} uses {ast.unparse(node)}, which is JAX's own"
        reads = module == "piat_jax.core.compiler"  # what the user has set
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "XLA_FLAGS" in node.value and not reads:
            yield f"{module} speaks of XLA_FLAGS; an unknown flag aborts the process"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports(path):
    assert list(violations(path.read_text(), name(path) + ("." if path.name == "__init__.py" else ""))) == []


def test_every_part_has_a_layer():
    parts = {path.relative_to(ROOT / "piat_jax").parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert parts <= set(LAYER)
    assert len(FILES) > 30


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.norms", "from piat_jax import losses"),
        ("core.norms", "import piat_jax.models.layers"),
        ("attacks.pgd", "from piat_jax.models import create"),
        ("attacks.pgd", "from ..models import create"),
        ("attacks.pgd", "def f():\n    from piat_jax.data import load"),
        ("training.step", "from piat_jax.evaluation import accuracy"),
        ("training.step", "import flax.linen as nn"),
        ("evaluation.accuracy", "from absl import flags"),
        ("training.loop", "from orbax.checkpoint import v1"),
        ("analysis.plot", "import matplotlib.pyplot as plt"),
        ("analysis.plot", "if DRAW:\n    import matplotlib"),
        ("analysis.plot", "from piat_jax.interop import torch"),
        ("core.checks", "import jax\nx = jax.core.Tracer"),
        ("core.checks", "from jax._src import core"),
        ("cli.train", "import os\nos.environ['XLA_FLAGS'] = ''"),
    ],
)
def test_a_violation_is_seen(module, source):
    assert list(violations(source, f"piat_jax.{module}"))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("attacks.pgd", "from piat_jax import losses\nfrom piat_jax.core.norms import norm\nfrom . import fab"),
        ("models.layers", "import flax.linen as nn\nfrom piat_jax.models.conv import conv"),
        ("evaluation.accuracy", "from piat_jax.data.batching import batches\nfrom piat_jax.attacks import pgd"),
        ("cli.train", "from absl import flags\nfrom piat_jax.cli import build"),
        ("analysis.plot", "def f():\n    import matplotlib.pyplot as plt"),
        ("analysis.plot", "if TYPE_CHECKING:\n    from matplotlib.figure import Figure"),
    ],
)
def test_what_is_allowed_passes(module, source):
    assert list(violations(source, f"piat_jax.{module}")) == []
