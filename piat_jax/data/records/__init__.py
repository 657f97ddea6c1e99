"""Encoded images of any size that stay on the disk: read, decoded and cropped by workers while the device trains.

`opening` finds a set's files and says what they hold; `base`, `folders`, `tar`, `parquet` and `examples` are the forms
they may have, each a random-access source as grain wants it; `geometry` decodes and crops; `images` is a split that
looks like an array; `loader` hands out an epoch's training crops in order, whoever decodes them.
"""

from piat_jax.data.records.base import Records
from piat_jax.data.records.geometry import Decoding
from piat_jax.data.records.images import RecordImages

__all__ = ["Decoding", "RecordImages", "Records"]
