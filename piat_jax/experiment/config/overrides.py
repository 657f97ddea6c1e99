"""Overrides of a config's fields, with the nearest existing name for one that is unknown."""

import contextlib
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from piat_jax.core.checks import InputError
from piat_jax.core.nested import leaves
from piat_jax.experiment.chosen import CHOOSERS
from piat_jax.experiment.config.defaults import complete, followers, move_knots, place_default_knots, to_dict
from piat_jax.experiment.config.values import ONE_OR_SEVERAL, kind_of, one_or_several, parse_value
from piat_jax.experiment.experiment import Experiment
from piat_jax.experiment.published_crop import published_crop
from piat_jax.experiment.run import KNOTS
from piat_jax.interop.published import Published, is_published, published
from piat_jax.models import MODELS, options_of
from piat_jax.objectives import WRAPPERS

TEXTS = ("log.to",)
"""Fields that are lists of texts; an empty list does not show its type."""


def apply(config: Any, overrides: Mapping[str, Any]) -> list[str]:
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
                complete(config, group)
            except InputError as error:
                return [f"config: {error}"]
            if "schedule" in chosen:
                place_default_knots(config["optimizer"], config["epochs"])
    fields = leaves(to_dict(config))
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
                value = one_or_several(given) if path in ONE_OR_SEVERAL else parse_value(given, like)
            except (ValueError, SyntaxError, ZeroDivisionError):
                found.append(f"config.{path}={given!r} is not {kind_of(fields[path])}")
                continue
            group, _, name = path.rpartition(".")
            parent = config
            for part in group.split(".") if group else ():
                parent = parent[part]
            parent[name] = value
    if "epochs" in overrides and min(epochs, config["epochs"]) > 0:
        move_knots(
            config["optimizer"],
            config["epochs"] / epochs,
            [name for name in KNOTS if f"optimizer.{name}" not in overrides],
        )
    return found


def followed(experiment: Experiment, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of the attack's fields, copied to fields that follow them, had the same value and are not given."""
    plain, found = experiment.plain(), dict(overrides)
    for group, name in followers(plain, experiment.wrappers):
        if f"attack.{name}" in overrides and plain[group][name] == plain["attack"][name]:
            found.setdefault(f"{group}.{name}", overrides[f"attack.{name}"])
    return found


def of_published(fields: Any, overrides: Mapping[str, Any], note: Callable[[str], None]) -> Mapping[str, Any]:
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
        own = {} if group["name"] != name else to_dict(group["options"])
        group["name"], group["options"] = row.model, ConfigDict({**row.options, **own})
        if not group["mean"] and not group["std"]:
            group["mean"], group["std"] = row.mean, row.std
    _crop_as_published(str(name), row, fields, overrides, note)
    return {path: value for path, value in overrides.items() if path != "model.name"}


def _crop_as_published(
    name: str, row: Published, fields: Any, overrides: Mapping[str, Any], note: Callable[[str], None]
) -> None:
    """Put a published network's crop into the fields that are not set."""
    group: Any = fields.get("dataset", {})
    given = {path.removeprefix("dataset."): value for path, value in overrides.items() if path.startswith("dataset.")}
    now = to_dict(group)
    with contextlib.suppress(ValueError):  # a size that is not a number is reported with all other problems
        now["image_size"] = parse_value(given.get("image_size", now.get("image_size", 0)), 0)
        changes, told = published_crop(name, row, {**now, **given, "image_size": now["image_size"]}, given)
        for field, value in changes.items():
            group[field] = value
        if told:
            note(told)


def choose_options(fields: Any, overrides: Mapping[str, Any]) -> None:
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
