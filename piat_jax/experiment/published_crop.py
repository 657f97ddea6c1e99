"""The crop with which a published network was evaluated, as fields of the group `dataset`."""

import dataclasses
from collections.abc import Container, Mapping
from typing import Any

from piat_jax.experiment.fields import DatasetFields
from piat_jax.interop.published import Published


def published_crop(
    name: str, row: Published, fields: Mapping[str, Any], given: Container[str] = ()
) -> tuple[dict[str, Any], str]:
    """Changes of `resize`, `resizing` and `interpolation`, and a sentence that describes them.

    Nothing changes if images are not encoded or their size is not the network's. Fields that were given or differ from
    their defaults are kept; `resize` and `resizing` change together or not at all.

    Args:
      name: the network's published name.
      row: its entry in the table.
      fields: the group's fields, by name.
      given: names of the fields that were given, even with their default values.

    >>> from piat_jax.interop.published import published
    >>> row = published("timm:convnext_tiny.fb_in1k")
    >>> fields = {"image_size": 224, "resize": 0, "resizing": "short", "interpolation": "bilinear"}
    >>> published_crop("timm:convnext_tiny.fb_in1k", row, fields)[0]
    {'resize': 256, 'resizing': 'short', 'interpolation': 'bicubic'}
    >>> published_crop("timm:convnext_tiny.fb_in1k", row, {**fields, "image_size": 0})
    ({}, '')
    """
    plain = dataclasses.asdict(DatasetFields())
    fields = {**plain, **fields}
    size = fields["image_size"]
    if not size:
        return {}, ""
    told = f"{name} was published for images of {row}"
    if size != row.size:
        return {}, f"{told}; with dataset.image_size={size} the crop is the config's"
    resizing = "none" if not row.resize else "both" if row.squash else "short"
    wanted: dict[str, Any] = {"resize": row.resize, "resizing": resizing, "interpolation": row.interpolation}
    kept = [each for each in wanted if each in given or fields[each] != plain[each]]
    if {"resize", "resizing"} & set(kept):  # resize depends on resizing
        kept = [each for each in wanted if each in kept or each != "interpolation"]
    changes = {each: value for each, value in wanted.items() if each not in kept}
    own = [f"dataset.{each}={fields[each]}" for each in kept if str(fields[each]) != str(wanted[each])]
    if own:
        return changes, f"{told}; {', '.join(own)} of the config stays"
    return changes, f"{told}, and is evaluated on these"
