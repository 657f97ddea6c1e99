"""The application layer: configs are resolved once, in one package, and everything else takes an `Experiment`."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for folder in ("piat_jax", "experiments") for path in (ROOT / folder).rglob("*.py"))
# Where a config is what somebody gives: a name, or what a config file returns.
RESOLVES = (
    "piat_jax/experiment/config/",
    "piat_jax/experiment/front.py",
    "piat_jax/experiment/loading.py",  # the file that defines a run's method, for `load`
)
AT_MOST = 9


def takes_config(source):
    """The functions that have a parameter called config, or of a config's type."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            for argument in arguments:
                hint = ast.unparse(argument.annotation) if argument.annotation else ""
                if argument.arg in ("config", "cfg") or "ConfigDict" in hint:
                    yield node.name


def test_configs_are_taken_in_one_place():
    found = {str(path.relative_to(ROOT)): list(takes_config(path.read_text())) for path in FILES}
    found = {path: names for path, names in found.items() if names and not path.startswith("piat_jax/configs/")}
    assert [path for path in found if not path.startswith(RESOLVES)] == []
    assert sum(map(len, found.values())) <= AT_MOST


@pytest.mark.parametrize("source", ["def f(config): ...", "def f(a, *, config=1): ...", "def f(x: ConfigDict): ..."])
def test_a_function_that_takes_one_is_seen(source):
    assert list(takes_config(source)) == ["f"]
