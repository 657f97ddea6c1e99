"""Saving and loading: the one seam to orbax. Files hold plain nested dicts of arrays and a JSON description."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from piat_jax.core.checks import InputError
from piat_jax.core.trees import leaf_shapes
from piat_jax.core.types import Array, PyTree, TrainState, Variables

NAMES = ("best", "last")


class Checkpoints:
    """The checkpoints of one run: `best` and `last`, each replaced by its successor once that is complete.

    A save that is cut off leaves its predecessor as it was: orbax writes beside it and renames.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).absolute()

    def save(self, name: str, state: TrainState, info: Mapping[str, Any], evaluated: Variables | None = None) -> None:
        """Save a state as `name`, with a JSON-able description that says at least its `epoch`.

        `evaluated` are the weights to evaluate where they are not those of the state: an average.
        """
        if evaluated is not None and evaluated.params is state.params:
            evaluated = None
        variables, rest = _parts(state)
        content = {
            "variables": variables,
            "training": rest,
            "info": {
                **info,
                "shapes": {path: list(shape) for path, shape in leaf_shapes(variables).items()},
                "separate": evaluated is not None,
            },
        }
        if evaluated is not None:
            content["evaluated"] = evaluated._asdict()
        with self._open(name) as checkpointer:
            checkpointer.save_checkpointables(int(info["epoch"]), content, overwrite=True)

    def info(self, name: str) -> dict[str, Any]:
        """The description of the checkpoint called `name`.

        Raises:
          InputError: there is no such checkpoint, or it cannot be read.
        """
        return self._load(name, {"info": None})["info"]

    def load_variables(self, name: str, like: Variables) -> Variables:
        """The weights and statistics to evaluate; `like` is a tree of the same shapes (`jax.eval_shape` of init)."""
        self._check_same_model(name, like)
        item = "evaluated" if self.info(name).get("separate") else "variables"
        return Variables(**self._load(name, {item: _abstract(like._asdict())})[item])

    def load_state(self, name: str, like: TrainState) -> TrainState:
        """The whole training state, to go on from."""
        variables, rest = _parts(like)
        self._check_same_model(name, like.variables)
        loaded = self._load(name, {"variables": _abstract(variables), "training": _abstract(rest)})
        return dataclasses.replace(like, **loaded["variables"], **loaded["training"])

    def discard(self, name: str) -> None:
        """Remove a checkpoint, if there is one."""
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def __contains__(self, name: str) -> bool:
        return any((self.folder / name).glob("[0-9]*"))

    def _open(self, name: str) -> ocp.training.Checkpointer:
        return ocp.training.Checkpointer(
            self.folder / name,  # type: ignore[arg-type]
            # Its default policy skips a save while another is in flight.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),  # type: ignore[arg-type]
            preservation_policy=ocp.training.preservation_policies.LatestN(1),  # type: ignore[arg-type]
        )

    def _load(self, name: str, wanted: dict[str, PyTree]) -> dict[str, Any]:
        if name not in self:
            there = [other for other in NAMES if other in self] or ["none"]
            raise InputError(f"{self.folder} has no checkpoint {name!r}; there is {', '.join(there)}")
        try:
            with self._open(name) as checkpointer:
                return checkpointer.load_checkpointables(None, wanted)
        except Exception as error:  # orbax, tensorstore and json each raise their own
            first_line = str(error).strip().partition("\n")[0]
            raise InputError(f"checkpoint {self.folder / name} cannot be read: {first_line}") from error

    def _check_same_model(self, name: str, like: Variables) -> None:
        saved = {path: tuple(shape) for path, shape in self.info(name)["shapes"].items()}
        wanted = leaf_shapes(like._asdict())
        for path in sorted(saved.keys() | wanted.keys()):
            if saved.get(path) != wanted.get(path):
                raise InputError(
                    f"checkpoint {self.folder / name} is of another model: {path} is {saved.get(path, 'absent')} "
                    f"there and {wanted.get(path, 'absent')} in this config"
                )


def _parts(state: TrainState) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    rest = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: rest.pop(name) for name in Variables._fields}, rest


def _abstract(tree: PyTree) -> PyTree:
    def abstract(leaf: Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(abstract, tree)
