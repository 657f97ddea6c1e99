"""Saving and loading of checkpoints, and the only use of orbax: nested dicts of arrays and a JSON description."""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from piat_jax.core.checks import InputError
from piat_jax.core.checksums import CHECKSUMS, damage, write_checksums
from piat_jax.core.files import expanded
from piat_jax.core.multihost import any_of_all, is_first, of_first, on_first
from piat_jax.core.sharding import data_mesh
from piat_jax.core.trees import copied, leaf_shapes
from piat_jax.core.types import Array, PyTree, TrainState, Variables

NAMES = ("best", "last")
KEPT = {"best": 1, "last": 2}

# orbax warns at every save that the description, a text, has no array shards to merge.
logging.getLogger("absl").addFilter(lambda record: "Skipping merge of OCDBT" not in record.getMessage())


class Restored(NamedTuple):
    """A restored training state to resume from."""

    state: TrainState
    info: dict[str, Any]
    damaged: tuple[str, ...]  # unreadable saves that were skipped, one line each


class Checkpoints:
    """The checkpoints of one run, `best` and `last`: folders of numbered saves, of which the highest is current.

    An interrupted save does not affect earlier ones: it is written next to them, receives checksums of all its files,
    and is renamed; only then is the previous save removed. `last` keeps two saves, so that a run can resume from the
    previous one if the newest is damaged. Loading first compares the files with their checksums; saves of earlier
    versions have none and are loaded without this check.

    If several processes train together, all call these methods at the same time, for one shared folder. orbax lets each
    process write and read its part of the arrays, and the first process does the rest.
    """

    FOLDER = "checkpoints"
    """The folder's name within a run's folder."""

    def __init__(self, folder: str | Path):
        self.folder = expanded(folder).absolute()
        self._worker = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    @classmethod
    def of_run(cls, folder: Path) -> "Checkpoints":
        """The checkpoints of the run in a folder."""
        return cls(folder / cls.FOLDER)

    def save(
        self,
        name: str,
        state: TrainState,
        info: Mapping[str, Any],
        evaluated: Variables | None = None,
        beside: Mapping[str, Variables] = {},
    ) -> None:
        """Save a state as `name`, with a JSON-serialisable description that has at least the `epoch`.

        `evaluated` are the weights to evaluate if they differ from the state's, such as an average. `beside` are
        further averages, by name.
        """
        self._start(name, state, info, evaluated, beside, best=False)
        self.wait()

    def save_async(
        self,
        state: TrainState,
        info: Mapping[str, Any],
        evaluated: Variables | None = None,
        beside: Mapping[str, Variables] = {},
        *,
        best: bool = False,
    ) -> None:
        """Save a state as `last` in the background; `state` may be donated as soon as this returns.

        Args:
          state: the state; it is first copied on its device.
          info: as for `save`.
          evaluated, beside: as for `save`.
          best: whether to make it `best` too, once it is complete.

        Raises:
          InputError: the previous save could not be written.
        """
        # Without a copy orbax writes from these buffers, and on a CPU a step that reuses them waits until it is done.
        evaluated = evaluated if _is_apart(evaluated, state) else None
        state, evaluated, beside = copied((state, evaluated, dict(beside)))
        self._start("last", state, {**info, "best": best}, evaluated, beside, best=best)

    def wait(self) -> None:
        """Wait until the latest save is complete.

        Raises:
          InputError: the save could not be written; the previous one still exists.
        """
        failed = self._failure()
        if any_of_all(failed is not None):  # only the first process renames a save: the others must not look before
            raise failed or InputError(f"{self.folder}: another process could not save; see its message")

    def check(self) -> None:
        """Raise InputError if a background save has failed; does not wait."""
        if self._pending is not None and self._pending.done() and (failed := self._failure()):
            raise failed

    def info(self, name: str) -> dict[str, Any]:
        """The description of the checkpoint `name`.

        Raises:
          InputError: the checkpoint does not exist or cannot be read.
        """
        return self._info(self._newest(name))

    def load_variables(self, name: str, like: Variables) -> Variables:
        """The weights and statistics to evaluate; `like` is a tree with the same shapes (`jax.eval_shape` of init)."""
        return self.load_evaluated(name, like)[0]

    def load_evaluated(self, name: str, like: Variables, *, average: str = "") -> tuple[Variables, dict[str, Any]]:
        """The results of `load_variables` and `info`, from the same save even if a running training replaces it.

        Args:
          name: "best" or "last".
          like: a tree with the same shapes.
          average: name of a further average; "" is what the method evaluates.

        Raises:
          InputError: the checkpoint or average does not exist, cannot be read, or is of another model.
        """
        while True:
            path = self._newest(name)
            try:
                info = self._check_same_model(path, like)
                item = "evaluated" if info.get("separate") else "variables"
                if average:
                    item = _item(average, info, path)
                return Variables(**self._read(path, {item: _abstract(like._asdict())})[item]), info
            except _UnreadableError as error:
                if self._newest(name) == path:
                    others = [f"{other!r} exists too" for other in NAMES if other != name and other in self]
                    raise _UnreadableError(f"{error}; {', '.join(others) or 'nothing else was saved'}") from error

    def load_state(self, name: str, like: TrainState) -> TrainState:
        """The full training state, to resume from."""
        return self._read_state(self._newest(name), like)[0]

    def restore(self, like: TrainState) -> Restored | None:
        """The newest readable state, from `last` or else `best`; None if nothing was saved.

        Damaged saves are renamed and no longer used.

        Raises:
          InputError: there are saves but none can be read, or they are of another model.
        """
        self.wait()
        damaged: list[str] = []
        for path in self._candidates():
            try:
                state, info = self._read_state(path, like)
            except _UnreadableError as error:
                damaged.append(self._set_aside(path, error))
                continue
            if path.parent.name == "last":
                damaged += self._set_aside_best()
            if info.get("best") and path.parent.name == "last":
                best = self.info("best")["epoch"] if "best" in self else None
                if best != info["epoch"]:  # interrupted before `best` was made
                    on_first(lambda path=path: self._make_best(path))
            return Restored(state, info, tuple(damaged))
        if damaged:
            raise InputError("\n".join([*damaged, f"{self.folder} holds no readable checkpoint"]))
        return None

    def discard(self, name: str) -> None:
        """Remove a checkpoint, if it exists."""
        self.wait()
        on_first(lambda: shutil.rmtree(self.folder / name, ignore_errors=True))

    def _set_aside(self, path: Path, error: InputError) -> str:
        aside = path.with_name(f"damaged-{path.name}")
        on_first(lambda: _replace(path, aside))
        return f"{error}; set aside as {aside.parent.name}/{aside.name}"

    def _set_aside_best(self) -> list[str]:
        """Set the best checkpoint aside if it is damaged, so that the damage is found before evaluation."""
        if "best" not in self:
            return []
        path = self._newest("best")
        try:
            self._check_whole(path, None)
            self._info(path)
        except _UnreadableError as error:
            return [self._set_aside(path, error)]
        return []

    def _failure(self) -> InputError | None:
        """Wait for the previous save; returns why it could not be written, or None."""
        pending, self._pending = self._pending, None
        try:
            return pending.result() if pending is not None else None
        except InputError as error:
            return error

    def __contains__(self, name: str) -> bool:
        return bool(self._numbers(name))

    def _start(
        self,
        name: str,
        state: TrainState,
        info: Mapping[str, Any],
        evaluated: Variables | None,
        beside: Mapping[str, Variables],
        *,
        best: bool,
    ) -> None:
        self.wait()
        variables, rest = _parts(state)
        apart = _is_apart(evaluated, state)
        shapes = {path: list(shape) for path, shape in leaf_shapes(variables).items()}
        # As one text, because orbax would make an array for each number of a dict.
        described = {**info, "shapes": shapes, "separate": apart, "checksums": True}
        described |= {"further_averages": list(beside)} if beside else {}
        content: dict[str, Any] = {"variables": variables, "training": rest, "info": {"json": json.dumps(described)}}
        content |= {f"evaluated_{average}": kept._asdict() for average, kept in beside.items()}
        if apart and evaluated is not None:
            content["evaluated"] = evaluated._asdict()
        # A new number for each save: nothing is overwritten, and clocks do not decide which save is newest.
        path = self.folder / name / str(of_first(max(self._numbers(name), default=-1) + 1))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for partial in path.parent.glob("*tmp*") if is_first() else ():  # left by a killed process
                shutil.rmtree(partial)
            response = ocp.save_checkpointables_async(str(_partial(path)), content)
        except OSError as error:
            raise _unwritten(path, error) from error
        self._pending = self._worker.submit(self._finish, response, path, best)

    def _finish(self, response: ocp.AsyncResponse[None], path: Path, best: bool) -> None:
        try:
            response.result()
            if not is_first():
                return
            write_checksums(_partial(path))
            _partial(path).rename(path)
            if best:
                self._make_best(path)
            self._prune(path.parent.name)
        except Exception as error:  # orbax and tensorstore have their own exceptions
            raise _unwritten(path, error) from error

    def _make_best(self, path: Path) -> None:
        """Hard-link a save's files as `best`; links suffice because the files never change."""
        # Must not call `wait`: this runs in the thread that `wait` waits for.
        target = self.folder / "best" / str(max(self._numbers("best"), default=-1) + 1)
        shutil.rmtree(_partial(target), ignore_errors=True)
        shutil.copytree(path, _partial(target), copy_function=_link)
        _partial(target).rename(target)
        self._prune("best")

    def _prune(self, name: str) -> None:
        for number in self._numbers(name)[: -KEPT[name]]:
            shutil.rmtree(self.folder / name / str(number))

    def _numbers(self, name: str) -> list[int]:
        return sorted(int(path.name) for path in (self.folder / name).glob("*") if path.name.isdecimal())

    def _newest(self, name: str) -> Path:
        self.wait()
        if name not in self:
            there = [other for other in NAMES if other in self] or ["none"]
            raise InputError(f"{self.folder} has no checkpoint {name!r}; there is {', '.join(there)}")
        return self.folder / name / str(self._numbers(name)[-1])

    def _candidates(self) -> list[Path]:
        return [self.folder / name / str(number) for name in ("last", "best") for number in self._numbers(name)[::-1]]

    def _info(self, path: Path) -> dict[str, Any]:
        info = self._read(path, {"info": None})["info"]
        try:
            info = json.loads(info["json"]) if "json" in info else info  # older versions saved it without "json"
            if not isinstance(info["shapes"], dict):
                raise TypeError("shapes")
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(path, "its description is damaged") from error
        if info.get("checksums") and not (path / CHECKSUMS).exists():
            raise _unreadable(path, f"{CHECKSUMS} is missing")
        return info

    def _check_whole(self, path: Path, items: Collection[str] | None) -> None:
        """Raise an error if files differ from their checksums, if those exist; the first process reads for all."""
        found = damage(path, items) if is_first() and (path / CHECKSUMS).exists() else ""
        if any_of_all(bool(found)):
            raise _unreadable(path, found or "see the message of the first process")

    def _read(self, path: Path, wanted: dict[str, PyTree]) -> dict[str, Any]:
        self._check_whole(path, wanted)
        try:
            return ocp.load_checkpointables(str(path), wanted)
        except Exception as error:  # orbax, tensorstore and json have their own exceptions
            raise _unreadable(path, _first_line(error)) from error

    def _read_state(self, path: Path, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        variables, rest = _parts(like)
        info = self._check_same_model(path, like.variables)
        loaded = self._read(path, {"variables": _abstract(variables), "training": _abstract(rest)})
        return dataclasses.replace(like, **loaded["variables"], **loaded["training"]), info

    def _check_same_model(self, path: Path, like: Variables) -> dict[str, Any]:
        """The save's description; raises InputError unless its model has these shapes."""
        info = self._info(path)
        saved = {leaf: tuple(shape) for leaf, shape in info["shapes"].items()}
        wanted = leaf_shapes(like._asdict())
        for leaf in sorted(saved.keys() | wanted.keys()):
            if saved.get(leaf) != wanted.get(leaf):
                raise InputError(
                    f"checkpoint {path.parent} is of another model: {leaf} is {saved.get(leaf, 'absent')} "
                    f"there and {wanted.get(leaf, 'absent')} in this config"
                )
        return info


class _UnreadableError(InputError):
    """A damaged checkpoint."""


def _unreadable(path: Path, why: str) -> _UnreadableError:
    return _UnreadableError(f"checkpoint {path} cannot be read: {why}")


def _unwritten(path: Path, error: Exception) -> InputError:
    return InputError(f"checkpoint {path} cannot be written: {_first_line(error)}; what was saved before is kept")


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    return line if len(line) <= 200 else f"{line[:200]}..."


def _item(average: str, info: Mapping[str, Any], path: Path) -> str:
    """The item of a save that holds a further average."""
    there = info.get("further_averages", ())
    if average not in there:
        known = f"there is {', '.join(there)}" if there else "there is none"
        raise InputError(f"checkpoint {path} has no further average {average!r}; {known}")
    return f"evaluated_{average}"


def _is_apart(evaluated: Variables | None, state: TrainState) -> bool:
    return evaluated is not None and evaluated.params is not state.params


def _partial(path: Path) -> Path:
    """A save's temporary name until it is complete."""
    return path.with_name(f"{path.name}.tmp")


def _replace(path: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    path.rename(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _parts(state: TrainState) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    rest = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    if not state.further_averages:  # as in earlier versions
        rest.pop("further_averages")
    return {name: rest.pop(name) for name in Variables._fields}, rest


def _abstract(tree: PyTree) -> PyTree:
    # Without a sharding, load on one device, or on one device of each process.
    mesh = data_mesh(jax.process_count())
    default = NamedSharding(mesh, PartitionSpec()) if mesh else SingleDeviceSharding(jax.local_devices()[0])

    def abstract(leaf: Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None) or default
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(abstract, tree)
