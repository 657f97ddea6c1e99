"""An experiment's fields as text: each with its value and meaning."""

import dataclasses
import inspect
import re
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.attacks import ATTACKS, pgd
from piat_jax.averaging import AVERAGES
from piat_jax.core.bound import Bound
from piat_jax.core.nested import in_255ths, leaves
from piat_jax.experiment.experiment import Experiment
from piat_jax.experiment.fields import MEANING, Fields
from piat_jax.experiment.methods import average_kind
from piat_jax.models import MODELS
from piat_jax.objectives import METHODS, WRAPPERS
from piat_jax.training.optimizer import optimizer_function
from piat_jax.training.schedules import SCHEDULES

WIDTH = 110
BARS = "▁▂▃▄▅▆▇█"


def field_list(experiment: Experiment) -> str:
    """Every field: its value, and below it what it means and in which unit."""
    lines, told = [], meanings(experiment)
    for path, value in leaves(experiment.plain()).items():
        lines.append(f"{path} = {shown(path, value)}")
        lines += textwrap.wrap(
            told.get(path, ""), WIDTH, break_on_hyphens=False, initial_indent=" " * 8, subsequent_indent=" " * 8
        )
    return "\n".join(lines)


def rate_lines(experiment: Experiment, *, steps: int = 100, width: int = 60) -> str:
    """The learning rate over the run drawn in a line of text, and the momentum below it where it moves.

    Args:
      experiment: whose rate.
      steps: in an epoch; it makes no difference to be seen.
      width: columns, each as high as the rate at its place of the run.

    >>> from piat_jax.experiment.methods import parse_method
    >>> print(rate_lines(Experiment(method=parse_method("piat")), width=12))
    learning rate ██████▇▄▂▁▁▁ 0.01 ... 0.0001, highest 0.01, over 120 epochs (sgd, piecewise_linear)
    """
    rate, total = experiment.build_rate(steps), experiment.epochs * steps
    at = np.unique(np.linspace(0, total - 1, width).astype(int))
    lines = []
    for name, schedule in (("learning rate", rate.learning_rate), ("momentum", rate.momentum)):
        if schedule is None:
            continue
        values = np.asarray(jax.vmap(schedule)(jnp.asarray(at)), float)
        low, high = (values.min(), values.max()) if name == "momentum" else (0.0, values.max())
        heights = np.clip((values - low) / max(high - low, 1e-30) * len(BARS), 0, len(BARS) - 1).astype(int)
        drawn = "".join(BARS[height] for height in heights)
        lines.append(f"{name} {drawn} {values[0]:.4g} ... {values[-1]:.4g}, highest {high:.4g}")
    fields = experiment.optimizer
    lines[0] += f", over {experiment.epochs} epochs ({fields.name}, {fields.schedule})"
    return "\n".join(lines)


def meanings(experiment: Experiment) -> dict[str, str]:
    """What each field means, by its path; those of a method are from the docstring of its class."""
    own = _declared(experiment, "") | {"method": "its parts joined by +; chosen after the config's name"}
    found = dict(own)
    classes: dict[str, Any] = {"objective": METHODS[experiment.method.base]}
    if experiment.method.average:
        classes["average"] = AVERAGES[experiment.method.average]
    classes |= {name: AVERAGES[average_kind(name)] for name in experiment.further}
    classes |= {name: WRAPPERS[name] for name in experiment.wrappers}
    classes["model.options"] = MODELS[experiment.model.name][0]
    documents: list[tuple[str, Any]] = list(classes.items())
    attack = ATTACKS[experiment.attack.name]
    documents += [("attack", pgd), ("attack", attack.fn if isinstance(attack, Bound) else attack)]
    documents += [("optimizer", optimizer_function(experiment.optimizer.name))]
    documents += [("optimizer", SCHEDULES[experiment.optimizer.schedule])]
    for group, described in documents:
        documented: dict[str, str] = {}
        for base in (*reversed(getattr(described, "__mro__", (AVERAGES["ema"],))), described):
            texts = _documented(base)
            documented |= {name: text for name, text in texts.items() if not text.startswith(("as in", "as for"))}
        found |= {f"{group}.{name}": text for name, text in documented.items() if f"{group}.{name}" not in own}
    return found


def shown(path: str, value: Any) -> str:
    """A field's value as it can be written on the command line, in pixels also as a fraction of 255 where it is one.

    >>> shown("attack.eps", 8 / 255), shown("optimizer.lr_values", (1, 0.2))
    ('0.0313725 (8/255)', '1,0.2')
    """
    if isinstance(value, float):
        fraction = in_255ths(path, value)
        return f"{value:.6g}" + (f" ({fraction})" if fraction else "")
    if isinstance(value, tuple):
        return ",".join(shown(path, each) for each in value) or "()"
    return str(value) or "''"


def _declared(group: Any, prefix: str) -> dict[str, str]:
    """The meanings that a group's fields are declared with, and those of the groups in it."""
    found = {}
    for each in dataclasses.fields(group):
        value, text = getattr(group, each.name), each.metadata.get(MEANING, "")
        inside = dataclasses.is_dataclass(value) and not isinstance(value, Fields)
        found |= _declared(value, f"{prefix}{each.name}.") if inside and text else {f"{prefix}{each.name}": text}
    return found


def _documented(documented: Any) -> dict[str, str]:
    """The attributes that a class's docstring describes, or the arguments that a function's does.

    >>> _documented(METHODS["trades"])["beta"]
    '6 in the papers that compare (1/lambda of the original).'
    """
    parts = re.split(r"\n(?:Attributes|Args):\n", inspect.cleandoc(documented.__doc__ or ""))
    block = re.split(r"\n(?=\S)", parts[1])[0] if len(parts) > 1 else ""
    found = {}
    for entry in re.split(r"\n(?=  \S)", f"\n{block}"):
        names, colon, text = entry.strip().partition(": ")
        if colon and re.fullmatch(r"\w+(, \w+)*", names):
            found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found
