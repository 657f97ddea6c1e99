"""A run's final state, for studies."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from piat_jax.core.types import Variables
from piat_jax.data import Split
from piat_jax.experiment import Experiment, Run
from piat_jax.experiment.data import load_data
from piat_jax.models import LinenModel


class Final(NamedTuple):
    """A run's final checkpoint, and what it was trained for."""

    experiment: Experiment
    model: LinenModel
    variables: Variables
    test: Split


def load_final(folder: Path) -> Final:
    """The final checkpoint of the run in `folder`, in float32."""
    run = Run(folder)
    experiment = run.experiment()
    data, _, _ = load_data(experiment)
    net = experiment.build_model(data.num_classes, dtype="float32")
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *data.test.images.shape[1:])))
    return Final(experiment, net, run.checkpoints.load_variables("last", like), data.test)
