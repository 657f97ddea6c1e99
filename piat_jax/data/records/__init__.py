"""Encoded images of any size that stay on disk: workers read, decode and crop them while the device trains.

`opening` finds a set's files and their format; `base`, `folders`, `tar`, `parquet` and `examples` are the formats, each
a random-access source for grain; `geometry` decodes and crops; `images` is a split that behaves like an array; `loader`
returns an epoch's training crops in order, independent of the workers.
"""

from piat_jax.data.records.base import Records
from piat_jax.data.records.geometry import Decoding
from piat_jax.data.records.images import RecordImages

__all__ = ["Decoding", "RecordImages", "Records"]
