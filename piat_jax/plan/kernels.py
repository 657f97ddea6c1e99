"""The work of a compiled program on its device: kernels with bytes and operations, and their loops."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from piat_jax.plan.hlo import Array, Computation, Instruction, Module

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
NOTHING = {
    *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "partition-id", "replica-id"),
    *("optimization-barrier", "opt-barrier", "add-dependency", "domain"),
}
"""Instructions that take no time."""
MOVES = {"parameter", "copy", "transpose", "bitcast", "reshape", "tuple", "get-tuple-element", "convert"}
"""The only instructions in a fusion that just moves data."""


class Kernel(NamedTuple):
    """One kernel launch on a device."""

    name: str
    kind: str  # its type in a table: "convForward", "loop_add_fusion", "all-reduce"
    read: float  # bytes read from the device's memory, each operand once
    written: float
    flops: float = 0.0  # of convolutions and matrix products; one multiplication and one addition are two
    rate: str = ""  # their type: bfloat16, tf32, float32; empty if there are none
    sent: float = 0.0  # bytes sent to a collective
    is_convolution: bool = False
    is_layout_copy: bool = False  # only changes the memory order of an array with several axes

    @property
    def moved(self) -> float:
        """Bytes read and written."""
        return self.read + self.written


class Loop(NamedTuple):
    """The program or a loop: a computation that runs `trips` times each time that its parent runs."""

    name: str
    trips: int
    known: str  # "exactly", "at most" if data may end it earlier, or "" if only data decides
    kernels: tuple[Kernel, ...]
    loops: tuple["Loop", ...]

    def walk(self) -> Iterator["Loop"]:
        """The loop itself and all loops inside it."""
        yield self
        for loop in self.loops:
            yield from loop.walk()

    def total(self, of: Callable[[Kernel], float]) -> float:
        """`sum_k of(k)` over the kernels of one trip, with inner loops multiplied by their trips."""
        return sum(map(of, self.kernels)) + sum(loop.trips * loop.total(of) for loop in self.loops)


def read_loops(module: Module) -> Loop:
    """The tree of a program's loops; of several branches, the one with the most bytes counts."""
    return _loop(module, module.entry, "program", 1, "exactly", [module.entry])


def _loop(module: Module, name: str, label: str, trips: int, known: str, bodies: Sequence[str]) -> Loop:
    kernels: list[Kernel] = []
    loops: list[Loop] = []
    for body in bodies:
        for instruction in module.computations[body].instructions.values():
            made, inner = _work(module, module.computations[body], instruction)
            kernels += made
            loops += inner
    return Loop(label, trips, known, tuple(kernels), tuple(loops))


def _work(module: Module, around: Computation, instruction: Instruction) -> tuple[list[Kernel], list[Loop]]:
    """The kernels and loops of one instruction."""
    opcode = instruction.opcode
    if opcode in NOTHING or opcode.endswith(("-done", "-update")):
        return [], []
    if opcode == "while":
        (body,), (condition,) = instruction.called("body"), instruction.called("condition")
        trips, known = _trips(module, instruction, condition)
        return [], [_loop(module, body, instruction.name, trips, known, [body, condition])]
    called: list[str] = []
    if opcode == "conditional":
        called = instruction.called("branch_computations", "true_computation", "false_computation")
    elif opcode in ("call", "async-start"):
        called = instruction.called("to_apply", "calls")
    branches = [_loop(module, name, name, 1, "exactly", [name]) for name in called]
    if branches:
        taken = max(branches, key=lambda branch: branch.total(lambda kernel: kernel.moved))
        return list(taken.kernels), list(taken.loops)
    return [_kernel(module, around, instruction)], []


def _trips(module: Module, instruction: Instruction, condition: str) -> tuple[int, str]:
    """A loop's trip count: as XLA states it, or from a condition that bounds a counter starting at 0."""
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.attributes):
        return int(found.group(1)), "exactly"
    bounds, others = _bounds(module, module.computations[condition])
    if len(bounds) == 1:
        return bounds[0], "at most" if others else "exactly"
    return 1, ""


def _bounds(module: Module, condition: Computation) -> tuple[list[int], int]:
    """The constants that a condition compares by "less than", and the number of its other inputs."""
    bounds, others = [], 0
    for instruction in condition.instructions.values():
        for name in instruction.called("calls", "to_apply"):
            inner, more = _bounds(module, module.computations[name])
            bounds, others = bounds + inner, others + more
        if instruction.opcode != "compare":
            others += instruction.opcode in ("and", "or", "not", "reduce")
            continue
        sides = [condition.instructions[operand] for operand in instruction.operands]
        constants = [side.inside for side in sides[1:] if side.opcode == "constant" and side.inside.isdecimal()]
        if instruction.attribute("direction") == "LT" and constants:
            bounds.append(int(constants[0]))
        else:
            others += 1
    return bounds, others


def _kernel(module: Module, around: Computation, instruction: Instruction) -> Kernel:
    given = [around.instructions[name] for name in instruction.operands]
    flops, rate, is_convolution = _products(module, around, instruction)
    base = instruction.opcode.removesuffix("-start")
    if base in COLLECTIVES:
        taken = sum(operand.size for operand in given)
        # Its start instruction also returns its operands.
        made = instruction.size - (taken if instruction.opcode.endswith("-start") and base != "all-reduce" else 0)
        made = taken if base == "all-reduce" else made
        return Kernel(instruction.name, base, taken, made, sent=max(taken, made))
    return Kernel(
        instruction.name,
        _kind(instruction),
        sum(_read(module, around, instruction, number) for number in range(len(given))),
        _written(module, around, instruction),
        flops,
        rate,
        is_convolution=is_convolution,
        is_layout_copy=_is_layout_copy(module, around, instruction),
    )


def _kind(instruction: Instruction) -> str:
    """The name of an instruction's kernel type."""
    if instruction.opcode == "fusion":
        return re.sub(r"([.]\d+|[.]clone|[.]remat\d*)+$", "", instruction.name)
    if instruction.opcode == "custom-call":
        return instruction.attribute("custom_call_target").strip('"').replace("__cudnn$", "").lstrip("_")
    return instruction.opcode


# Bytes ----------------------------------------------------------------------------------------------------------------


def _read(module: Module, around: Computation, instruction: Instruction, number: int) -> float:
    """Bytes that an instruction reads of an operand from the device's memory."""
    operand = around.instructions[instruction.operands[number]]
    if instruction.operands[:number].count(operand.name):
        return 0.0  # it was already read
    return min(_looked_at(module, instruction, number, _in_memory(operand.arrays)), _in_memory(operand.arrays))


def _looked_at(module: Module, user: Instruction, number: int, whole: float) -> float:
    """Bytes that an instruction reads of an operand with `whole` bytes."""
    if not whole:
        return 0.0
    if user.opcode in ("dynamic-slice", "slice", "gather") and number == 0:
        return user.size
    if user.opcode in ("dynamic-update-slice", "scatter") and number == 0:
        return 0.0  # in place
    if user.opcode == "fusion":
        (name,) = user.called("calls")
        inner = module.computations[name]
        return _uses(module, inner, inner.parameter(number).name, whole)
    return whole


def _uses(module: Module, inner: Computation, name: str, whole: float) -> float:
    """Bytes that a value's users inside a fusion read, at most all of it."""
    total = 0.0
    for user in inner.users(name):
        if user.opcode in ("bitcast", "reshape") and not user.is_root:
            total += _uses(module, inner, user.name, whole)
        else:
            total += _looked_at(module, user, user.operands.index(name), whole)
    return min(total, whole)


def _written(module: Module, around: Computation, instruction: Instruction) -> float:
    """Bytes that an instruction writes to the device's memory."""
    arrays = instruction.arrays
    if instruction.opcode == "custom-call" and len(arrays) > 1:
        arrays = tuple(array for array in arrays if array.dtype not in ("u8", "s8"))  # without its workspace
    if instruction.opcode == "copy-start":
        arrays = arrays[:1]
    updates: list[float | None] = [None] * len(arrays)
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called("calls")[0]]
        root = inner.root
        roots = [inner.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
        if len(roots) == len(arrays):
            updates = [_updated(module, inner, each) for each in roots]
    else:
        updates = [_updated(module, around, instruction)] * len(arrays)
    return sum(
        0.0 if array.on_chip else array.size if update is None else min(update, array.size)
        for array, update in zip(arrays, updates)
    )


def _updated(module: Module, around: Computation, instruction: Instruction) -> float | None:
    """Bytes that an in-place update changes; None if the entire array is written."""
    if instruction.opcode in ("bitcast", "reshape"):
        return _updated(module, around, around.instructions[instruction.operands[0]])
    if instruction.opcode == "dynamic-update-slice":
        return around.instructions[instruction.operands[1]].size
    if instruction.opcode == "scatter":
        return around.instructions[instruction.operands[-1]].size
    if instruction.opcode == "fusion" and len(instruction.arrays) == 1:
        inner = module.computations[instruction.called("calls")[0]]
        return _updated(module, inner, inner.root)
    return None


def _in_memory(arrays: Sequence[Array]) -> float:
    return sum(array.size for array in arrays if not array.on_chip)


def _is_layout_copy(module: Module, around: Computation, instruction: Instruction) -> bool:
    """Whether an instruction only changes an array's order in memory."""
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called("calls")[0]]
        steps = list(inner.instructions.values())
        return all(each.opcode in MOVES for each in steps) and any(
            _is_layout_copy(module, inner, each) for each in steps if each.opcode in ("copy", "transpose")
        )
    if instruction.opcode not in ("copy", "transpose"):
        return False
    before, after = around.instructions[instruction.operands[0]].arrays[0], instruction.arrays[0]
    return _order(before, _permutation(instruction, len(before.shape))) != _order(after, range(len(after.shape)))


def _permutation(instruction: Instruction, rank: int) -> list[int]:
    """For each axis of the operand, the axis of the result that it becomes."""
    if instruction.opcode != "transpose":
        return list(range(rank))
    taken = [int(axis) for axis in instruction.attribute("dimensions").split(",")]
    return [taken.index(axis) for axis in range(rank)]


def _order(array: Array, becomes: Sequence[int]) -> list[int]:
    """The axes in memory order, the fastest first, without those of length 1."""
    axes = [int(axis) for axis in array.layout.split(",")] if array.layout else list(range(len(array.shape)))[::-1]
    return [becomes[axis] for axis in axes if array.shape[axis] > 1]


# Operations -----------------------------------------------------------------------------------------------------------


def _products(module: Module, around: Computation, instruction: Instruction) -> tuple[float, str, bool]:
    """Operations in an instruction's convolutions and matrix products, their rate, and whether one is a convolution."""
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called("calls")[0]]
        found = [_products(module, inner, each) for each in inner.instructions.values()]
        rates = [rate for flops, rate, _ in found if flops]
        return sum(flops for flops, _, _ in found), rates[0] if rates else "", any(convolves for *_, convolves in found)
    if instruction.opcode not in ("convolution", "dot", "custom-call"):
        return 0.0, "", False
    operands = [
        around.instructions[name].arrays[0] for name in instruction.operands if around.instructions[name].arrays
    ]
    target = instruction.attribute("custom_call_target").strip('"')
    flops, convolves = 0.0, False
    if instruction.opcode == "convolution" or target.startswith("__cudnn$conv"):
        flops, convolves = convolution_flops(instruction, operands, target), True
    elif instruction.opcode == "dot":
        axes = instruction.attribute("lhs_contracting_dims")
        flops = _dot_flops(instruction, operands[0], axes)
    elif target.startswith("__cublas"):
        axes = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
        flops = _dot_flops(instruction, operands[0], axes.group(1).replace('"', "") if axes else "")
    return flops, _rate(instruction, operands) if flops else "", convolves


def _dot_flops(instruction: Instruction, left: Array, axes: str) -> float:
    return 2.0 * instruction.arrays[0].elements * math.prod(left.shape[int(axis)] for axis in axes.split(",") if axis)


def _rate(instruction: Instruction, operands: Sequence[Array]) -> str:
    """The type whose rate a product has: float32 without a precision runs with fewer bits, in TF32 or bfloat16."""
    widest = max(operands[:2], key=lambda array: array.bits)
    if widest.dtype != "f32":
        return "bfloat16" if widest.bits <= 16 else "float32"
    asked = instruction.attribute("operand_precision") or instruction.attributes
    return "float32" if re.search(r'\bhighest\b|"HIGHEST"', asked) else "tf32"


def convolution_flops(instruction: Instruction, operands: Sequence[Array], target: str = "") -> float:
    """`2 b o i prod_d v_d`: images, output and input features, and pairs of an output place and a tap inside the image.

    Args:
      instruction: a `convolution`, or one of cuDNN, whose gradients are described by their forward convolution.
      operands: its operands.
      target: cuDNN's name of the instruction.
    """
    first, second, result = operands[0], operands[1], instruction.arrays[0]
    image, kernel, out = first, second, result
    if target.endswith("BackwardInput"):
        image, kernel, out = result, second, first
    elif target.endswith("BackwardFilter"):
        image, kernel, out = first, result, second
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels"))
    assert labels is not None
    of_image, of_kernel, of_out = labels.groups()
    window = _window(instruction)
    taps = 1.0
    for axis in range(len(of_kernel) - 2):
        mark = str(axis)
        taps *= _valid_pairs(
            image.shape[of_image.index(mark)],
            kernel.shape[of_kernel.index(mark)],
            out.shape[of_out.index(mark)],
            window,
            axis,
        )
    features = kernel.shape[of_kernel.index("o")] * kernel.shape[of_kernel.index("i")]
    return 2.0 * out.shape[of_out.index("b")] * features * taps


def _window(instruction: Instruction) -> dict[str, list[str]]:
    """Parse `window={size=3x3 pad=1_1x1_1}`: by name, one value per axis."""
    return {name: value.split("x") for name, value in re.findall(r"(\w+)=(\S+)", instruction.attribute("window"))}


def _valid_pairs(size: int, taps: int, places: int, window: dict[str, list[str]], axis: int) -> int:
    """The number of pairs of an output place and a tap that meet a pixel, not padding or a hole of a dilation."""

    def number(name: str, default: int) -> int:
        return int(window[name][axis]) if name in window else default

    stride, spread, holes = number("stride", 1), number("rhs_dilate", 1), number("lhs_dilate", 1)
    low = int(window["pad"][axis].split("_")[0]) if "pad" in window else 0
    last = (size - 1) * holes
    count = 0
    for tap in range(taps):
        offset = tap * spread - low
        if holes == 1:
            first = max(0, -(offset // stride) if offset < 0 else 0)
            count += max(0, min(places - 1, (last - offset) // stride) - first + 1)
        else:
            reached = (place * stride + offset for place in range(places))
            count += sum(0 <= pixel <= last and pixel % holes == 0 for pixel in reached)
    return count
