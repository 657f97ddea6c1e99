"""Config files: which there are, and what they define."""

import contextlib
import importlib.util
import runpy
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from piat_jax.averaging import AVERAGES, INTERPOLATIONS
from piat_jax.core.checks import InputError, did_you_mean
from piat_jax.core.files import expanded
from piat_jax.experiment.chosen import CHOOSERS
from piat_jax.experiment.config.defaults import OF_DEFAULTS, complete, place_default_knots
from piat_jax.experiment.methods import average_kind, parse_method
from piat_jax.experiment.run import Run
from piat_jax.objectives import METHODS, WRAPPERS

PACKAGE = Path(__file__).parents[2]


def names() -> list[str]:
    """The names of the configs that are installed with the package.

    >>> names()[:2]
    ['cifar100_resnet18', 'cifar100_wrn32_10']
    """
    return sorted(path.stem for path in _folder().glob("*.py") if path.stem not in ("__init__", "common"))


def is_file(text: str) -> bool:
    """Whether a config's text names a file, and not a config that is installed with the package.

    >>> is_file("embedded:piat")
    False
    """
    name = text.partition(":")[0]
    return name.endswith(".py") and expanded(name).is_file()


def read(text: str) -> ConfigDict:
    """Read the config with a name or in a file, for the method after a colon; locked against new fields.

    Raises:
      InputError: there is no such config, it defines no get_config, or the method is unknown.
    """
    name, _, method = text.partition(":")
    path = _path(name)
    with _errors_in(name, path):
        module = _execute(path)
        if "get_config" not in module:
            raise InputError(f"config={name!r} does not define a function get_config(method)")
        if method:
            _check_registered(name, path, method)
        config: Any = module["get_config"](method) if method else module["get_config"]()
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"config={name!r}: get_config returned {type(config).__name__}; return a ConfigDict, such as "
            "piat_jax.configs.common.get_config(method) with fields changed"
        )
    if method and "method" in config and parse_method(str(config["method"])) != parse_method(method):
        raise InputError(
            f"config={name!r}: get_config({method!r}) returned a config of the method {str(config['method'])!r}; "
            "pass the argument on: common.get_config(method)"
        )
    for group in CHOOSERS:
        complete(config, group)
    given: Any = config
    if "optimizer" in config:
        place_default_knots(given.optimizer, given.get("epochs", OF_DEFAULTS))
    return config.lock()


def define(text: str, run: Run | None = None) -> None:
    """Execute a config file for the methods, networks and the like that it defines; its values are not used.

    Args:
      text: `FILE.py` or `FILE.py:METHOD`.
      run: whose method METHOD must be.

    Raises:
      InputError: there is no such file, it fails, or METHOD is not the run's.
    """
    name, _, method = text.partition(":")
    if not is_file(text):
        raise InputError(f"config={name!r} is not a config file; give the path of one, such as 'mine.py'")
    path = expanded(name)
    with _errors_in(name, path):
        _execute(path)
    if not method or run is None or not run.exists:
        return
    _check_registered(name, path, method)
    own = run.experiment().method
    if parse_method(method) != own:
        raise InputError(
            f"config={text!r}: the run in {str(run.folder)!r} has the method {str(own)!r}; give --config={name}, "
            "which takes the method from the run"
        )


def _folder() -> Path:
    """The folder with these configs: in the package, or next to it in a checkout."""
    return next(path for path in (PACKAGE / "configs", PACKAGE.parent / "configs") if path.is_dir())


def _path(name: str) -> Path:
    """The path of a config file."""
    path = expanded(name)
    if path.is_file():
        return path
    if "/" not in name and name.removesuffix(".py") in names():
        return _folder() / f"{name.removesuffix('.py')}.py"
    if "/" not in name and not name.endswith(".py"):
        hint = did_you_mean(name, names())
        end = "" if hint.endswith("?") else "."
        raise InputError(f"config={name!r} is unknown{hint}{end} A file needs its ending .py")
    others = sorted(str(other) for other in path.parent.glob("*.py") if other.stem not in ("__init__", "common"))
    hint = did_you_mean(name, others) if others else f"; there are no config files in {path.parent.absolute()}"
    raise InputError(f"config={name!r} is not a file{hint}")


def _execute(path: Path) -> Mapping[str, Any]:
    """Execute a config file and return what it defines."""
    root = str(path.resolve().parent.parent)
    # Files in a folder `configs` may import their neighbours as configs.NAME.
    if path.resolve().parent.name == "configs" and root not in (*sys.path, str(PACKAGE)):
        sys.path.insert(0, root)
    name = _module_name(path)
    if name == "__main__":  # the running program, which must not start again
        return vars(sys.modules[name])
    return runpy.run_path(str(path), run_name=name)


def _module_name(path: Path) -> str:
    """The name by which Python imports a file, so that what it registers is the same either way; else a new name."""
    for name, module in list(sys.modules.items()):
        if _is_at(vars(module).get("__file__") if hasattr(module, "__dict__") else None, path):
            return name
    spec = None
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
    return path.stem if spec and _is_at(spec.origin, path) else f"piat_config_{path.stem}"


def _is_at(file: object, path: Path) -> bool:
    return isinstance(file, str) and Path(file).name == path.name and Path(file).resolve() == path.resolve()


@contextlib.contextmanager
def _errors_in(name: str, path: Path) -> Iterator[None]:
    """Turn any error in the user's file into an InputError with its line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        told: Any = error
        while isinstance(told, KeyError | AttributeError) and len(told.args) == 1:  # ConfigDict nests them
            told = told.args[0]
        text = " ".join(str(told).split("\n"))
        raise InputError(f"config={name!r}: {_place(error, path)}{type(error).__name__}: {text}") from error


def _place(error: Exception, path: Path) -> str:
    """The line of a file that an error comes from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
    return f"line {line}: " if line else ""


def _check_registered(name: str, path: Path, method: str) -> None:
    """Raise InputError if a file of the user's does not register a part of the method, which resembles no other."""
    known = [*METHODS, *WRAPPERS, *AVERAGES, *INTERPOLATIONS]
    for part in method.split("+"):
        is_known = part in known or average_kind(part) in AVERAGES
        if is_known or not part or path.parent == _folder() or "did you mean" in did_you_mean(part, known):
            continue
        raise InputError(
            f'{name} registers no method {part!r}; decorate the class with @method("{part}", ...), or give the name of '
            "another method (piat-methods lists them)"
        )
