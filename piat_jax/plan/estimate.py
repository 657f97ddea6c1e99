"""Memory, and lower bounds of the time, of a compiled program on a target: pure functions of the parsed program."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from piat_jax.plan.kernels import Kernel, Loop
from piat_jax.plan.targets import Target


class Memory(NamedTuple):
    """Bytes on each device while a program runs, as XLA's compiler laid them out."""

    arguments: float
    temporaries: float
    outputs: float
    aliased: float  # outputs in the memory of arguments
    code: float = 0.0
    beside: float = 0.0  # the run's other data on the device, not an argument of this program

    @property
    def peak(self) -> float:
        """`arguments + temporaries + outputs - aliased + code + beside`."""
        return self.arguments + self.temporaries + self.outputs - self.aliased + self.code + self.beside


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """The requirements of one program on each device of a target.

    Attributes:
      name: the program's name.
      target: the device.
      devices: number of devices that run it together.
      examples: number of examples per step, or per call, over all devices.
      memory: bytes.
      root: its loops and kernels.
      compile_seconds: compilation time on this machine.
      steps: whether it is a loop over steps of `examples` each; else one call works on `examples`.
    """

    name: str
    target: Target
    devices: int
    examples: int
    memory: Memory
    root: Loop
    compile_seconds: float
    steps: bool = False

    @property
    def fits(self) -> bool:
        """Whether the program fits into a device's memory."""
        return self.memory.peak <= self.target.memory

    @property
    def step(self) -> Loop:
        """The part that runs once per `examples`: the body of the loop over steps, or the entire program."""
        return max(self.root.loops, key=lambda loop: loop_seconds(loop, self.target)) if self.steps else self.root

    @property
    def step_seconds(self) -> float:
        """Lower bound of the time of one step, or call."""
        return loop_seconds(self.step, self.target)

    @property
    def outside_seconds(self) -> float:
        """Lower bound of the time of a call outside its steps."""
        whole = loop_seconds(self.root, self.target)
        return whole - self.step.trips * self.step_seconds if self.steps else 0.0

    @property
    def ends_early(self) -> bool:
        """Whether one of its loops may end before the counted number of trips."""
        return any(loop.known == "at most" for loop in self.root.walk())


class Stage(NamedTuple):
    """A part of a run."""

    name: str
    seconds: float  # lower bound
    how: str  # how it was counted


def kernel_seconds(kernel: Kernel, target: Target) -> float:
    """Lower bound of a kernel's time: `max(bytes / bandwidth, operations / rate)`."""
    products = kernel.flops / target.flops[kernel.rate] if kernel.flops else 0.0
    return max(kernel.moved / target.bandwidth, products)


def loop_seconds(loop: Loop, target: Target) -> float:
    """`sum_k kernel_seconds(k)` of one trip, with inner loops multiplied by their trips."""
    return loop.total(lambda kernel: kernel_seconds(kernel, target))


def own_seconds(loop: Loop, target: Target) -> float:
    """The same without inner loops."""
    return sum(kernel_seconds(kernel, target) for kernel in loop.kernels)


def epoch_seconds(train: Estimate, steps: int, steps_per_call: int) -> float:
    """`steps t_step + ceil(steps / steps_per_call) t_outside`."""
    return steps * train.step_seconds + math.ceil(steps / steps_per_call) * train.outside_seconds


def evaluated_epochs(epochs: int, every: int) -> int:
    """The number of epochs with an evaluation: each `every`-th, and the last.

    >>> evaluated_epochs(120, 1), evaluated_epochs(100, 30), evaluated_epochs(3, 5)
    (120, 4, 1)
    """
    return epochs // every + (epochs % every > 0)


def block_seconds(block: Estimate, examples: float) -> float:
    """Lower bound of the time of whole blocks for `examples` examples."""
    return math.ceil(examples / block.examples) * block.step_seconds


def dollars(seconds: float, devices: int, price: float) -> float:
    """The cost of a run; `price` is for one device and hour.

    >>> dollars(7200, 8, 2.5)
    40.0
    """
    return seconds / 3600 * devices * price


def by_kind(loop: Loop, target: Target) -> list[tuple[str, Sequence[Kernel], float]]:
    """The kernels of one trip without inner loops, by type, with the seconds of each type: the longest first."""
    kinds: dict[str, list[Kernel]] = {}
    for kernel in loop.kernels:
        kinds.setdefault(kernel.kind, []).append(kernel)
    rows = [(kind, of_kind, sum(kernel_seconds(each, target) for each in of_kind)) for kind, of_kind in kinds.items()]
    return sorted(rows, key=lambda row: -row[2])


def next_batch(peaks: Mapping[int, float], limit: float, unit: int) -> int:
    """The batch at which the line through the two largest of `peaks` meets `limit`, in whole units; at least one.

    Args:
      peaks: bytes by batch size; at least two.
      limit: bytes.
      unit: batches are multiples of it.

    >>> next_batch({128: 1.0, 256: 1.5}, 3.1, 64)
    640
    """
    (low, at_low), (high, at_high) = sorted(peaks.items())[-2:]
    slope = (at_high - at_low) / (high - low)
    reached = high + (limit - at_high) / slope if slope > 0 else 2 * high
    return max(unit, math.floor(reached / unit) * unit)
