"""From a config to an `Experiment`: all problems are reported together."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from piat_jax.core.checks import InputError
from piat_jax.experiment.config.defaults import to_dict
from piat_jax.experiment.config.files import define, is_file, read
from piat_jax.experiment.config.overrides import apply, choose_options, followed, of_published
from piat_jax.experiment.experiment import Experiment
from piat_jax.experiment.run import KNOTS, Run
from piat_jax.experiment.validate import problems


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
        overrides = followed(config, overrides)
    overrides = of_published(fields, overrides, note)
    choose_options(fields, overrides)
    found = apply(fields, overrides)
    experiment = Experiment.from_plain(to_dict(fields))
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
