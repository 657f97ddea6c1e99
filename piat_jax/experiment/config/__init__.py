"""Config files, and overrides of their fields; besides config files, only these modules use ml_collections."""

from piat_jax.experiment.config.defaults import default_config
from piat_jax.experiment.config.files import define, is_file, names, read
from piat_jax.experiment.config.resolving import load, resolve, resume
from piat_jax.experiment.config.values import parse_value

__all__ = ["default_config", "define", "is_file", "load", "names", "parse_value", "read", "resolve", "resume"]
