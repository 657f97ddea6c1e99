"""A reader of optimised HLO, the text of a program that XLA compiled: computations, instructions, arrays."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from piat_jax.core.checks import InputError

_BITS = {"pred": 8, "token": 0}
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"%([\w.\-]+)")
_COMMENT = re.compile(r"/\*.*?\*/")


class Array(NamedTuple):
    """The type of one array."""

    dtype: str  # HLO's name: bf16, f32, s32, pred
    shape: tuple[int, ...]
    layout: str = ""  # axes from the fastest on: "3,2,1,0"
    tile: tuple[int, ...] = ()  # tile sizes on TPUs, of the fastest axes, the slowest of them first
    on_chip: bool = False  # in a memory other than the device's main one, such as TPUs' VMEM

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        """Bits per element."""
        digits = re.match(r"[a-z]+(\d+)", self.dtype)
        return _BITS.get(self.dtype, int(digits.group(1)) if digits else 0)

    @property
    def size(self) -> float:
        """Bytes, with tiles counted in full."""
        return math.prod(self._stored()) * self.bits / 8

    def _stored(self) -> list[int]:
        """The lengths of the axes in memory order, the slowest first."""
        axes = [int(axis) for axis in self.layout.split(",")][::-1] if self.layout else range(len(self.shape))
        lengths = [self.shape[axis] for axis in axes]
        tiled = min(len(self.tile), len(lengths))
        for place in range(1, tiled + 1):
            lengths[-place] = -(-lengths[-place] // self.tile[-place]) * self.tile[-place]
        return lengths


class Instruction(NamedTuple):
    """One instruction."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]  # of its result; several if the result is a tuple
    operands: tuple[str, ...]
    inside: str  # the text between its parentheses
    attributes: str  # what follows them
    is_root: bool

    @property
    def size(self) -> float:
        """Bytes of the result."""
        return sum(array.size for array in self.arrays)

    def attribute(self, name: str) -> str:
        """The value of an attribute `name=value`, in braces or up to a comma; empty if it is missing."""
        found = re.search(rf"(?:^|[ ,]){re.escape(name)}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return found.group(1).strip("{}") if found else ""

    def called(self, *names: str) -> list[str]:
        """The computations that these attributes name, in order."""
        return [each.lstrip("%") for name in names for each in re.split(r",\s*", self.attribute(name)) if each]


class Computation(NamedTuple):
    """A computation: its instructions by name, operands before their users."""

    name: str
    instructions: Mapping[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose result the computation returns."""
        return next(each for each in self.instructions.values() if each.is_root)

    def parameter(self, number: int) -> Instruction:
        """The parameter with this number."""
        return next(
            each for each in self.instructions.values() if each.opcode == "parameter" and each.inside == str(number)
        )

    def users(self, name: str) -> Iterator[Instruction]:
        """The instructions that take the result of `name`."""
        return (each for each in self.instructions.values() if name in each.operands)


class Module(NamedTuple):
    """A program."""

    computations: Mapping[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Parse `compiled.as_text()`.

    Raises:
      InputError: the text is not an HLO module with an entry.

    >>> text = '''HloModule tiny
    ... ENTRY %main (x: f32[2,3]) -> f32[2,3] {
    ...   %x = f32[2,3]{1,0} parameter(0)
    ...   ROOT %y = f32[2,3]{1,0} add(%x, %x), metadata={op_name="a(b)"}
    ... }'''
    >>> parse(text).computations["main"].root.operands
    ('x', 'x')
    """
    computations: dict[str, Computation] = {}
    entry, name = "", ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if not name:
            if head := _HEAD.match(line):
                name, instructions = head.group(2), {}
                entry = name if head.group(1) else entry
        elif line.startswith("}"):
            computations[name], name = Computation(name, instructions), ""
        elif " = " in line:
            made = _instruction(line.strip())
            instructions[made.name] = made
    if entry not in computations:
        raise InputError("text holds no HLO module with an ENTRY computation; give compiled.as_text()")
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    is_root = line.startswith("ROOT ")
    name, _, rest = _COMMENT.sub("", line.removeprefix("ROOT ")).partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    arrays = arrays_of(rest[:end])
    opcode, _, _ = rest[end:].strip().partition("(")
    begin = rest.index("(", end)
    close = _closing(rest, begin)
    inside = rest[begin + 1 : close]
    operands = tuple(_NAME.findall(inside))
    return Instruction(name.lstrip("%"), opcode, arrays, operands, inside, rest[close + 1 :].lstrip(", "), is_root)


def arrays_of(text: str) -> tuple[Array, ...]:
    """The arrays of a type; several for a tuple.

    >>> [(array.dtype, array.size, array.on_chip) for array in arrays_of("(bf16[2,3]{1,0:T(8,128)S(1)}, pred[5])")]
    [('bf16', 2048.0, True), ('pred', 5.0, False)]
    """
    return tuple(_array(*found) for found in _ARRAY.findall(text))


def _array(dtype: str, shape: str, layout: str) -> Array:
    lengths = tuple(int(length.strip("<=")) for length in shape.split(",") if length)
    axes, _, tiling = layout.strip("{}").partition(":")
    tile, space = re.match(r"T\(([\d,]+)\)", tiling), re.search(r"S\((\d+)\)", tiling)
    tiles = tuple(map(int, tile.group(1).split(","))) if tile else ()
    return Array(dtype, lengths, axes, tiles, bool(space and int(space.group(1))))


def _closing(text: str, begin: int) -> int:
    """The position of the parenthesis that closes the one at `begin`."""
    depth = 0
    for place in range(begin, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    raise InputError(f"an HLO instruction has an unclosed parenthesis: {text[:80]!r}")
