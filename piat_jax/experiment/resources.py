"""Objects for a config's text fields: other networks, and the weights of other runs."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax import models
from piat_jax.checkpoint import Checkpoints
from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded
from piat_jax.core.forward import num_classes
from piat_jax.core.types import Model, Variables
from piat_jax.experiment.fields import ModelFields


@dataclasses.dataclass(frozen=True)
class ConfigResources:
    """Builds objects for the text fields of a wrapper named `group`."""

    model: ModelFields
    group: str
    net: Model
    image_shape: Sequence[int]
    examples: int

    @property
    def classes(self) -> int:
        """The number of the model's outputs; 2 without an image shape."""
        return num_classes(self.net, self._like(), self._images()) if self.image_shape else 2

    def network(self, name: str, num_classes: int) -> Model:
        """Build a network; it takes the model's options if it has the same name."""
        options = dict(self.model.options) if name == self.model.name else {}
        return models.create(name, num_classes=num_classes, dtype=self.model.dtype, **options)

    def teacher(self, field: str, folder: str) -> Variables:
        """Load the best checkpoint of the run in a folder; without an image shape, nothing is loaded."""
        where = f"{self.group}.{field}"
        if not folder:
            raise InputError(f"{where} is empty; give the folder of a run trained with another method")
        saved = Checkpoints.of_run(expanded(folder))
        if "best" not in saved:
            raise InputError(f"{where}={folder!r} has no best checkpoint; give the folder of a finished run")
        if not self.image_shape:
            return Variables({}, {})
        # As new arrays: committed ones would commit the state in the first epoch, and the second would recompile.
        return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), saved.load_variables("best", self._like()))

    def _images(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)

    def _like(self) -> Variables:
        return jax.eval_shape(self.net.init, jax.random.key(0), self._images())
