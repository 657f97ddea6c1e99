"""Config files, and overrides of their fields: the only module besides config files that uses ml_collections.

The result is an `Experiment`. All problems are reported together, with the nearest existing name.
"""

import ast
import contextlib
import copy
import difflib
import importlib.util
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference

from piat_jax.averaging import AVERAGES, INTERPOLATIONS
from piat_jax.core.checks import InputError, did_you_mean
from piat_jax.core.files import expanded
from piat_jax.core.nested import leaves
from piat_jax.experiment.chosen import CHOOSERS, completed
from piat_jax.experiment.experiment import Experiment
from piat_jax.experiment.fields import Fields
from piat_jax.experiment.methods import average_kind, method_groups, parse_method
from piat_jax.experiment.published_crop import published_crop
from piat_jax.experiment.run import KNOTS, Run
from piat_jax.experiment.validate import problems
from piat_jax.interop.published import Published, is_published, published
from piat_jax.models import MODELS, options_of
from piat_jax.objectives import METHODS, WRAPPERS
from piat_jax.training.schedules import SCHEDULES, schedule_fields

PACKAGE = Path(__file__).parents[1]
OF_DEFAULTS = 120
"""The number of epochs that the schedules' default knots are for."""
ONE_OR_SEVERAL = ("dataset.extra",)
"""Fields that hold a text or a tuple of texts; a text with commas is split."""
TEXTS = ("log.to",)
"""Fields that are lists of texts; an empty list does not show its type."""
FOLLOWING = ("eps", "step_size", "norm")
"""Evaluation fields that follow the training attack until they are set, as a wrapper's eps does."""


def load(
    text: str,
    overrides: Mapping[str, Any] = {},
    *,
    trains: bool = True,
    checked: bool = True,
    note: Callable[[str], None] = lambda text: None,
) -> Experiment:
    """Load the experiment of a config, with some of its fields changed.

    Args:
      text: `NAME`, `NAME:METHOD`, `FILE.py` or `FILE.py:METHOD`: a config that is installed with the package, or your
        own file.
      overrides: field to value, `{"attack.eps": 8 / 255}`; text is parsed as on the command line.
      trains: whether it will be trained; if not, the evaluation during training is not checked.
      checked: whether to check values, including teachers from other runs; names and types are always checked.
      note: is called with how a published network's name determined the images.

    Raises:
      InputError: with one line for each problem.

    >>> load("embedded:nmse+piat", {"epochs": 3, "attack.eps": "8/255"}).optimizer.lr_epochs
    (0.0, 1.5, 2.25, 3.0)
    """
    return resolve(read(text), overrides, trains=trains, checked=checked, note=note)


def resolve(
    config: str | ConfigDict | Experiment,
    overrides: Mapping[str, Any] = {},
    *,
    trains: bool = True,
    checked: bool = True,
    note: Callable[[str], None] = lambda text: None,
) -> Experiment:
    """The experiment that a config describes, with some fields changed; arguments and errors as for `load`.

    Raises:
      InputError: also if `config` is neither a ConfigDict nor an `Experiment`.
    """
    if isinstance(config, str):
        config = read(config)
    if not isinstance(config, ConfigDict | Experiment):
        raise InputError(
            f"config is a {type(config).__name__}; give 'NAME:METHOD', what a config file's get_config returns, "
            "or an Experiment"
        )
    fields: Any = config.plain() if isinstance(config, Experiment) else copy.deepcopy(config)
    if isinstance(config, Experiment):
        overrides = _followed(config, overrides)
    overrides = _of_published(fields, overrides, note)
    _choose_options(fields, overrides)
    found = _apply(fields, overrides)
    experiment = Experiment.from_plain(_to_dict(fields))
    found += problems(experiment, trains=trains) if checked else []
    if found:
        raise InputError("\n".join(found))
    return experiment


def resume(
    run: Run,
    config: str | ConfigDict | Experiment | None = None,
    overrides: Mapping[str, Any] = {},
    *,
    note: Callable[[str], None] = lambda text: None,
) -> Experiment:
    """The experiment with which a run resumes: its own or that of a config, with some fields changed.

    The learning-rate knots stay where they are, even if the number of epochs changes. A `FILE.py:METHOD` is only
    executed, for what it defines: the values are the run's.
    """
    if isinstance(config, str) and is_file(config):
        define(config, run)
        config = None
    elif isinstance(config, str):
        config = read(config)
    own = run.experiment()
    if "epochs" in overrides:
        rest = own.optimizer.rest
        overrides = {**{f"optimizer.{name}": rest[name] for name in KNOTS if name in rest}, **overrides}
    return resolve(config or own, overrides, note=note)


def is_file(text: str) -> bool:
    """Whether a config's text names a file, and not a config that is installed with the package.

    >>> is_file("embedded:piat")
    False
    """
    name = text.partition(":")[0]
    return name.endswith(".py") and expanded(name).is_file()


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


def default_config(method: str = "pgd_at") -> ConfigDict:
    """All fields of a method's experiment with their defaults, for config files to change.

    `evaluation.eps`, `step_size` and `norm` and the wrappers' `eps` follow the training attack until they are set.
    """
    stack = parse_method(method)
    groups = method_groups(stack)
    of_attack = groups.pop("attack")
    wrappers = {name: Fields(groups[name]) for name in stack.wrappers}
    plain = Experiment(
        method=stack,
        objective=Fields(groups["objective"]),
        wrappers=wrappers,
        average=Fields(groups.get("average", {})),
        further={name: Fields(groups[name]) for name in stack.further},
    ).plain()
    for path in ONE_OR_SEVERAL:
        group, _, name = path.partition(".")
        plain[group][name] = FieldReference(plain[group][name], field_type=object)  # else it accepts only one type
    config: Any = ConfigDict(plain)
    config.attack.update(of_attack)
    for group, name in _followers(config, wrappers):
        config[group][name] = config.attack.get_oneway_ref(name)
    return config


def _followers(config: Any, wrappers: Iterable[str]) -> list[tuple[str, str]]:
    """The fields that follow the attack's field of the same name, as (group, name)."""
    found = [(group, "eps") for group in wrappers if "eps" in config[group]]
    return [*found, *(("evaluation", name) for name in FOLLOWING if name in config["attack"])]


def names() -> list[str]:
    """The names of the configs that are installed with the package.

    >>> names()[:2]
    ['cifar100_resnet18', 'cifar100_wrn32_10']
    """
    return sorted(path.stem for path in _folder().glob("*.py") if path.stem not in ("__init__", "common"))


def _folder() -> Path:
    """The folder with these configs: in the package, or next to it in a checkout."""
    return next(path for path in (PACKAGE / "configs", PACKAGE.parent / "configs") if path.is_dir())


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
        _complete(config, group)
    given: Any = config
    if "optimizer" in config:
        _place_default_knots(given.optimizer, given.get("epochs", OF_DEFAULTS))
    return config.lock()


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


def _complete(config: Any, group: str) -> None:
    """Add the fields that a group's choices bring, and remove those of other choices."""
    if "method" not in config or group not in config:
        return
    fields: Any = config[group]
    before = _to_dict(fields)
    after = completed(group, before, _to_dict(default_config(str(config["method"])))[group])
    with config.unlocked() if isinstance(config, ConfigDict) else contextlib.nullcontext():
        for name in before.keys() - after.keys():
            del fields[name]
        for name, value in after.items():
            if name not in before or before[name] != value:
                fields[name] = value


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


def _place(error: Exception, path: Path) -> str:
    """The line of a file that an error comes from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
    return f"line {line}: " if line else ""


def _to_dict(config: Any) -> dict[str, Any]:
    """A config as nested dicts, with its references resolved."""
    return {name: _to_dict(value) if isinstance(value, ConfigDict | dict) else value for name, value in config.items()}


def _apply(config: Any, overrides: Mapping[str, Any]) -> list[str]:
    """Set fields, parsed by their types; return the problems, one line each."""
    found = []
    epochs = config["epochs"]
    for group, choosers in CHOOSERS.items():
        chosen = {name: overrides[f"{group}.{name}"] for name in choosers if f"{group}.{name}" in overrides}
        if chosen:
            fields: Any = config[group]
            for name, value in chosen.items():
                fields[name] = value
            try:
                _complete(config, group)
            except InputError as error:
                return [f"config: {error}"]
            if "schedule" in chosen:
                _place_default_knots(config["optimizer"], config["epochs"])
    fields = leaves(_to_dict(config))
    groups = {path.rpartition(".")[0] for path in fields} - {""}
    for path, given in overrides.items():
        if path == "method":
            where = "choose the method after the colon: --config=NAME:"
            found.append(f"config.method cannot be set; {where}{given}")
        elif path in groups:
            inside = [name for name in fields if name.startswith(f"{path}.")]
            found.append(f"config.{path} is a group of fields; set one of them: {', '.join(inside)}")
        elif path not in fields:
            found.append(f"config.{path}{_unknown(path, list(fields), config)}")
        else:
            try:
                like = ("",) if path in TEXTS else fields[path]
                value = _one_or_several(given) if path in ONE_OR_SEVERAL else parse_value(given, like)
            except (ValueError, SyntaxError, ZeroDivisionError):
                found.append(f"config.{path}={given!r} is not {_kind(fields[path])}")
                continue
            group, _, name = path.rpartition(".")
            parent = config
            for part in group.split(".") if group else ():
                parent = parent[part]
            parent[name] = value
    if "epochs" in overrides and min(epochs, config["epochs"]) > 0:
        _move_knots(
            config["optimizer"],
            config["epochs"] / epochs,
            [name for name in KNOTS if f"optimizer.{name}" not in overrides],
        )
    return found


def _followed(experiment: Experiment, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of the attack's fields, copied to fields that follow them, had the same value and are not given."""
    plain, found = experiment.plain(), dict(overrides)
    for group, name in _followers(plain, experiment.wrappers):
        if f"attack.{name}" in overrides and plain[group][name] == plain["attack"][name]:
            found.setdefault(f"{group}.{name}", overrides[f"attack.{name}"])
    return found


def _of_published(fields: Any, overrides: Mapping[str, Any], note: Callable[[str], None]) -> Mapping[str, Any]:
    """Replace a published network's name by the network's own, and set the fields that this name determines.

    Fields that are set are kept. Encoded images get the crop that the network was published for (`published_crop`).

    A run does not store published names, so a later change of the table does not affect it.
    """
    group: Any = fields.get("model", {})
    name = overrides.get("model.name", group.get("name", ""))
    if not is_published(str(name)):
        return overrides
    try:
        row = published(name)
    except InputError as error:
        raise InputError(f"config.model.name: {error}") from error
    with group.unlocked() if isinstance(group, ConfigDict) else contextlib.nullcontext():
        # Options next to another name belong to that network.
        own = {} if group["name"] != name else _to_dict(group["options"])
        group["name"], group["options"] = row.model, ConfigDict({**row.options, **own})
        if not group["mean"] and not group["std"]:
            group["mean"], group["std"] = row.mean, row.std
    _crop_as_published(str(name), row, fields, overrides, note)
    return {path: value for path, value in overrides.items() if path != "model.name"}


def _choose_options(fields: Any, overrides: Mapping[str, Any]) -> None:
    """Apply the overrides that are options of the network; for another network, drop the old options."""
    group: Any = fields.get("model", {})
    name = str(overrides.get("model.name", group.get("name", "")))
    if name not in MODELS:
        return
    known = {option: default for option, default in options_of(name).items() if option not in group}
    options: Any = group["options"]
    with options.unlocked() if isinstance(options, ConfigDict) else contextlib.nullcontext():
        if name != group["name"]:
            for option in [option for option in options if option not in known]:
                del options[option]
        for option, default in known.items():
            if f"model.options.{option}" in overrides and option not in options:
                options[option] = default


def _crop_as_published(
    name: str, row: Published, fields: Any, overrides: Mapping[str, Any], note: Callable[[str], None]
) -> None:
    """Put a published network's crop into the fields that are not set."""
    group: Any = fields.get("dataset", {})
    given = {path.removeprefix("dataset."): value for path, value in overrides.items() if path.startswith("dataset.")}
    now = _to_dict(group)
    with contextlib.suppress(ValueError):  # a size that is not a number is reported with all other problems
        now["image_size"] = parse_value(given.get("image_size", now.get("image_size", 0)), 0)
        changes, told = published_crop(name, row, {**now, **given, "image_size": now["image_size"]}, given)
        for field, value in changes.items():
            group[field] = value
        if told:
            note(told)


def _place_default_knots(optimizer: Any, epochs: float) -> None:
    """Move a schedule's default knots to the same fractions of a run of `epochs` epochs."""
    if optimizer.get("schedule") in SCHEDULES:
        default = schedule_fields(optimizer["schedule"])
        own = [knot for knot in KNOTS if knot in default and optimizer[knot] == default[knot]]
        _move_knots(optimizer, epochs / OF_DEFAULTS, own)


def _move_knots(fields: Any, share: float, names: Iterable[str]) -> None:
    """Move the learning-rate knots to the same fractions of a run that is `share` times as long."""
    for name in names:
        if name in fields and fields["lr_unit"] == "epochs":
            places = fields[name]
            many = isinstance(places, tuple | list)
            fields[name] = tuple(round(share * knot, 6) for knot in places) if many else round(share * places, 6)


def _unknown(path: str, fields: Sequence[str], config: Any) -> str:
    """The message for an unknown field: the nearest one, or where to look.

    Names are compared within a given group, else the names of all groups, then full paths.
    """
    group, _, name = path.rpartition(".")
    part = path.partition(".")[0]
    if part in WRAPPERS and part not in config:
        return f": {config['method']} has no {part}; write --config=NAME:{config['method']}+{part}"
    of = f" is not a field of {config['method']}" if group == "objective" else " is unknown"
    inside = {field.rpartition(".")[2]: field for field in fields if group and field.startswith(f"{group}.")}
    anywhere = {field.rpartition(".")[2]: field for field in reversed(fields)}
    whole = {} if inside else {field: field for field in fields}
    for written, among, cutoff in ((name, inside, 0.6), (path, whole, 0.75), (name, anywhere, 0.75)):
        if near := difflib.get_close_matches(written, among, n=1, cutoff=cutoff):
            return f"{of}; did you mean {among[near[0]]!r}?"
    if inside:
        return f"{of}; choose one of {', '.join(inside.values())}"
    parts = dict.fromkeys(f"{field.partition('.')[0]}." if "." in field else field for field in fields)
    return f"{of}; there are {', '.join(parts)}; piat-train --fields lists the fields of each group"


def parse_value(given: Any, like: Any) -> Any:
    """Convert `given` to the type of `like`; text is parsed, and floats may be fractions.

    >>> parse_value("8/255", 0.1) == 8 / 255, parse_value("1,2", (0.5,)), parse_value("(3, 4)", (0,))
    (True, (1.0, 2.0), (3, 4))
    >>> parse_value(1, 0.5), parse_value([3, 4], (0,))
    (1.0, (3, 4))
    """
    if isinstance(given, os.PathLike):
        given = os.fspath(given)
    if not isinstance(given, str):
        return _as_type_of(given, like)
    text = given
    if isinstance(like, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(text)
        return text.lower() in ("true", "1")
    if isinstance(like, int):
        return int(text)
    if isinstance(like, float):
        try:
            return float(text)
        except ValueError:
            return float(Fraction(text.replace(" ", "")))
    if isinstance(like, tuple):
        parts = [part.strip().strip("'\"") for part in text.strip().strip("()").split(",") if part.strip()]
        if like:
            return tuple(parse_value(part, like[0]) for part in parts)
        return tuple(ast.literal_eval(part) for part in parts)
    return text


def _one_or_several(given: Any) -> str | tuple[str, ...]:
    """Split a text at commas; one text or none remains a text."""
    if isinstance(given, list | tuple):
        found = tuple(parse_value(each, "") for each in given)
    else:
        found = parse_value(given, ("",))
    return found if len(found) > 1 else "".join(found)


def _as_type_of(value: Any, like: Any) -> Any:
    """A Python value as the type of `like`; ValueError if the types do not fit."""
    if isinstance(like, tuple) and isinstance(value, list | tuple):
        return tuple(parse_value(each, like[0]) if like else each for each in value)
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, type(like)) and isinstance(value, bool) == isinstance(like, bool):
        return value
    raise ValueError(value)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number (8/255 is one)"
    return "a list such as 1,2,3" if isinstance(value, tuple) else "text"
