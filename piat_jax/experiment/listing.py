"""An experiment's fields as text, with values and meanings."""

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
    """List every field with its value, and below it its meaning and unit."""
    lines, told = [], meanings(experiment)
    for path, value in leaves(experiment.plain()).items():
        lines.append(f"{path} = {shown(path, value)}")
        lines += textwrap.wrap(
            told.get(path, ""), WIDTH, break_on_hyphens=False, initial_indent=" " * 8, subsequent_indent=" " * 8
        )
    return "\n".join(lines)


def rate_lines(experiment: Experiment, *, steps: int = 100, width: int = 60) -> str:
    """Draw the learning-rate schedule in a line of text, and below it the momentum if it varies.

    Args:
      experiment: has the schedule.
      steps: steps per epoch; it makes no visible difference.
      width: number of columns; a column's height is the rate at its point of the run.

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
    """The meaning of each field, by its path; a method's are from the docstring of its class."""
    own = _declared(experiment, "") | {"method": "its parts joined by +; set after the config's name"}
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
    """A field's value in the command line's form; pixel values also as a fraction of 255 if they are one.

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
    """The declared meanings of a group's fields, and those of its subgroups."""
    found = {}
    for each in dataclasses.fields(group):
        value, text = getattr(group, each.name), each.metadata.get(MEANING, "")
        inside = dataclasses.is_dataclass(value) and not isinstance(value, Fields)
        found |= _declared(value, f"{prefix}{each.name}.") if inside and text else {f"{prefix}{each.name}": text}
    return found


def _documented(documented: Any) -> dict[str, str]:
    """The attributes that a class's docstring describes, or the arguments in a function's docstring.

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
