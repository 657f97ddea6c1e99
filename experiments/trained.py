"""What a run ended with, to study it."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from piat_jax.checkpoint import Checkpoints
from piat_jax.cli import build, datasets
from piat_jax.cli.config import Config
from piat_jax.cli.run_folder import CHECKPOINTS, read_config
from piat_jax.core.types import Variables
from piat_jax.data import Split
from piat_jax.models import LinenModel


class Final(NamedTuple):
    """A run's final checkpoint, and what it was trained for."""

    config: Config
    model: LinenModel
    variables: Variables
    test: Split


def load_final(folder: Path) -> Final:
    """The final checkpoint of the run in `folder`, in float32."""
    config = read_config(folder)
    data, _, _ = datasets.dataset(config)
    net = build.model(config, data.num_classes, dtype="float32")
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *data.test.images.shape[1:])))
    variables = Checkpoints(folder / CHECKPOINTS).load_variables("last", like)
    return Final(config, net, variables, data.test)
